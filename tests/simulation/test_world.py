"""Any scheduler in the simulated world: nobody is on a device twice, no work is lost or made, and the same is the same."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.simulation.floor import Floor
from fabric.simulation.gate_policy import GatePolicy
from fabric.simulation.measures import measure, rhos_of
from fabric.simulation.peers.names import PEERS
from fabric.simulation.tenants import stretched, with_tiers
from fabric.simulation.workload import HOUR_US, Behaviour, Cluster, Nodes, Work, load
from fabric.simulation.world import World

MINUTE = 60_000_000
POLICIES = {"fabric": GatePolicy, **PEERS}
CLUSTER = Cluster(nodes=(Nodes(count=2, devices=4, pool="reserved"), Nodes(count=2, devices=4)))

SPOT_COMES_AND_GOES = ((0, 1), (60 * MINUTE, 2), (100 * MINUTE, 0), (200 * MINUTE, 1), (500 * MINUTE, 2))

works = st.lists(
    st.builds(
        Work,
        work_id=st.just(""),
        submit_us=st.integers(0, 300).map(lambda minutes: minutes * MINUTE),
        duration_us=st.integers(1, 400).map(lambda minutes: minutes * MINUTE),
        devices=st.sampled_from((1, 1, 1, 2, 3, 4, 8)),
        user=st.sampled_from(("ada", "bob", "cyd")),
        tier=st.integers(0, 2),
        service=st.sampled_from(("training", "training", "inference")),
    ),
    min_size=1,
    max_size=14,
).map(lambda found: [msgspec.structs.replace(work, work_id=f"w{at}") for at, work in enumerate(found)])
behaviours = st.builds(
    Behaviour,
    checkpoint_us=st.sampled_from((10 * MINUTE, HOUR_US)),
    write_us=st.sampled_from((0, MINUTE)),
    grace_us=st.sampled_from((0, MINUTE)),
    node_mtbf_us=st.sampled_from((None, 100 * HOUR_US)),
    offers=st.sampled_from(((), SPOT_COMES_AND_GOES)),
    notice_us=st.sampled_from((0, 2 * MINUTE)),
)


class Watched(World):
    """Adds up, by itself, for how long each job has computed and what of that it has lost."""

    def run(self, **how):
        super().run(**how)
        for task in self.tasks:
            if task.ended_us is not None and not task.refused:
                assert task.run is None
                assert task.left_us == 0
        assert not any(self.floor.on[node_id] for node_id in self.floor.on) or self.left


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(works=works, behaviour=behaviours)
def test_every_job_that_fits_ends_and_has_computed_what_it_had_to(policy, works, behaviour):
    """Device-time in use is what was useful, what was lost and what went into restores: nothing else, and nothing twice."""
    world = Watched(works, CLUSTER, POLICIES[policy](), behaviour=behaviour)
    world.run()
    tasks = [task for task in world.tasks if not task.refused]
    assert all(task.ended_us is not None for task in tasks), "somebody never ended"
    useful = sum(task.work.duration_us * task.work.devices for task in tasks)
    lost = sum(task.lost_us + task.restored_us for task in tasks)
    assert world.busy.total_us == useful + lost
    for task in tasks:
        assert task.ended_us >= task.work.submit_us + task.waited_us + task.work.duration_us


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=10, deadline=None)
@given(works=works, behaviour=behaviours)
def test_the_same_input_gives_the_same_run(policy, works, behaviour):
    def play():
        world = World(works, CLUSTER, POLICIES[policy](), behaviour=behaviour)
        world.run()
        return measure(world, seed=1), [(task.first_us, task.ended_us, task.lost_us) for task in world.tasks]

    assert play() == play()


def test_a_device_is_never_given_twice():
    floor = Floor(Cluster(nodes=(Nodes(count=1, devices=4),)))
    floor.take("a", (("spot-0-0", 3),))
    with pytest.raises(AssertionError, match="has not"):
        floor.take("b", (("spot-0-0", 2),))
    floor.give("a", (("spot-0-0", 3),))
    assert floor.free == 4


def test_a_gang_that_one_node_is_large_enough_for_is_on_one_node():
    floor = Floor(Cluster(nodes=(Nodes(count=2, devices=8),)))
    floor.take("a", (("spot-0-0", 6), ("spot-0-1", 6)))
    assert floor.find(Work(work_id="b", submit_us=0, duration_us=1, devices=4)) is None
    assert floor.find(Work(work_id="b", submit_us=0, duration_us=1, devices=2)) == (("spot-0-0", 2),)


def one_job(policy, **how):
    works = [
        Work(work_id="spot", submit_us=0, duration_us=10 * HOUR_US, devices=4),
        Work(work_id="own", submit_us=90 * MINUTE, duration_us=HOUR_US, devices=4, service="inference"),
    ]
    world = World(
        works, Cluster(nodes=(Nodes(count=1, devices=4, pool="reserved"),)), policy, behaviour=Behaviour(**how)
    )
    world.run()
    return world.by_id["spot"], world.by_id["own"]


@pytest.mark.parametrize("policy", ["fabric", "kueue", "youngest-first", "least-loss"])
def test_who_is_sent_away_loses_what_it_has_not_saved(policy):
    """Saved every hour and sent away after an hour and a half: half an hour is lost, on four devices."""
    lent, own = one_job(POLICIES[policy](), write_us=0)
    assert own.waited_us == 0
    assert (lent.evictions, lent.restores, lent.lost_us) == (1, 1, 4 * 30 * MINUTE)
    assert lent.ended_us == 11 * HOUR_US + 30 * MINUTE + 40_000_000
    assert lent.restored_us == 4 * 40_000_000


@pytest.mark.parametrize("policy", ["fabric", "kueue"])
def test_who_has_time_to_save_loses_nothing(policy):
    """What it computes while it saves isn't in the save: that is all that is lost."""
    lent, own = one_job(POLICIES[policy](), write_us=20_000_000, grace_us=30_000_000)
    assert own.waited_us == 20_000_000
    assert lent.lost_us == 4 * 20_000_000


def test_users_are_in_tiers_by_their_shares_and_a_seed_draws_the_same_again():
    trace = [Work(work_id=f"w{at}", submit_us=at, duration_us=1, devices=1) for at in range(1000)]
    found = with_tiers(trace, (60, 30, 10), seed=1, users=50)
    tier_of = {work.user: work.tier for work in found}
    assert [list(tier_of.values()).count(tier) for tier in range(3)] == [5, 15, 30]
    assert all(tier_of[work.user] == work.tier for work in found)
    assert found == with_tiers(trace, (60, 30, 10), seed=1, users=50)
    assert found != with_tiers(trace, (60, 30, 10), seed=2, users=50)


def test_arrivals_are_stretched_to_the_load_that_is_wanted():
    trace = [Work(work_id=f"w{at}", submit_us=at * MINUTE, duration_us=MINUTE, devices=1) for at in range(100)]
    assert abs(load(stretched(trace, 0.25, devices=8), 8) - 0.25) < 0.001


def test_rho_is_how_much_longer_than_with_its_part_of_the_cluster():
    """Two jobs of four devices share four: each would have half, and so take twice as long. The second waited for the first."""
    trace = [Work(work_id=name, submit_us=0, duration_us=HOUR_US, devices=4) for name in ("a", "b")]
    world = World(trace, Cluster(nodes=(Nodes(count=1, devices=4),)), PEERS["fifo"]())
    world.run()
    first, second = rhos_of(world.tasks, devices=4)
    assert first == pytest.approx(0.5)
    assert second == pytest.approx(2 / 1.5)


def test_what_was_sent_away_at_its_end_with_all_of_it_saved_has_nothing_left_to_compute():
    """Its node goes at the very moment at which it would have ended, and at which its last save is durable."""
    work = Work(work_id="a", submit_us=0, duration_us=100 * MINUTE, devices=1)
    how = Behaviour(checkpoint_us=10 * MINUTE, write_us=0, offers=((0, 1), (100 * MINUTE, 0), (200 * MINUTE, 1)))
    world = World([work], Cluster(nodes=(Nodes(count=1, devices=4),)), PEERS["fifo"](), behaviour=how)
    world.run()
    assert (world.tasks[0].lost_us, world.tasks[0].left_us) == (0, 0)
    assert world.busy.total_us == work.duration_us + world.tasks[0].restored_us


def test_a_job_that_waits_for_the_second_time_is_backfilled_once():
    """Lost with its node it is in its lane twice for a while: only one of the two is a job."""
    trace = [
        Work(work_id="long", submit_us=0, duration_us=10 * HOUR_US, devices=4),
        Work(work_id="big", submit_us=1, duration_us=HOUR_US, devices=8),
        Work(work_id="small", submit_us=2, duration_us=3 * HOUR_US, devices=1),
    ]
    how = Behaviour(offers=((0, 2), (30 * MINUTE, 1), (40 * MINUTE, 2)))
    world = World(trace, Cluster(nodes=(Nodes(count=2, devices=4),)), PEERS["easy"](), behaviour=how)
    world.run()
    assert all(task.ended_us is not None for task in world.tasks)
