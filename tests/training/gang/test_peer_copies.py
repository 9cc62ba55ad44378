"""Copies of parts in peers' memory: a rank or a node that is killed costs no step that was over, and nothing is ever mixed."""

import random
import re
import signal
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import InvalidRequest
from tests.training.gang import crew
from tests.training.gang.crew import Crew
from tests.training.gang.test_losses import steps_done, wait_for
from tests.training.gang.test_parts import ended, kept
from tests.training.gang.test_worlds import lines
from tests.training.gang.work import EVICTED, Order
from training.gang import survivors
from training.gang.copy_places import Asked, Machine, Room, keepers
from training.gang.survivors import Held
from training.state.cadence import copy_interval

SEED = 1_811
WORLDS = {"fsdp": 2, "hsdp": 4, "tp": 2, "both": 4}


def begun(folder):
    """How many steps were over when the newest one began, on whichever rank."""
    return max((line["began"] for line in lines(folder) if "began" in line), default=0)


def steps_told(order, *, since=0.0):
    """How many steps each rank that was left said were lost, from then on."""
    said = [line["said"] for line in lines(order.folder) if line.get("told_at", 0.0) > since]
    return [int(found[1]) for line in said if (found := re.search(r"(\d+) steps? lost", line))]


def ordered(folder, **options):
    folder.mkdir()
    given_ = {"steps": 10**6, "pause_s": 0.02, "copies": "each-step", "timeout_s": 60.0} | options
    return Order(folder=folder, **given_)


def started(order, *, world, steps=3):
    """A gang that is some steps further than what was there."""
    before, gang = begun(order.folder), Crew(order, world=world, doing="parted_script")
    wait_for(lambda: begun(order.folder) >= before + steps)
    return gang


def lose(order, gang, victims, *, number=signal.SIGKILL):
    """Kill ranks; how those that are left have ended, and what is kept."""
    for victim in victims:
        gang.kill(victim, number)
    ends = gang.end()
    return [code for rank, code in ends.items() if rank not in victims], kept(order.folder)


def check_ends_as_if_nothing_had_been(order, *, world):
    """Two steps more; weights, moments, random numbers and buffers must be those of a run nobody disturbed."""
    last = replace(order, steps=kept(order.folder) + 2, pause_s=0.0, dies_copying=None, dies_saving=(), damages=None)
    assert crew.run(last, world=world, doing="parted_script") == [0] * world
    whole = replace(last, folder=order.folder.with_name("whole"), copies=None)
    whole.folder.mkdir()
    assert crew.run(whole, world=world, doing="parted_script") == [0] * world
    ends = [line for line in lines(order.folder) if line.get("at_step") == last.steps]
    assert sorted((line["digest"], line["drawn"], line["seen"]) for line in ends) == ended(whole)


def kill_at_random(tmp_path, *, world, kills, seed, **options):
    dice = random.Random(seed)
    order, told = ordered(tmp_path / "killed", **options), []
    for number in range(kills):
        gang = started(order, world=world, steps=dice.randint(1, 3))
        time.sleep(dice.uniform(0.0, 0.05 * world))
        since = time.time()
        codes, newest = lose(order, gang, [dice.randrange(world)])
        assert set(codes) == {EVICTED}, f"kill {number}, seed {seed}"
        assert newest >= begun(order.folder), f"kill {number}, seed {seed}: a step that was over is lost"
        counts = steps_told(order, since=since)
        assert counts or order.snapshot_every_s, "nobody told; who has just saved has nothing to tell"
        assert {newest + count for count in counts} <= {begun(order.folder), begun(order.folder) + 1}, (
            "told, and not so"
        )
        told.append(max(counts, default=0))
    print(f"\n{kills} kills in a gang of {world}, seed {seed}: {sum(told)} steps lost, whose copies were under way")
    check_ends_as_if_nothing_had_been(order, world=world)


@pytest.mark.parametrize(("world", "snapshot_every_s"), [(2, None), (4, 0.05)], ids=["two", "four-saving"])
def test_ranks_killed_at_random_instants_cost_no_step_that_was_over(tmp_path, world, snapshot_every_s):
    """Amid a copy, amid a snapshot, or in between: a few here, fifty in the long tests."""
    kill_at_random(tmp_path, world=world, kills=4, seed=SEED + world, snapshot_every_s=snapshot_every_s)


@pytest.mark.soak
@pytest.mark.parametrize("world", [2, 4])
def test_fifty_ranks_killed_at_random_instants_cost_no_step_that_was_over(tmp_path, world):
    kill_at_random(tmp_path, world=world, kills=50, seed=77 + world)


@pytest.mark.parametrize("way", ["hsdp", "tp"])
def test_a_killed_rank_costs_no_step_however_the_model_is_cut_up(tmp_path, way):
    kill_at_random(tmp_path, world=WORLDS[way], kills=1, seed=5, sharding=way)


def test_without_copies_a_killed_rank_costs_what_no_snapshot_has(tmp_path):
    order = ordered(tmp_path / "killed", copies=None)
    _, newest = lose(order, started(order, world=2), [1])
    assert newest == 0


@pytest.mark.parametrize("passes", [1, 6, 8, 9, 11])
def test_a_rank_that_dies_amid_a_copy_leaves_the_copy_before(tmp_path, passes):
    """A copy is passed in four pieces and a seal."""
    order = ordered(tmp_path / "killed", dies_copying=(1, passes))
    ends = crew.run(order, world=2, doing="parted_script")
    assert ends == [EVICTED, -9]
    assert kept(order.folder) == (passes - 1) // 5 == begun(order.folder)
    check_ends_as_if_nothing_had_been(order, world=2)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_while_all_save_costs_no_step(tmp_path, victim):
    order = ordered(tmp_path / "killed", dies_saving=(victim,))
    gang = started(order, world=2)
    gang.kill(1 - victim, signal.SIGTERM)
    assert gang.end() == {victim: -9, 1 - victim: EVICTED}
    assert kept(order.folder) == steps_done(order.folder)
    check_ends_as_if_nothing_had_been(order, world=2)


@pytest.mark.parametrize("copies", [None, "each-step"])
def test_a_rank_that_dies_as_all_compare_what_they_hold_ends_the_attempt_and_fails_nobody(tmp_path, copies):
    order = ordered(tmp_path / "killed", copies=copies, dies_comparing=(1,))
    assert crew.run(order, world=2, doing="parted_script") == [EVICTED, -9]
    check_ends_as_if_nothing_had_been(replace(order, dies_comparing=()), world=2)


def test_a_rank_that_dies_as_the_run_is_saved_at_its_end_costs_no_step(tmp_path):
    order = ordered(tmp_path / "killed", steps=5, dies_saving=(1,))
    assert crew.run(order, world=2, doing="parted_script") == [EVICTED, -9]
    assert kept(order.folder) == 5
    check_ends_as_if_nothing_had_been(order, world=2)


def test_a_rank_that_dies_while_it_recovers_another_is_recovered_too(tmp_path):
    order = ordered(tmp_path / "killed", dies_saving=(0,))
    gang = started(order, world=4)
    gang.kill(2)
    assert gang.end() == {0: -9, 1: EVICTED, 2: -9, 3: EVICTED}
    assert kept(order.folder) >= begun(order.folder)
    check_ends_as_if_nothing_had_been(order, world=4)


def test_a_node_of_two_ranks_is_killed_and_costs_no_step(tmp_path):
    order = ordered(tmp_path / "killed", nodes=2)
    codes, newest = lose(order, started(order, world=4), [2, 3])
    assert codes == [EVICTED, EVICTED]
    assert newest >= begun(order.folder)
    check_ends_as_if_nothing_had_been(order, world=4)


def test_a_rank_lost_together_with_its_copy_costs_what_no_snapshot_has(tmp_path):
    """And that is said, by those that are left."""
    order = ordered(tmp_path / "killed")
    gang = started(order, world=4)
    gang.kill(0, signal.SIGTERM)
    assert set(gang.end().values()) == {EVICTED}
    before = kept(order.folder)
    codes, newest = lose(order, started(order, world=4, steps=4), [1, 2])
    assert codes == [EVICTED, EVICTED]
    assert newest == before
    said = {
        line["said"].removeprefix("a peer is lost: ")
        for line in lines(order.folder)
        if "are gone" in line.get("said", "")
    }
    assert said == {
        f"ranks 1, 2 of 4 are gone, and nobody that is left has all parts of a step in memory: step {before} is kept"
    }
    check_ends_as_if_nothing_had_been(order, world=4)


def test_a_copy_that_is_damaged_in_memory_is_never_made_durable(tmp_path):
    order = ordered(tmp_path / "killed", damages=0)
    codes, newest = lose(order, started(order, world=2), [1])
    assert codes == [EVICTED]
    assert begun(order.folder) - 1 <= newest <= begun(order.folder)
    check_ends_as_if_nothing_had_been(order, world=2)


def test_a_rank_that_hangs_is_given_up_and_costs_no_step(tmp_path):
    order = ordered(tmp_path / "hung", silent_s=2.0)
    gang = started(order, world=2)
    gang.kill(1, signal.SIGSTOP)
    assert gang.end(but=[1])[0] == EVICTED
    assert kept(order.folder) >= begun(order.folder)
    check_ends_as_if_nothing_had_been(order, world=2)


def test_copies_as_often_as_they_are_cheap_cost_what_is_said(tmp_path):
    order = ordered(tmp_path / "killed", copies="1")
    gang = started(order, world=2, steps=12)
    codes, newest = lose(order, gang, [1])
    assert codes == [EVICTED]
    assert newest > 0
    (lost,) = steps_told(order)[:1]
    assert newest + lost in {begun(order.folder), begun(order.folder) + 1}
    check_ends_as_if_nothing_had_been(order, world=2)


def test_a_script_that_fails_by_itself_fails_as_it_does_without_copies(tmp_path):
    order = ordered(tmp_path / "failed", fails_at=3)
    assert set(crew.run(order, world=2, doing="parted_script")) == {1}


def test_a_run_with_copies_ends_with_the_bits_of_one_without(tmp_path):
    orders = [ordered(tmp_path / name, steps=12, pause_s=0.0, copies=name) for name in ("each-step", "1", "0")]
    for order in orders:
        assert crew.run(order, world=2, doing="parted_script") == [0, 0]
    assert ended(orders[0]) == ended(orders[1]) == ended(orders[2])


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("aa", [1, 0]),
        ("ab", [1, 0]),
        ("abc", [1, 2, 0]),
        ("aabb", [2, 3, 0, 1]),
        ("abab", [1, 0, 3, 2]),
        ("aabbc", [2, 3, 4, 0, 1]),
    ],
)
def test_a_copy_is_kept_on_another_node_where_there_is_one(nodes, found):
    assert keepers(nodes) == found


@given(st.lists(st.integers(0, 4), min_size=2, max_size=12))
def test_each_rank_keeps_one_copy_and_no_node_its_own_if_none_is_most_of_all(nodes):
    found = keepers(nodes)
    assert sorted(found) == list(range(len(nodes)))
    assert all(rank != keeper for rank, keeper in enumerate(found))
    if max(map(nodes.count, nodes)) * 2 <= len(nodes):
        assert all(nodes[rank] != nodes[keeper] for rank, keeper in enumerate(found))


@st.composite
def offers(draw):
    """What ranks hold of some steps, each part by its owner and by one other."""
    world = draw(st.integers(2, 4))
    left = draw(st.sets(st.integers(0, world - 1), min_size=1))
    held = {
        rank: tuple(
            Held(owner, step, f"{owner}/{step}")
            for step in draw(st.sets(st.integers(1, 3)))
            for owner in draw(st.sets(st.sampled_from([rank, (rank - 1) % world])))
        )
        for rank in left
    }
    every = [(rank, each) for rank, theirs in held.items() for each in theirs]
    return world, held, set(draw(st.lists(st.sampled_from(every)))) if every else set()


@given(offers())
def test_what_is_written_is_the_newest_step_of_which_all_parts_are_there(asked):
    world, held, damaged = asked
    whole = [
        step
        for step in (1, 2, 3)
        if {
            each.owner
            for rank, theirs in held.items()
            for each in theirs
            if each.step == step and (rank, each) not in damaged
        }
        == set(range(world))
    ]
    writers = survivors._writers(held, world, damaged=damaged)
    if not whole:
        assert writers is None
        return
    written = [(rank, each) for rank, theirs in writers.items() for each in theirs]
    assert {each.step for _, each in written} == {max(whole)}
    assert sorted(each.owner for _, each in written) == list(range(world))
    assert all(each in held[rank] and (rank, each) not in damaged for rank, each in written)


@pytest.mark.parametrize(
    ("free_mb", "is_refused"), [((100, 100), True), ((700, 700), False), ((400, 700), True)], ids=str
)
def test_copies_that_a_machine_has_no_memory_for_are_refused_with_the_number(free_mb, is_refused):
    """Of 100 MB a rank, on two machines: four times a rank's part at each, and some more for growth."""
    room = Room([Machine("a", "1"), Machine("b", "2")], [1, 0])
    refusal = room.widen([100 << 20, 100 << 20], [mb << 20 for mb in free_mb])
    assert ("use more nodes" in refusal) == is_refused
    assert room.bytes[0] == room.bytes[1] == (0 if is_refused else (100 << 20) * 9 // 8 + (1 << 20))


def test_room_that_is_there_already_is_not_asked_for_again():
    room = Room([Machine("a", "1")] * 2, [1, 0])
    assert room.widen([1000, 1000], [1 << 30, 1 << 30]) == ""
    assert room.widen([1000, 2000], [0, 0]) == ""


@pytest.mark.parametrize(
    ("copy_s", "sent_s", "step_s", "steps"),
    [(0.0, 0.0, 1.0, 1), (0.05, 0.2, 1.0, 1), (0.1, 0.2, 1.0, 2), (0.01, 4.5, 1.0, 5), (1.0, 1.0, 0.0, 1)],
)
def test_copies_cost_a_twentieth_of_the_time_at_most_and_never_wait_for_each_other(copy_s, sent_s, step_s, steps):
    assert copy_interval(copy_s=copy_s, sent_s=sent_s, step_s=step_s) == steps


def test_what_is_asked_for_is_one_of_three_words(monkeypatch):
    assert Asked.of("1") == (True, False)
    assert Asked.of("each-step") == (True, True)
    assert Asked.of(None) == (False, False)
    monkeypatch.setenv("FABRIC_PEER_COPIES", "often")
    with pytest.raises(InvalidRequest, match="each-step") as refused:
        Asked.of(None)
    assert refused.value.code == "peer_copies_invalid"
