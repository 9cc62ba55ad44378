"""Who is next when not everybody fits."""

from fabric.placement.decisions import Decisions

MINUTE = 60_000_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
CT = 3_600_000_000


def test_classes_go_before_each_other_and_batch_goes_last(story):
    at = story("h0 H100 1 spot")
    at.submit("runs", preemptible=False)
    at.queue("batch", account="acme", tier=0, service="batch")
    at.queue("starter", tier=2)
    at.queue("professional", tier=1)
    at.queue("enterprise", account="acme", tier=0)
    order = ["enterprise", "professional", "starter", "batch"]
    assert [at.planner.queue_position(job_id) for job_id in order] == [0, 1, 2, 3]
    before = "runs"
    for job_id in order:
        assert at.release(before) == [f"{job_id}@h0:1"]
        before = job_id


def test_the_account_that_used_least_for_its_weight_goes_first(story):
    at = story("h0 H100 1 spot")
    at.submit("runs", account="cusp")
    at.planner.note_usage("heavy", uhs=100 * CT, now_us=at.now)
    at.planner.note_usage("light", uhs=30 * CT, now_us=at.now)
    at.queue("h", account="heavy", weight_ppm=4_000_000)
    at.queue("l", account="light")
    assert at.planner.queue_position("h") == 0
    at.planner.note_usage("heavy", uhs=30 * CT, now_us=at.now)
    assert at.planner.queue_position("h") == 1
    assert at.release("runs") == ["l@h0:1"]


def test_usage_fades_by_half_in_a_week(story):
    at = story("h0 H100 1 spot")
    at.submit("runs", account="cusp")
    at.planner.note_usage("past", uhs=100 * CT, now_us=at.now)
    at.now += 14 * DAY
    at.planner.note_usage("recent", uhs=26 * CT, now_us=at.now)
    at.queue("r", account="recent")
    at.queue("p", account="past")
    assert at.planner.queue_position("p") == 0
    at.now += 200 * DAY
    at.planner.note_usage("new", uhs=CT // 3600, now_us=at.now)
    at.queue("n", account="new")
    assert at.planner.queue_position("p") == 0, "what was used long ago is as good as nothing"


def test_a_burst_of_submissions_cannot_win_before_its_usage_is_known(story):
    at = story("h0 H100 4 spot")
    at.submit("runs", 4, account="cusp")
    for count in range(4):
        at.queue(f"burst{count}", account="burst")
    at.queue("late", account="late")
    assert at.release("runs") == ["burst0@h0:1", "late@h0:1", "burst1@h0:1", "burst2@h0:1"]


def test_small_jobs_pass_a_gang_that_does_not_fit(story):
    at = story("h0 H100 8 spot")
    at.submit("runs", 4)
    assert at.submit("gang", 8) == []
    assert at.submit("small", 4) == ["small@h0:4"]


def test_a_gang_that_was_passed_too_often_gets_its_nodes_from_those_that_passed_it(story):
    at = story("h0 H100 8 spot", bypasses_max=2)
    at.submit("runs", 6, preemptible=False)
    at.submit("gang", 8, account="acme")
    at.submit("one")
    at.submit("two")
    assert list(at.planner._state.pins) == ["gang"]
    assert at.release("one") == []
    assert at.submit("fixed", preemptible=False) == [], "a pinned job's nodes are lent only to who can be evicted"
    assert at.submit("filler") == ["filler@h0:1"]
    assert at.release("runs", "two") == [], "the filler has its minimum run time"
    assert at.planner.next_due_us() is not None
    assert at.wait(10 * MINUTE) == ["filler>gang"]
    assert at.release("filler") == ["gang@h0:8"]
    at.submit("another", 8)
    assert at.wait(DAY) == [], "who was pinned is not evicted again by its equals"
    assert at.submit("professional", tier=1) == ["gang>professional"], "it is no wall to a better class"


def test_a_job_that_waited_too_long_goes_before_better_classes(story):
    at = story("h0 H100 8 spot")
    at.submit("runs", 8, preemptible=False)
    at.submit("starter", 8, tier=2)
    assert at.planner.next_due_us() == at.now + MINUTE
    assert at.wait(HOUR) == []
    at.submit("professional", 8, tier=1)
    assert at.release("runs") == ["starter@h0:8"]


def test_a_pinned_gang_is_served_by_whichever_nodes_come_free(story):
    at = story(*(f"h{number} H100 8 spot" for number in range(4)))
    for number in range(4):
        at.submit(f"runs{number}", 8, preemptible=False)
    at.submit("gang", 16, each=8)
    at.wait(HOUR)
    assert at.planner._state.pins["gang"].nodes == ["h0", "h1"]
    at.release("runs2")
    assert at.planner._state.pins["gang"].nodes == ["h2", "h1"]
    assert at.submit("filler", 8) == ["filler@h2:8"]
    assert at.wait(10 * MINUTE) == []
    assert at.release("runs3") == ["filler>gang"]
    assert at.release("filler") == ["gang@h2:8+h3:8"]


def test_withdrawing_a_job_takes_it_out_of_line(story):
    at = story("h0 H100 1 spot")
    at.submit("runs")
    at.submit("a")
    at.submit("b")
    assert at.planner.withdraw("a")
    assert not at.planner.withdraw("a")
    assert at.planner.queue_position("a") is None
    assert at.release("runs") == ["b@h0:1"]


def test_of_those_that_wait_in_one_lane_one_may_leave_and_the_others_are_not_forgotten(story):
    """Nor is a plan for somebody better the end of the planner."""
    at = story("h0 H100 8 spot")
    at.submit("runs", 8, tier=0)
    for name in ("leaves", "stays"):
        at.submit(name, 4, tier=2)
    at.planner.withdraw("leaves")
    at.now += 2 * MINUTE
    assert at.submit("better", 2, tier=1) == []
    assert at.release("runs") == ["better@h0:2", "stays@h0:4"]


def test_nobody_is_given_a_reservation_because_one_of_the_same_shape_left(story):
    at = story("h0 H100 8 spot", bypasses_max=3)
    for number in range(4):
        at.submit(f"past{number}", 1)
        at.release(f"past{number}")
    at.submit("runs", 6)
    for name in ("leaves", "stays"):
        assert at.submit(name, 8, account="acme") == []
    at.planner.withdraw("leaves")
    assert at.plan() == []
    assert at.planner._state.pins == {}
    assert [at.submit(f"small{number}", 1) for number in range(2)] == [["small0@h0:1"], ["small1@h0:1"]]
    at.release("small0")
    assert at.submit("small2", 1) == ["small2@h0:1"]
    assert list(at.planner._state.pins) == ["stays"]


def test_whoever_joins_a_lane_where_nobody_fits_costs_no_search(story, monkeypatch):
    at = story("n H100 8 spot")
    at.submit("runs", 8)
    at.submit("waits", 8)
    tried = []
    real = Decisions._try_place
    monkeypatch.setattr(Decisions, "_try_place", lambda self, *args: tried.append(args) or real(self, *args))
    at.submit("behind", 8)
    assert tried == []
    assert at.release("runs") == ["waits@n:8"]
    assert at.release("waits") == ["behind@n:8"]
