"""Whose fault an end is: by what the platform sees of the node, and never by the word of the job's own process."""

import asyncio

import msgspec
import pytest
import ray

from fabric.cluster import ranks as ranks_module
from fabric.cluster.placement_groups import Seated
from fabric.cluster.ranks import Ranks, not_built
from fabric.cluster.services import Services
from fabric.cluster.settings import ClusterSettings
from fabric.gate.events import LeaseOutcome, NodeDown
from fabric.gate.instructions import Share
from fabric.worker.runner import Seat
from fabric.worker.stage import JobEnd
from tests.worker.leases import NODE, lease_of


class Never:
    """A question that a runner leaves open."""

    def remote(self, *_):
        return asyncio.get_running_loop().create_future()


class Runner:
    saves = progress = Never()


class Outbox(list):
    put = list.append


@pytest.fixture
def around():
    return Services(
        nodes={"h1": NODE},
        groups=None,
        agents=None,
        outbox=Outbox(),
        archive=None,
        settings=ClusterSettings(),
        gone=set(),
    )


@pytest.fixture
def node_lives(monkeypatch):
    """What the platform finds when it looks at the node itself."""
    found = [True]

    async def lives(_):
        return found[0]

    monkeypatch.setattr(ranks_module, "lives", lives)
    return found


async def ended(around, word, **more):
    """How a lease of one rank ends whose runner answers with that word."""
    answer = asyncio.get_running_loop().create_future()
    if isinstance(word, BaseException):
        answer.set_exception(word)
    else:
        answer.set_result(word)
    runner = Seated(actor=Runner(), seat=Seat(pid=100, ip="10.0.0.1", port=1, devices=("0",)), node=NODE)
    return await Ranks(lease_of(shares=(Share("h1", 1),)), [runner], around, **more).ended([answer])


async def test_a_rank_whose_answer_nobody_understands_ends_and_is_not_refunded(around, node_lives):
    end = await ended(around, RuntimeError("what is this?"))
    assert (end.outcome, end.error) == (LeaseOutcome.INTERRUPTED, "what is this?")


class NodeDiedByMyWord(ray.exceptions.RayActorError):
    """What a job may make up to be thought lost."""

    def __str__(self):
        return "The actor died because its node has died."


PRETENCES = [
    NodeDiedByMyWord(),
    ray.exceptions.RayTaskError("run", "tb", NodeDiedByMyWord()),
    ray.exceptions.RayTaskError("run", "tb", NodeDiedByMyWord()).as_instanceof_cause(),
    ray.exceptions.ActorDiedError(),
    JobEnd(outcome=LeaseOutcome.LOST, error="node h1 is gone"),
]


@pytest.mark.parametrize("word", PRETENCES, ids=lambda word: type(word).__name__)
async def test_no_word_of_a_jobs_own_process_makes_its_end_the_platforms_fault(around, node_lives, word):
    end = await ended(around, word)
    assert end.outcome is LeaseOutcome.FAILED
    assert around.gone == set(), "and no word of it takes a node from others"


async def test_a_runner_that_went_with_its_node_is_the_platforms_loss(around, node_lives):
    node_lives[0] = False
    end = await ended(around, ray.exceptions.ActorDiedError())
    assert (end.outcome, end.error) == (LeaseOutcome.LOST, "node h1 is gone")
    assert around.gone == {"ray-h1"}
    assert around.outbox == [NodeDown(node_id="h1")], "the gate hears of it first, and tries nothing there again"


async def test_of_a_node_on_which_nothing_can_be_built_the_gate_hears_once_and_first(around, node_lives):
    """It would try there again otherwise, at once and as often as it tries: five attempts within a second."""
    node_lives[0] = False
    for _ in range(3):
        end = await not_built(KeyError("h1"), nodes={"h1": NODE}, around=around, own_start=False)
        assert end.outcome is LeaseOutcome.LOST
    assert around.outbox == [NodeDown(node_id="h1")]


async def test_nobody_takes_down_the_node_that_has_come_in_the_place_of_one(around, node_lives):
    around.nodes["h1"] = msgspec.structs.replace(NODE, ray_id="another")
    assert (await not_built(KeyError("h1"), nodes={"h1": NODE}, around=around, own_start=False)).outcome == "lost"
    assert around.outbox == []


@pytest.mark.parametrize(("asked", "outcome"), [(True, LeaseOutcome.LOST), (False, LeaseOutcome.INTERRUPTED)])
async def test_only_who_was_asked_to_leave_was_lost_when_it_left_with_nothing(around, asked, outcome):
    word = JobEnd(outcome=LeaseOutcome.INTERRUPTED, error="it ended when it was asked to stop, and saved nothing")
    assert (await ended(around, word, asked=lambda: asked)).outcome is outcome


async def test_a_rank_that_stalls_for_good_does_not_keep_its_gang(around, monkeypatch):
    """The other one has given it up, saved and left, which nobody had asked it to."""
    monkeypatch.setattr("fabric.worker.outcomes.STRAGGLERS_S", 0.05)
    stalls, left = (asyncio.get_running_loop().create_future() for _ in range(2))
    said = JobEnd(outcome=LeaseOutcome.SAVED, again=True, error="peer_lost: rank 0 of 2 is silent")
    left.set_result(said)
    seats = [
        Seated(actor=Runner(), seat=Seat(pid=100 + rank, ip="10.0.0.1", port=1, devices=("0",)), node=NODE)
        for rank in range(2)
    ]
    gang = Ranks(lease_of(shares=(Share("h1", 1), Share("h1", 1))), seats, around)
    end = await asyncio.wait_for(gang.ended([stalls, left]), 30)
    assert (end.outcome, end.again, end.error) == (said.outcome, True, said.error)
