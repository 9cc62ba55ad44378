"""Tiers and gangs together: who waited too long is reserved for, and no reservation is a wall to a better class."""

from fabric.placement.planner import Planner

MINUTE = 60_000_000
HOUR = 60 * MINUTE


def test_no_reservation_of_a_lower_class_keeps_a_better_one_from_its_own(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot")
    at.submit("runs0", 8, tier=0, preemptible=False)
    at.submit("runs1", 8, tier=0, preemptible=False)
    at.submit("starter", 16, each=8, tier=2)
    at.wait(HOUR)
    assert list(at.planner._state.pins) == ["starter"]
    at.submit("professional", 8, tier=1, preemptible=False)
    at.wait(10 * MINUTE)
    assert list(at.planner._state.pins) == ["starter", "professional"]
    assert at.release("runs0") == ["professional@h0:8"]


def test_as_many_are_reserved_for_as_the_part_of_the_devices_that_may_be_has_room_for(story):
    for percent, pinned in ((0, ["a"]), (49, ["a"]), (50, ["a", "b"]), (75, ["a", "b", "c"])):
        at = story("h0 H100 8 spot", reserved_percent=percent)
        at.submit("runs", 8, preemptible=False)
        for name in ("a", "b", "c", "d"):
            at.submit(name, 2)
        at.wait(HOUR)
        assert list(at.planner._state.pins) == pinned


def test_who_was_pinned_first_takes_from_who_was_pinned_later_and_never_the_other_way_round(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot", "h2 H100 8 spot", reserved_percent=100)
    for number in range(3):
        at.submit(f"runs{number}", 8, preemptible=False)
    at.submit("large", 16, each=8)
    at.now += MINUTE
    at.submit("small", 8)
    at.wait(HOUR - MINUTE)
    at.wait(MINUTE)
    assert list(at.planner._state.pins) == ["large", "small"]
    assert at.release("runs0") == ["small@h0:8"], "what the larger can't use yet is used"
    at.wait(HOUR)
    assert at.release("runs1") == ["small>large"]
    assert at.release("small") == ["large@h0:8+h1:8"]
    at.queue("small", 8)
    assert at.wait(5 * HOUR) == []


def test_within_a_class_who_came_first_is_reserved_for_first(story):
    at = story("h0 H100 8 spot")
    at.submit("runs", 8, preemptible=False)
    for name, tier, submitted in (("a", 2, 10), ("b", 2, 30), ("c", 1, 5)):
        at.submit(name, 8, tier=tier, submitted_at_us=at.now - submitted)
    at.wait(HOUR)
    assert list(at.planner._state.pins) == ["c"]
    at.planner.withdraw("c")
    at.plan()
    assert list(at.planner._state.pins) == ["b"]


def test_for_a_cheaper_moment_a_job_waits_a_little_where_others_save(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot")
    at.submit("a", 8, tier=2, grace_us=0)
    at.submit("b", 8, tier=2, grace_us=0)
    at.now += HOUR
    for name, minutes in (("a", 40), ("b", 50)):
        at.planner.note_checkpoint(name, now_us=at.now - minutes * MINUTE, write_us=MINUTE, restore_us=MINUTE)
    assert at.submit("professional", 8, tier=1) == []
    at.now += 10 * MINUTE
    at.planner.note_checkpoint("b", now_us=at.now, write_us=MINUTE, restore_us=MINUTE)
    assert at.plan() == ["b>professional"]
    assert at.submit("enterprise", 8, tier=0) == ["a>enterprise"], "which waits for nobody's checkpoint"


def test_an_elastic_gang_shrinks_for_who_of_its_class_waited_too_long(story):
    at = story("h0 H100 8 spot")
    assert at.submit("elastic", 8, devices_least=1) == ["elastic@h0:8"]
    assert at.submit("waits", 2) == []
    assert at.wait(HOUR) == ["elastic>waits"]
    assert at.release("elastic") == ["waits@h0:2"]
    assert at.submit("elastic", 8, devices_least=1) == ["elastic@h0:6"]
    assert at.submit("large", 7) == []
    assert at.wait(HOUR) == [], "not for one that would leave it less than it needs"


def test_an_elastic_gang_leaves_room_for_who_waits_beside_it(story):
    at = story("h0 H100 8 spot")
    at.submit("runs", 8)
    at.queue("elastic", 8, devices_least=1)
    at.queue("small", 2)
    at.queue("never", 8)
    assert at.release("runs") == ["elastic@h0:6", "small@h0:2"]


def test_a_planner_made_anew_leaves_alone_who_is_pinned(story):
    """It has nothing to decide that the one it is made from had not: a restored gate would have looked at pins once more."""
    at = story("h0 H100 8 spot")
    at.submit("runs", 8, preemptible=False)
    at.submit("waits", 8)
    at.wait(HOUR)
    assert list(at.planner._state.pins) == ["waits"]
    at.plan()
    assert at.planner.at_rest
    assert Planner(at.planner._state).at_rest
