"""Who gives way, for whom, and who gets what they leave."""

import random

import msgspec
import pytest

from fabric.placement import Evict, PlacementState, Planner, Request
from fabric.placement.fitting import Shape
from fabric.placement.state import Node, NodeState, Running
from fabric.placement.victims import Selection, losses

MINUTE = 60_000_000
HOUR = 60 * MINUTE


def test_inference_takes_back_what_was_lent_at_once(story):
    at = story("r0 H100 8 reserved")
    at.submit("borrows", 6)
    assert at.submit("serves", 4, service="inference") == ["borrows>serves"]
    assert at.plan() == []
    assert at.release("borrows") == ["serves@r0:4"]


def test_what_an_eviction_frees_goes_to_whom_it_was_made_for(story):
    at = story("r0 H100 8 reserved")
    at.submit("borrows", 8)
    assert at.submit("serves", 6, service="inference") == ["borrows>serves"]
    assert at.submit("greedy", 8) == []
    assert at.submit("small", 2) == []
    assert at.release("borrows") == ["serves@r0:6", "small@r0:2"]


def test_nothing_is_lent_while_inference_waits(story):
    at = story("r0 H100 8 reserved")
    at.submit("first", 6, service="inference")
    assert at.submit("second", 4, service="inference") == []
    assert at.submit("borrows", 2) == []
    at.planner.withdraw("second")
    assert at.plan() == ["borrows@r0:2"]


def test_a_better_class_evicts_a_worse_one_after_its_minimum_run_time(story):
    at = story("h0 H100 8 spot")
    at.submit("starter", 8, tier=2)
    at.planner.note_started("starter", now_us=at.now)
    at.wait(9 * MINUTE)
    assert at.submit("professional", 8, tier=1) == []
    due = at.planner.next_due_us()
    assert due == at.now + MINUTE
    assert at.wait(MINUTE) == ["starter>professional"]
    assert at.release("starter") == ["professional@h0:8"]
    at.queue("starter", 8, tier=2)
    assert at.wait(HOUR) == [], "a worse class never takes it back"


@pytest.mark.parametrize("tier", [1, 2])
def test_equals_and_betters_are_never_evicted(story, tier):
    at = story("h0 H100 8 spot")
    at.submit("runs", 8, tier=1)
    at.now += HOUR
    assert at.submit("asks", 8, tier=tier) == []


def test_who_was_evicted_three_times_in_a_day_gives_way_only_where_nobody_else_would_do(story):
    at = story("r0 H100 8 reserved", "r1 H100 8 reserved")
    at.submit("fills", 8, service="inference")
    for number in range(3):
        assert at.submit("often", 8) == ["often@r1:8"]
        assert at.submit(f"serves{number}", 8, service="inference") == [f"often>serves{number}"]
        assert at.release("often") == [f"serves{number}@r1:8"]
        assert at.release(f"serves{number}") == []
    at.release("fills")
    assert at.submit("often", 8) == ["often@r0:8"]
    assert at.submit("dear", 8) == ["dear@r1:8"]
    at.now += HOUR
    at.planner.note_checkpoint("often", now_us=at.now, write_us=1, restore_us=0)
    assert at.submit("serves", 8, service="inference") == ["dear>serves"]
    assert at.submit("serves too", 8, service="inference") == ["often>serves too"]


@pytest.mark.parametrize("nodes", [("r0 H100 8 reserved",), ("r0 H100 8 reserved", "h0 H100 4 spot")])
def test_a_job_evicted_three_times_in_a_day_still_runs_where_only_lent_nodes_are_large_enough(story, nodes):
    at = story(*nodes)
    for number in range(4):
        assert at.submit("often", 8) == ["often@r0:8"]
        assert at.submit(f"serves{number}", 8, service="inference") == [f"often>serves{number}"]
        at.release("often")
        at.release(f"serves{number}")
    assert at.submit("often", 8) == ["often@r0:8"]


def test_many_evictions_of_a_lower_class_are_no_wall_to_a_higher_one(story):
    at = story("h0 H100 8 spot")
    for number in range(5):
        assert at.submit("often", 8, tier=2) == ["often@h0:8"]
        at.now += 10 * MINUTE
        assert at.submit(f"p{number}", 8, tier=1) == [f"often>p{number}"]
        at.release("often")
        at.release(f"p{number}")


def test_a_reclaim_loses_the_least_for_each_device_that_it_frees(story):
    """What grows, grows on: a gang that has just saved goes as a whole, rather than one dearer small job after another."""
    at = story("r0 H100 8 reserved", "r1 H100 8 reserved", "r2 H100 8 reserved")
    at.submit("gang", 16, each=8)
    at.submit("one", 8)
    at.now += HOUR
    at.planner.note_checkpoint("gang", now_us=at.now - 3 * MINUTE, write_us=HOUR, restore_us=0)
    at.planner.note_checkpoint("one", now_us=at.now - 5 * MINUTE, write_us=HOUR, restore_us=0)
    assert at.submit("serves", 8, service="inference") == ["gang>serves"]


def test_a_better_class_costs_the_others_the_least_in_all(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot", "h2 H100 8 spot")
    at.submit("gang", 16, each=8)
    at.submit("one", 8)
    at.now += HOUR
    at.planner.note_checkpoint("gang", now_us=at.now - 3 * MINUTE, write_us=HOUR, restore_us=0)
    at.planner.note_checkpoint("one", now_us=at.now - 5 * MINUTE, write_us=HOUR, restore_us=0)
    assert at.submit("professional", 8, tier=1) == ["one>professional"]


def _pool_with(story, **last):
    """Nine jobs that save each hour, and one that says otherwise; all have run for ten hours, and wait for who comes."""
    at = story(*(f"h{number} H100 8 spot" for number in range(10)))
    begun = at.now
    for number in range(10):
        at.submit(f"j{number}", 8, tier=2, grace_us=0)
    for hour in range(1, 10):
        for number in range(1, 10):
            at.planner.note_checkpoint(
                f"j{number}", now_us=begun + hour * HOUR + 6 * number * MINUTE, write_us=MINUTE, restore_us=MINUTE
            )
    at.now = begun + 10 * HOUR
    at.planner.note_checkpoint("j0", **{"now_us": begun + HOUR, "write_us": MINUTE, "restore_us": MINUTE} | last)
    given = []
    for number in range(8):
        given += at.submit(f"p{number}", 8, tier=0)
    return given


def test_saving_once_does_not_make_a_job_the_last_victim_for_ever(story):
    assert "j0>p5" in _pool_with(story)[:6]


def test_a_restore_that_is_said_to_be_dear_counts_as_those_of_the_others(story):
    assert _pool_with(story, now_us=1_010 * HOUR, restore_us=100 * HOUR)[:2] == ["j0>p0", "j9>p1"]


def test_a_claim_that_is_withdrawn_leaves_its_devices_to_everybody(story):
    at = story("h0 H100 8 spot")
    at.submit("starter", 8)
    at.now += HOUR
    assert at.submit("professional", 8, tier=1) == ["starter>professional"]
    at.planner.withdraw("professional")
    at.submit("next", 8)
    assert at.release("starter") == ["next@h0:8"]


def test_a_claim_on_a_node_that_is_lost_stands_in_line_again(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot")
    at.submit("a", 8)
    at.submit("b", 8)
    at.now += HOUR
    assert at.submit("professional", 8, tier=1) == ["a>professional"]
    assert at.planner.remove_node("h0") == ("a",)
    assert at.plan() == ["b>professional"]
    assert at.release("b") == ["professional@h1:8"]


def test_two_claims_on_one_node_do_not_share_a_device(story):
    at = story("h0 H100 8 spot")
    at.submit("starter", 8)
    at.now += HOUR
    assert at.submit("p1", 4, tier=1) == ["starter>p1"]
    assert at.submit("p2", 4, tier=1) == [], "enough is leaving already: nobody else is asked"
    assert at.submit("p3", 1, tier=1) == []
    assert at.release("starter") == ["p1@h0:4", "p2@h0:4"]


def test_the_job_that_saved_last_gives_way_before_the_one_with_much_to_lose(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot")
    at.submit("long", 8)
    at.submit("saved", 8)
    at.now += 5 * HOUR
    at.planner.note_checkpoint("long", now_us=at.now - 4 * HOUR, write_us=HOUR, restore_us=MINUTE)
    at.planner.note_checkpoint("saved", now_us=at.now - MINUTE, write_us=HOUR, restore_us=MINUTE)
    assert at.submit("professional", 8, tier=1) == ["saved>professional"]


def test_a_gang_counts_once_and_frees_all_its_nodes(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot", "h2 H100 8 spot", "h3 H100 8 spot")
    at.submit("gang", 16, each=8)
    at.submit("x", 8)
    at.submit("y", 8)
    at.now += HOUR
    for job_id, lost in (("gang", 4), ("x", 3), ("y", 30)):
        at.planner.note_checkpoint(job_id, now_us=at.now - lost * MINUTE, write_us=HOUR, restore_us=0)
    assert at.submit("professional", 16, tier=1, each=8) == ["gang>professional"]


def _running(job_id, shares, **facts):
    request = Request(job_id=job_id, account_id="a", devices=sum(d for _, d in shares), submitted_at_us=0)
    return Running(request, 0, 3, "spot/H100", shares, preemptible=True, placed_at_us=0, **facts)


@pytest.mark.parametrize(
    ("facts", "per_device_us"),
    [
        ({"saved_at_us": 90, "write_us": 10**9, "restore_us": 5}, 15),
        ({"saved_at_us": 10, "write_us": 20, "restore_us": 5}, 25),
        ({"saved_at_us": 90, "write_us": 20, "restore_us": 5}, 15),
        ({"started_at_us": 40}, 37),
        ({"started_at_us": 90}, 17),
    ],
)
def test_loss_is_what_must_be_done_again(facts, per_device_us):
    others = [_running(f"o{age}", (("n", 1),), saved_at_us=100 - age, restore_us=7) for age in (10, 30, 99)]
    job = _running("j", (("n0", 2), ("n1", 2)), **facts)
    assert losses([job], reporters=others, now_us=100) == {"j": 4 * per_device_us}


def test_without_any_report_a_job_counts_all_that_it_ran():
    assert losses([_running("j", (("n0", 3),), started_at_us=40)], reporters=[], now_us=100) == {"j": 180}


def test_who_turns_out_not_to_be_needed_stays():
    jobs = {job.request.job_id: job for job in (_running("s", (("n0", 2),)), _running("big", (("n0", 6),)))}
    node = NodeState(Node("n0", "H100", 8, "spot"), slot=0, free=0, shares={"s": 2, "big": 6})
    chosen = Selection({0: 0}, {0: node}, {"s": 1, "big": 60}).choose(Shape(6, 1, 0), jobs)
    assert chosen == (["big"], (("n0", 6),))


def _crowd(seed):
    """Six nodes full of gangs of one to sixteen devices, with what each would lose."""
    rng, jobs = random.Random(seed), {}
    nodes = {slot: NodeState(Node(f"n{slot}", "H100", 8, "spot"), slot=slot, free=8) for slot in range(6)}
    while len(jobs) < 11:
        devices = rng.choice((1, 2, 4, 8, 16))
        room = [node for node in nodes.values() if node.free >= min(devices, 8)]
        if len(room) < max(devices // 8, 1):
            break
        job_id, shares = f"j{len(jobs)}", []
        for node in rng.sample(room, max(devices // 8, 1)):
            node.free -= min(devices, 8)
            node.shares[job_id] = min(devices, 8)
            shares.append((node.node.node_id, min(devices, 8)))
        jobs[job_id] = _running(job_id, tuple(shares))
    lost = {job_id: sum(d for _, d in job.shares) * rng.randrange(1, 3600) for job_id, job in jobs.items()}
    return nodes, jobs, lost


def _least(nodes, jobs, lost, need, each):
    """By trying everything."""
    best = None
    for mask in range(1 << len(jobs)):
        gone = [job_id for at, job_id in enumerate(jobs) if mask >> at & 1]
        ready = sum(node.free + sum(node.shares.get(job_id, 0) for job_id in gone) >= each for node in nodes.values())
        loss = sum(lost[job_id] for job_id in gone)
        if ready >= need and (best is None or loss < best):
            best = loss
    return best


@pytest.mark.parametrize(("need", "each"), [(1, 8), (2, 8), (3, 8), (2, 4)])
def test_what_is_lost_is_within_two_percent_of_the_least(need, each):
    ours = least = 0
    for seed in range(12):
        nodes, jobs, lost = _crowd(seed)
        rooms = {slot: node.free for slot, node in nodes.items()}
        victims, shares = Selection(rooms, nodes, lost).choose(Shape(need * each, need, each), jobs)
        assert len(shares) == need
        ours += sum(lost[job_id] for job_id in victims)
        least += _least(nodes, jobs, lost, need, each)
    assert ours * 100 <= least * 102


def test_a_planner_rebuilt_in_the_middle_decides_the_same(story):
    at, again = story("r0 H100 8 reserved", "h0 H100 8 spot"), story("r0 H100 8 reserved", "h0 H100 8 spot")
    for one in (at, again):
        one.submit("a", 8)
        one.submit("b", 8)
        one.now += HOUR
        assert one.submit("serves", 4, service="inference") == ["b>serves"]
        one.submit("waits", 16)
        one.submit("professional", 8, tier=1)
    again.planner = Planner(msgspec.msgpack.decode(msgspec.msgpack.encode(at.planner._state), type=PlacementState))
    for one in (at, again):
        assert one.release("a") == ["professional@h0:8"]
        assert one.release("b") == ["serves@r0:4"]


def test_an_eviction_names_its_reason(story):
    at = story("r0 H100 8 reserved")
    at.submit("borrows", 8)
    at.queue("serves", 8, service="inference")
    assert at.planner.plan(now_us=at.now) == (Evict("borrows", "serves", "reclaimed"),)


@pytest.mark.parametrize("each", [None, 1])
def test_a_model_waits_for_its_owners_own_cell_that_is_being_left(story, each):
    at = story("e0 H100 1 dedicated acme", "r0 H100 8 reserved")
    assert at.submit("trains", 1, account="acme", tier=0) == ["trains@e0:1"]
    at.planner.note_leaving("trains")
    assert at.submit("serves", 1, account="acme", tier=0, each=each, service="inference", preemptible=False) == []
    assert at.submit("another", 1, account="acme", tier=0, service="inference") == ["another@r0:1"]
    assert at.release("trains") == ["serves@e0:1"]


def test_a_model_does_not_wait_for_a_cell_that_somebody_stays_on(story):
    at = story("e0 H100 2 dedicated acme", "r0 H100 8 reserved")
    at.submit("stays", 1, account="acme", tier=0)
    at.submit("leaves", 1, account="acme", tier=0)
    at.planner.note_leaving("leaves")
    assert at.submit("serves", 2, account="acme", tier=0, service="inference") == ["serves@r0:2"]


def test_a_model_whose_cell_went_down_while_it_waited_goes_elsewhere(story):
    at = story("e0 H100 1 dedicated acme", "r0 H100 8 reserved")
    at.submit("trains", 1, account="acme", tier=0)
    at.planner.note_leaving("trains")
    assert at.submit("serves", 1, account="acme", tier=0, service="inference") == []
    at.planner.remove_node("e0")
    assert at.plan() == ["serves@r0:1"]


def test_one_plan_looks_for_victims_a_bounded_number_of_times_and_everybody_has_his_turn_soon(story):
    at = story(*(f"n{number} H100 64 spot" for number in range(60)))
    for number in range(60):
        for share in range(4):
            at.submit(f"low{number}.{share}", 16, tier=2)
    at.now += HOUR
    for number in range(60):
        at.queue(f"high{number}", number + 1, tier=1, account="acme")
    counts, search = [], 128 + 60 + 512 + 32 * 4
    at.plan()
    while len(at.planner._state.claims) < 60:
        assert at.planner._preemption.spent < 8_192 + search
        assert at.planner.next_due_us() - at.now <= 100_000
        at.now = at.planner.next_due_us()
        counts.append(len(at.planner._state.claims))
        at.plan()
        assert len(at.planner._state.claims) > counts[-1]
    assert counts, "all had their turn in one plan"


def test_lanes_whose_time_has_come_at_once_are_looked_at_some_at_a_time(story, monkeypatch):
    """Nobody gives way: each plan looks at so many of those that look for victims again, and the next one soon after at others."""
    monkeypatch.setattr("fabric.placement.decisions.RETRIES_MAX", 4)
    at = story("n H100 64 spot")
    at.submit("stays", 64, tier=2, preemptible=False)
    for devices in range(1, 11):
        at.queue(f"waits{devices}", devices, tier=1, account="acme")
    at.plan()
    at.now += MINUTE
    looked = []
    real = at.planner._preemption.make_room
    monkeypatch.setattr(
        at.planner._preemption, "make_room", lambda queued, *a, **k: looked.append(queued) or real(queued, *a, **k)
    )
    counts = []
    for _ in range(4):
        looked.clear()
        at.plan()
        counts.append(len(looked))
        at.now = at.planner.next_due_us()
    assert counts == [4, 4, 2, 4]


def test_enterprise_waits_for_no_other_plan(story):
    at = story(*(f"n{number} H100 64 spot" for number in range(60)))
    for number in range(60):
        at.submit(f"low{number}", 64, tier=2)
    at.now += HOUR
    for number in range(60):
        at.queue(f"high{number}", number + 1, tier=0, account="acme")
    at.plan()
    assert len(at.planner._state.claims) == 60
