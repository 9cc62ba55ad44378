"""Why a job waits, in facts: each reason there is, who is ahead, and what would let it start."""

MINUTE = 60_000_000
HOUR = 60 * MINUTE


def asked(at, job_id):
    before = at.planner.derived()
    found = at.planner.waits(job_id, now_us=at.now)
    assert at.planner.derived() == before, "looking changes nothing"
    return found


def test_what_does_not_wait_has_no_reason(story):
    at = story("h0 H100 8 spot")
    at.submit("runs", 8)
    assert asked(at, "runs") is None
    assert asked(at, "nobody") is None


def test_too_little_room_is_told_with_what_is_there_and_what_lacks(story):
    at = story("h0 H100 8 spot", "a0 A100 8 spot")
    at.submit("runs", 5, kinds=("H100",))
    at.submit("waits", 8, kinds=("H100",))
    found = asked(at, "waits")
    assert (found.code, found.short, found.ahead, found.until_us) == ("room", 5, 0, at.now + HOUR)
    assert [(room.pool, room.accelerator, room.devices, room.free) for room in found.rooms] == [("spot", "H100", 8, 3)]
    assert [(each.code, each.accelerator, each.amount) for each in found.remedies] == [
        ("accelerator", "A100", 0),
        ("devices", "", 3),
    ]
    at.wait(2 * HOUR)
    assert asked(at, "waits").code == "reserved"
    assert at.submit("small", 3, kinds=("H100",)) == ["small@h0:3"]


def test_who_goes_first_is_counted_by_why(story):
    at = story("h0 H100 8 spot")
    at.submit("runs", 8, account="acme")
    at.queue("better", 8, account="acme", tier=1)
    at.queue("owed", 8, account="bolt")
    at.queue("own", 8, account="acme")
    at.queue("mine", 8, account="acme")
    at.planner.note_usage("acme", uhs=10**12, now_us=at.now)
    at.plan()
    found = asked(at, "mine")
    assert (found.ahead, found.better, found.poorer, found.own) == (3, 1, 1, 1)
    assert at.planner.queue_position("mine") == 3


def test_the_headroom_and_waiting_inference_are_told(story):
    at = story("r0 H100 8 reserved", headroom_devices=2)
    at.submit("runs", 2, service="inference", preemptible=False)
    at.submit("waits", 6)
    assert asked(at, "waits").rooms[0].withheld == "headroom"
    at.submit("more", 8, service="inference", preemptible=False)
    assert asked(at, "waits").rooms[0].withheld == "inference_waits"


def test_what_is_being_left_for_it_is_told(story):
    at = story("r0 H100 8 reserved")
    at.submit("lent", 6)
    at.submit("serves", 4, service="inference")
    found = asked(at, "serves")
    assert (found.code, found.owed, found.leaving, found.remedies) == ("leaving", 2, ("lent",), ())


def test_each_remedy_is_one_that_helps(story):
    at = story("r0 H100 8 reserved", "s0 H100 2 spot", "s1 H100 2 spot")
    at.submit("fills", 4, preemptible=False)
    fixed = at.request("fixed", 4, preemptible=False)
    slow = at.request("slow", 4, grace_us=HOUR // 12)
    at.planner.enqueue(fixed, now_us=at.now)
    at.planner.enqueue(slow, now_us=at.now)
    at.plan()
    assert [each.code for each in asked(at, "fixed").remedies] == ["preemptible"]
    assert [(each.code, each.amount) for each in asked(at, "slow").remedies] == [("grace", 2 * MINUTE)]
    at.submit("takes", 6)
    at.submit("even", 4, each=2, kinds=("H100",))
    assert [(each.code, each.amount) for each in asked(at, "even").remedies] == [("devices", 2)]


def test_a_job_whose_nodes_are_all_down_waits_for_a_node(story):
    at = story("h0 H100 8 spot")
    at.submit("runs", 8)
    at.submit("waits", 8)
    at.planner.remove_node("h0")
    assert asked(at, "waits").code == "nowhere"


def test_one_that_waits_for_its_data_is_told_until_when(story):
    at = story("n0 H100 8 spot", "n1 H100 8 spot")
    at.submit("other", 8, prefers=("n1",))
    at.submit("waits", 8, prefers=("n1",), patience_us=5 * MINUTE)
    found = asked(at, "waits")
    assert (found.code, found.until_us) == ("warmth", at.now + 5 * MINUTE)
