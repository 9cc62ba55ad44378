"""Each stage of a lease's life where the gate may die or Ray may fail, with neither."""

import asyncio
import json
from dataclasses import replace

import pytest
import ray
from msgspec import structs

from fabric.cluster import dispatch as orders_module
from fabric.cluster import ranks as ranks_module
from fabric.cluster import recovery as survivors_module
from fabric.cluster.attempts import Attempt
from fabric.cluster.placement_groups import Group
from fabric.cluster.ranks import Ranks
from fabric.cluster.recovery import survivors
from fabric.cluster.services import Services
from fabric.cluster.settings import ClusterSettings
from fabric.gate.events import (
    JobKind,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    Metered,
)
from fabric.gate.instructions import Share
from fabric.gate.lifecycle import StopReason
from fabric.node.agent import Cut
from fabric.system.guarded import secret_of
from fabric.worker.runner import Described, Order, Seat
from fabric.worker.stage import JobEnd, Save
from tests.cluster.attempts import Agents, Groups, Living, Outbox, Runner, seated
from tests.cluster.shells import shell_of
from tests.worker.leases import NODE, lease_of

PAYLOAD = '{"inline": "cGlja2xl"}'


def lease(kind=JobKind.FUNCTION, *, epoch=1, ranks=1):
    payload = "" if kind is JobKind.LEASE else PAYLOAD
    return lease_of(epoch=epoch, kind=kind, shares=tuple(Share("h1", 1) for _ in range(ranks)), payload=payload)


def order_of(of, rank=0):
    return Order(lease=of, rank=rank, master_addr="10.0.0.1", master_port=1, work_dir="work")


@pytest.fixture
async def runners():
    return [Runner(), Runner()]


@pytest.fixture
async def around(runners):
    return Services(
        nodes={"h1": NODE},
        groups=Groups(runners[:1]),
        agents=Agents(),
        outbox=Outbox(),
        archive=None,
        settings=ClusterSettings(start_timeout_s=5),
        gone=set(),
    )


async def begun(attempt):
    """Its task, when it waits for the world."""
    attempt.task = asyncio.create_task(attempt.start())
    await settled()
    return attempt


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


def found(around, runners, of):
    group = Group(placed=None, shares=of.shares, runners=seated(runners))
    return Attempt.found(of, around, group=group, orders=[order_of(of, rank) for rank in range(len(runners))])


async def test_a_lease_found_after_a_restart_is_said_to_have_started_in_case_nobody_heard(around, runners):
    attempt = found(around, runners[:1], lease())
    attempt.task = asyncio.create_task(attempt.resume())
    runners[0].end.set_result(JobEnd(outcome=LeaseOutcome.SUCCEEDED, result_ref=""))
    await attempt.task
    assert [type(event) for event in around.outbox.events] == [LeaseStarted, LeaseFinished]


async def test_a_found_lease_is_ended_even_if_it_is_removed_before_it_is_watched(around, runners):
    attempt = found(around, runners[:1], lease())
    attempt.task = asyncio.create_task(attempt.resume())
    await attempt.remove()
    assert around.groups.fate == ["destroyed"]
    (removed,) = around.outbox.of(LeaseRemoved)
    assert removed.final.seq == 7


async def test_a_function_that_is_cancelled_while_its_runner_starts_has_not_succeeded(around, runners):
    around.groups.built.clear()
    attempt = await begun(Attempt(lease=lease(), around=around))
    await attempt.ask_to_stop(StopReason.CANCELLED, seconds_left=5)
    assert around.outbox.of(LeaseFinished) == []
    around.groups.built.set()
    await settled()
    assert runners[0].wishes == [StopReason.CANCELLED]
    await attempt.remove()


@pytest.mark.parametrize(("reason", "outcomes"), [("cancelled", [LeaseOutcome.SUCCEEDED]), ("evicted", [])])
async def test_a_bare_lease_is_closed_by_its_owner_and_by_nobody_else(around, reason, outcomes):
    bare = lease(JobKind.LEASE)
    attempt = Attempt(lease=bare, around=around, group=Group(placed=None, shares=bare.shares))
    await attempt.ask_to_stop(reason, seconds_left=5)
    assert [event.outcome for event in around.outbox.of(LeaseFinished)] == outcomes


async def test_the_wish_to_stop_reaches_the_other_ranks_of_one_that_hangs(around, runners):
    runners[0].hangs = True
    attempt = found(around, runners, lease(ranks=2))
    asking = asyncio.create_task(attempt.ask_to_stop("evicted", seconds_left=5))
    await settled()
    assert runners[1].wishes == ["evicted"]
    asking.cancel()


async def test_a_removal_that_failed_half_way_still_tells_what_the_meters_said(around, runners):
    around.agents.unread.insert(0, Cut(lease_id="job-1.1", seq=6, window_us=1_000, busy_us=900))
    attempt = await begun(Attempt(lease=lease(), around=around))
    runners[0].end.set_result(JobEnd(outcome=LeaseOutcome.FAILED, error="broken"))
    await attempt.task
    around.groups.failures = 1
    with pytest.raises(ray.exceptions.RaySystemError):
        await attempt.remove()
    assert around.outbox.of(LeaseRemoved) == []
    await attempt.remove()
    (removed,) = around.outbox.of(LeaseRemoved)
    assert removed.final.seq == 7
    (metered,) = around.outbox.of(Metered)
    assert [sample.seq for sample in metered.samples] == [6]


@pytest.mark.parametrize(
    ("says", "fate"), [(True, "kept"), (False, "dismissed"), ("yes", "dismissed"), (None, "dismissed")]
)
async def test_a_runner_serves_again_only_if_it_says_that_nothing_was_left(around, runners, says, fate, monkeypatch):
    monkeypatch.setattr(orders_module, "_CLEAN_WITHIN_S", 0.01)
    attempt = await begun(Attempt(lease=lease(), around=around))
    runners[0].says_clean, runners[0].hangs = says, says is None
    runners[0].end.set_result(JobEnd(outcome=LeaseOutcome.SUCCEEDED, result_ref="", reusable=True))
    await attempt.task
    await attempt.remove()
    assert around.groups.fate[0] == fate
    (removed,) = around.outbox.of(LeaseRemoved)
    assert removed.final.seq == 7


async def test_a_lease_whose_task_broke_is_removed_all_the_same(around, runners):
    async def broken():
        raise ValueError("a mistake of ours")

    attempt = found(around, runners[:1], lease())
    attempt.task = asyncio.create_task(broken())
    await settled()
    await attempt.remove()
    assert len(around.outbox.of(LeaseRemoved)) == 1


async def test_a_group_whose_runners_never_came_up_is_not_kept_for_the_next_lease(around):
    around.groups.built.clear()
    hurried = replace(around, settings=ClusterSettings(start_timeout_s=0.01))
    attempt = Attempt(lease=lease(), around=hurried)
    await attempt.start()
    assert attempt.end.outcome is LeaseOutcome.LOST
    await attempt.remove()
    assert around.groups.fate == ["destroyed"]


async def test_what_ray_has_started_for_runners_that_never_sat_ends_with_their_lease(around):
    """A process with the lease's mark and its tenant's variables: Ray would keep it, idle, for the next one of the same."""
    around.groups.built.clear()
    hurried = replace(around, settings=ClusterSettings(start_timeout_s=0.01))
    attempt = Attempt(lease=lease(JobKind.PROGRAM), around=hurried)
    await attempt.start()
    await attempt.remove()
    assert (NODE.address, "job-1.1") in around.agents.ended


OWN_START = {  # with these a runner's interpreter first runs what its tenant likes: `sitecustomize`, a `.pth` file
    "variables": ({"runtime_env": {"env_vars": {"PYTHONPATH": "/tmp/mine"}}}, JobKind.FUNCTION),
    "packages": ({"runtime_env": {"pip": ["mine"]}}, JobKind.FUNCTION),
    "a program's variables": ({"env": {"PYTHONPATH": "/tmp/mine"}}, JobKind.PROGRAM),
}


@pytest.fixture
def node_lives(monkeypatch):
    """Whether raylets are there; none is in these tests."""
    answers = [True]

    async def lives(_):
        return answers[0]

    monkeypatch.setattr(ranks_module, "lives", lives)
    return answers


@pytest.mark.parametrize(("more", "kind"), OWN_START.values(), ids=OWN_START)
@pytest.mark.parametrize("how", ["never", "with an error"])
async def test_a_start_in_which_a_tenants_code_runs_is_charged_and_not_refunded(around, node_lives, more, kind, how):
    around.groups.built.clear()
    around.groups.error = None if how == "never" else ray.exceptions.ActorDiedError()
    of = lease_of(kind=kind, shares=(Share("h1", 1),), payload=json.dumps({"inline": "cGlja2xl", **more}))
    attempt = Attempt(lease=of, around=replace(around, settings=ClusterSettings(start_timeout_s=0.05)))
    await attempt.start()
    assert [type(event) for event in around.outbox.events] == [LeaseStarted, LeaseFinished]
    assert attempt.end.outcome is LeaseOutcome.INTERRUPTED


@pytest.mark.parametrize("how", ["is seen", "came back as another", "is not seen yet"])
async def test_a_start_that_went_with_its_node_is_the_platforms_loss_whoever_has_code_in_it(around, node_lives, how):
    """The node is gone in the middle of it: a job with variables of its own would have failed for that."""
    (more, kind), nodes = OWN_START["variables"], dict(around.nodes)

    class Dying(Groups):
        async def seat(self, group, lease, *, runtime_env):
            if how == "is seen":
                del nodes["h1"]
            elif how == "came back as another":
                nodes["h1"] = structs.replace(NODE, ray_id="ray-h1-again")
            else:
                node_lives[0] = False
            raise KeyError("h1")

    of = lease_of(kind=kind, shares=(Share("h1", 1),), payload=json.dumps({"inline": "cGlja2xl", **more}))
    attempt = Attempt(lease=of, around=replace(around, nodes=nodes, groups=Dying([])))
    await attempt.start()
    assert (attempt.end.outcome, attempt.end.error) == (
        LeaseOutcome.LOST, "the lease could not be built: a node of it is gone",
    )  # fmt: skip


async def test_a_start_in_which_no_code_of_a_tenant_runs_is_the_platforms_affair(around):
    around.groups.error = ray.exceptions.ActorDiedError()
    attempt = Attempt(lease=lease_of(payload='{"inline": "cGlja2xl", "env": {"A": "1"}}'), around=around)
    await attempt.start()
    assert [type(event) for event in around.outbox.events] == [LeaseFinished]
    assert attempt.end.outcome is LeaseOutcome.LOST


DIED = JobEnd(outcome=LeaseOutcome.FAILED, error="worker_died: its process was ended by SIGKILL")


@pytest.mark.parametrize(
    ("ends", "outcome", "again", "steps"),
    [
        ([DIED, JobEnd(outcome=LeaseOutcome.SAVED, saves=(Save(7, 10),), step=7)], LeaseOutcome.SAVED, True, [7]),
        ([JobEnd(outcome=LeaseOutcome.SAVED, saves=(Save(7, 10),), step=7), DIED], LeaseOutcome.SAVED, True, [7]),
        ([DIED, JobEnd(outcome=LeaseOutcome.SAVED)], LeaseOutcome.FAILED, False, []),
        ([DIED, DIED], LeaseOutcome.FAILED, False, []),
        (
            [
                JobEnd(outcome=LeaseOutcome.FAILED, error="a bug"),
                JobEnd(outcome=LeaseOutcome.SAVED, saves=(Save(3, 9),)),
            ],
            LeaseOutcome.FAILED,
            False,
            [3],
        ),
    ],
    ids=["rank 0 died", "rank 1 died", "nothing new was saved", "all died", "a bug"],
)
async def test_when_a_rank_dies_the_others_may_save_and_the_job_goes_on(around, ends, outcome, again, steps):
    pair = [Runner(), Runner()]
    ranks = Ranks(lease(ranks=2), seated(pair), around)
    gang = asyncio.create_task(ranks.ended([runner.wait.remote() for runner in pair]))
    first, then = sorted((0, 1), key=lambda rank: ends[rank].outcome is LeaseOutcome.SAVED)
    pair[first].end.set_result(ends[first])
    await settled()
    pair[then].end.set_result(ends[then])
    end = await gang
    assert (end.outcome, end.again) == (outcome, again)
    assert [event.step for event in around.outbox.of(LeaseSaved)] == steps


async def test_checkpoints_that_come_with_the_end_are_told_once(around, runners):
    runners[0].end.set_result(JobEnd(outcome=LeaseOutcome.SAVED, saves=(Save(1, 10), Save(2, 10, 64))))
    end = await Ranks(lease(), seated(runners[:1]), around).ended([runners[0].wait.remote()])
    assert end.outcome is LeaseOutcome.SAVED
    assert [event.step for event in around.outbox.of(LeaseSaved)] == [1, 2]


@pytest.mark.parametrize(
    ("orders", "adopted"),
    [
        ([order_of(lease(ranks=2), 0), order_of(lease(ranks=2), 1)], True),
        ([order_of(lease(ranks=2), 0), None], False),
        ([order_of(lease(ranks=2, epoch=2), 0), order_of(lease(ranks=2, epoch=1), 1)], False),
        ([None, None], False),
    ],
    ids=["both", "one without an order", "one with an older order", "none"],
)
async def test_a_gang_is_found_again_only_if_all_its_ranks_had_their_orders(around, monkeypatch, orders, adopted):
    actors = {
        f"runner-{rank}": shell_of(
            Living(
                Described(
                    seat=Seat(pid=rank, ip="10.0.0.1", port=1, devices=()),
                    placement_group_id="00" * 18,
                    bundle=rank,
                    order=order,
                )
            ),
            secret_of(around.settings.key, f"runner-{rank}"),
        )
        for rank, order in enumerate(orders)
    }
    killed = []
    named = [{"name": name, "namespace": "fabric"} for name in actors]
    monkeypatch.setattr(survivors_module, "list_named_actors", lambda **_: named)
    monkeypatch.setattr(ray, "get_actor", lambda name, _: actors[name])
    monkeypatch.setattr(ray, "kill", lambda actor, **_: killed.append(actor))
    again = await survivors(around.nodes, around.groups, around.settings)
    assert [found.lease_id for found, _, _ in again] == (["job-1.1"] if adopted else [])
    assert len(killed) == (0 if adopted else 2)
