"""Stories of jobs: what happens, second by second, and what the gate has done about it.

One device of an H100 in full use burns a device-second a second. Tokens are written in device-seconds.
"""

from fabric.gate.events import Cancel, HoldMode, NodeDown, NodeDrain, NodeUp, Pause, Pool, RaiseLimit, Resume, Tick
from fabric.ledger import Service
from tests.gate.conftest import Story, finished, metered, node, removed, sample, saved, started, submit, top_up
from tests.gate.world import S

START = "start j.1 epoch 1 on h1:1"
AGAIN = "start j.2 epoch 2 on h1:1"
CANCEL, PAUSE, RESUME = (verb(job_id="j", account_id="ada") for verb in (Cancel, Pause, Resume))


STARTING = [(0, submit(), [START])]
RUNNING = [*STARTING, (0, started(), [], "running")]


def raise_to(seconds):
    return RaiseLimit(job_id="j", account_id="ada", limit_uhs=seconds * S)


def test_a_job_is_held_for_placed_metered_and_settled(story):
    story.play(
        (0, submit(), [START], "starting"),
        (1, started(), [], "running"),
        (11, metered(10), [], "running"),
        (20, finished("succeeded", result_ref="r"), ["remove j.1"], "succeeded"),
        (21, removed(final=sample(9, seq=2, busy=0)), [], "succeeded"),
    )
    job = story.job()
    assert (job.burned_uhs, job.settled, job.result_ref) == (12.25 * S, True, "r")
    assert story.free() == (1_000 - 12.25) * S


def test_a_limit_reached_parks_and_a_higher_one_resumes_with_the_next_epoch(story):
    """The margin before a limit of 100 is its grace of 10; the deadline is when what is held would be used up."""
    story.play(
        (0, submit(limit=100 * S), [START]),
        (0, started(), []),
        (89, metered(89), [], "running"),
        (91, metered(2, seq=2), ["stop j.1 limit_reached by 100"], "stopping limit_reached"),
        (95, saved(), []),
        (95, finished("saved"), ["remove j.1"], "parked limit_reached"),
        (96, removed(final=sample(4, seq=3)), [], "parked limit_reached"),
        (97, RESUME, []),
        (98, raise_to(150), [AGAIN], "starting"),
    )
    assert (story.job().burned_uhs, story.job().held_uhs) == (95 * S, 55 * S)


def test_a_resume_at_the_limit_says_to_raise_it(story):
    story.play(
        (0, submit(limit=100 * S), [START]),
        (0, started(), []),
        (95, metered(95), ["stop j.1 limit_reached by 100"]),
        (96, finished("saved"), ["remove j.1"]),
        (96, removed(), []),
    )
    refusal = story.do(RESUME).outcome
    assert refusal.code == "limit_reached"
    assert "raise it" in refusal.message


def test_a_limit_raised_while_the_lease_goes_resumes_once_it_is_gone(story):
    story.play(
        (0, submit(limit=100 * S), [START]),
        (0, started(), []),
        (95, metered(95), ["stop j.1 limit_reached by 100"]),
        (96, raise_to(200), [], "stopping limit_reached"),
        (97, finished("saved"), ["remove j.1"], "parked limit_reached"),
        (98, removed(), [AGAIN], "starting"),
    )


def test_what_does_not_end_by_its_deadline_is_removed_and_never_charged_beyond_its_limit(story):
    story.play(
        (0, submit(limit=100 * S), [START]),
        (0, started(), []),
        (95, metered(95), ["stop j.1 limit_reached by 100"]),
        (99, Tick(), []),
        (100, Tick(), ["remove j.1"], "parked limit_reached"),
        (130, removed(final=sample(35, seq=2)), [], "parked limit_reached"),
    )
    assert story.job().burned_uhs == 100 * S


def test_a_rolling_hold_is_renewed_at_a_fifth_and_a_top_up_extends_it(story):
    """The hold is 600; of 1000 there are 400 left to renew with."""
    story.play(
        (0, submit(limit=5_000 * S, hold=HoldMode.ROLLING), [START]),
        (0, started(), []),
        (470, metered(470), [], "running"),
    )
    assert (story.job().held_uhs, story.free()) == (130 * S, 400 * S)
    story.play((490, metered(20, seq=2), [], "running"))
    assert (story.job().held_uhs, story.free()) == (510 * S, 0)
    story.play((600, top_up(2_000), []), (900, metered(410, seq=3), [], "running"))
    assert (story.job().held_uhs, story.free()) == (700 * S, 1_400 * S)


def test_out_of_tokens_parks_and_a_top_up_resumes_by_itself(story):
    story.play(
        (0, submit(limit=5_000 * S, hold=HoldMode.ROLLING), [START]),
        (0, started(), []),
        (500, metered(500), [], "running"),
        (991, metered(491, seq=2), ["stop j.1 out_of_tokens by 1000"], "stopping out_of_tokens"),
        (995, finished("saved"), ["remove j.1"], "parked out_of_tokens"),
        (995, removed(final=sample(4, seq=3)), [], "parked out_of_tokens"),
        (1_100, top_up(10), [], "parked out_of_tokens"),
        (1_200, top_up(700), [AGAIN], "starting"),
    )
    assert (story.job().burned_uhs, story.job().held_uhs) == (995 * S, 600 * S)


def test_a_long_grace_makes_a_rolling_hold_long_enough_to_be_renewed_before_it(story):
    story.must(top_up(9_000))
    story.play(
        (0, submit(limit=9_999 * S, hold=HoldMode.ROLLING, grace_us=300 * S), [START]),
        (0, started(), []),
        (2_300, metered(2_300), [], "running"),
        (2_450, metered(150, seq=2), [], "running"),
    )
    assert story.job().held_uhs == (3_000 - 2_450 + 3_000) * S


def test_a_lost_node_gives_back_what_was_not_saved_and_the_job_runs_again(story):
    story.must(node("h2"))
    story.play(
        (0, submit(), [START]),
        (0, started(), []),
        (20, metered(20), []),
        (20, saved(), []),
        (50, metered(30, seq=2), []),
        (55, NodeDown(node_id="h1"), ["remove j.1"], "queued node_lost"),
        (56, removed(), ["start j.2 epoch 2 on h2:1"], "starting"),
    )
    assert (story.job().burned_uhs, story.job().held_uhs) == (20 * S, 80 * S)


def test_a_node_that_comes_back_as_something_else_has_lost_what_was_on_it(story):
    story.play(
        (0, submit(), [START]),
        (0, started(), []),
        (5, NodeUp(node_id="h1", accelerator="H100", devices=2, pool=Pool.SPOT), ["remove j.1"], "queued node_lost"),
        (6, removed(), [AGAIN], "starting"),
    )


def test_a_drained_node_lets_its_jobs_save_and_takes_no_others(story):
    story.play(
        (0, submit(), [START]),
        (0, started(), []),
        (10, NodeDrain(node_id="h1", grace_us=5 * S), ["stop j.1 drained by 15"], "stopping drained"),
        (12, saved(), []),
        (12, finished("saved"), ["remove j.1"], "queued drained"),
        (13, removed(), [], "queued drained"),
        (14, node("h2"), ["start j.2 epoch 2 on h2:1"], "starting"),
    )


def test_what_leaves_because_the_fabric_goes_down_saves_and_goes_on_when_its_node_is_there_again(story):
    story.play(
        (0, submit(), [START]),
        (0, started(), []),
        (10, NodeDrain(node_id="h1", grace_us=500 * S, closing=True), ["stop j.1 fabric_down by 20"]),
        (12, saved(), []),
        (12, finished("saved"), ["remove j.1"], "queued fabric_down"),
        (13, removed(), [], "queued fabric_down"),
        (90, node("h1"), [AGAIN], "starting"),
    )


def test_a_drained_node_that_is_taken_back_takes_jobs_again_and_one_that_is_gone_stays_gone(story):
    back = NodeDrain(node_id="h1", grace_us=0, undo=True)
    story.play(
        (0, submit(), [START]),
        (0, started(), []),
        (10, NodeDrain(node_id="h1", grace_us=5 * S), ["stop j.1 drained by 15"], "stopping drained"),
        (11, back, [], "stopping drained"),
        (12, finished("saved"), ["remove j.1"], "queued drained"),
        (13, removed(), ["start j.2 epoch 2 on h1:1"], "starting"),
        (14, back, [], "starting"),
        (15, NodeDown(node_id="h1"), ["remove j.2"]),
        (16, removed(), []),
        (17, back, [], "queued node h1 was lost"),
    )


def test_work_not_saved_within_the_grace_of_a_drain_is_given_back(story):
    story.play(
        (0, submit(), [START]),
        (0, started(), []),
        (10, NodeDrain(node_id="h1", grace_us=5 * S), ["stop j.1 drained by 15"]),
        (15, Tick(), ["remove j.1"], "queued drained"),
        (16, removed(), [], "queued drained"),
    )
    assert (story.job().burned_uhs, story.free()) == (0, 900 * S)


def test_reserved_inference_evicts_what_borrowed_its_nodes():
    story = Story("ada", "bob")
    for account in ("ada", "bob"):
        story.must(top_up(1_000, account))
    story.must(node("r1", devices=1, pool=Pool.RESERVED))
    story.play(
        (0, submit(), ["start j.1 epoch 1 on r1:1"]),
        (0, started(), []),
        (30, metered(30), []),
        (30, saved(), []),
        (40, submit("i", "bob", service=Service.INFERENCE), ["stop j.1 evicted by 50"], "stopping evicted"),
        (45, finished("saved"), ["remove j.1"], "queued evicted"),
        (46, removed(), ["start i.1 epoch 1 on r1:1"], "queued evicted"),
    )


def test_a_failure_is_tried_again_as_often_as_was_asked_for(story):
    story.play(
        (0, submit(max_retries=1), [START]),
        (0, started(), []),
        (5, finished("failed", error="Traceback\nValueError: no"), ["remove j.1"], "queued retried"),
        (6, removed(), [AGAIN], "starting"),
        (7, started("j.2"), []),
        (9, finished("failed", "j.2", error="ValueError: no"), ["remove j.2"], "failed ValueError: no"),
        (10, removed("j.2"), [], "failed ValueError: no"),
    )
    assert (story.job().burned_uhs, story.free()) == (7 * S, 993 * S)


def test_what_fails_while_it_is_paused_is_not_run_again_unasked(story):
    story.play(
        (0, submit(max_retries=1), [START]),
        (0, started(), []),
        (5, PAUSE, ["stop j.1 paused by 15"], "stopping paused"),
        (6, finished("failed", error="killed"), ["remove j.1"], "parked paused"),
        (7, removed(), [], "parked paused"),
    )


def test_an_environment_of_the_jobs_own_that_can_never_be_built_fails_it_after_some_tries(story):
    """It is what the job brings along, and no outage that passes (see `test_backoff_stories.py` for those)."""
    rows, at = [(0, submit(), [START])], 1
    for attempt, wait_s in enumerate((0, 2, 8, 32, None), 1):
        state = "queued" if wait_s is not None else "failed"
        broken = finished("interrupted", f"j.{attempt}", error="no such package")
        then = [f"start j.{attempt + 1} epoch {attempt + 1} on h1:1"]
        rows += [
            (at, broken, [f"remove j.{attempt}"], f"{state} no such package"),
            (at, removed(f"j.{attempt}"), then if wait_s == 0 else []),
        ]
        at += wait_s or 1
        rows += [(at, Tick(), then, "starting")] if wait_s else []
    story.play(*rows)
    assert (story.job().burned_uhs, story.job().settled, story.free()) == (0, True, 1_000 * S)


def test_a_silent_agent_is_charged_as_estimated_at_the_reference(story):
    story.play(
        (0, submit(), [START]),
        (0, started(), []),
        (10, Tick(), []),
        (11, Tick(), []),
    )
    assert story.job().burned_uhs == 11 * S
    story.play((12, metered(12, busy=0), []), (13, finished("succeeded"), ["remove j.1"]))
    (cdr,) = story.do(removed(final=sample(1, seq=2, busy=0))).records
    assert (cdr.metered_us, cdr.estimated_us, cdr.charged_uhs) == (13 * S, 11 * S, 11.5 * S)


def test_a_late_word_of_an_old_attempt_is_ignored(story):
    story.play(
        *STARTING,
        (1, finished("lost", error="gone"), ["remove j.1"]),
        (2, removed(), [AGAIN], "starting"),
        (3, finished("failed", error="late"), [], "starting"),
        (3, started("j.1"), [], "starting"),
        (4, removed("j.1"), [], "starting"),
    )


def test_a_clock_that_jumps_back_changes_nothing(story):
    story.play(
        *RUNNING,
        (40, metered(40), []),
        (-99_999, metered(5, seq=2), []),
        (-99_999, Tick(), [], "running"),
        (45, metered(5, seq=3), []),
    )
    assert (story.job().burned_uhs, story.gate.state.now_us) == (45 * S, story.now_us)


def test_a_clock_that_jumps_ahead_never_costs_more_than_is_held(story):
    story.play(*RUNNING, (9_000_000, Tick(), ["stop j.1 limit_reached by 9e+06"]))
    story.play((9_000_000, Tick(), ["remove j.1"], "parked limit_reached"))
    assert story.job().burned_uhs == 100 * S


def test_a_full_job_is_never_parked_for_what_another_spends(story):
    """The other one takes all that is free, and is parked; the one that holds its limit runs to its end."""
    story.play(
        (0, submit(limit=700 * S), [START]),
        (0, submit("k", limit=9_000 * S, hold=HoldMode.ROLLING), []),
        (1, top_up(300), []),
        (1, submit("k", limit=9_000 * S, hold=HoldMode.ROLLING), ["start k.1 epoch 1 on h1:1"]),
        (1, started(), []),
        (1, started("k.1"), []),
    )
    assert story.free() == 0
    story.play((592, metered(591, "k.1"), ["stop k.1 out_of_tokens by 601"], "stopping out_of_tokens"), job="k")
    story.play((593, metered(592), [], "running"), (680, finished("succeeded"), ["remove j.1"], "succeeded"))


def test_tokens_freed_by_one_job_let_the_next_go_on(story):
    """j needs 600 to go on; k idles, and gives 251 of its 400 back, which with the 400 that were topped up is enough."""
    story.play(
        (0, submit(limit=5_000 * S, hold=HoldMode.ROLLING), [START]),
        (0, started(), []),
        (0, submit("k", limit=400 * S), ["start k.1 epoch 1 on h1:1"]),
        (0, started("k.1"), []),
        (595, metered(595), ["stop j.1 out_of_tokens by 600"]),
        (595, finished("saved"), ["remove j.1"]),
        (595, removed(), [], "parked out_of_tokens"),
        (596, top_up(400), [], "parked out_of_tokens"),
        (596, finished("succeeded", "k.1"), ["remove k.1"], "parked out_of_tokens"),
    )
    story.play((597, removed("k.1", sample(596, "k.1", busy=0)), [AGAIN], "starting"))


def test_a_job_with_nothing_left_is_not_put_on_devices_again(story):
    """Its last sample used all up: it waits for a higher limit instead of starting a second try without cover."""
    story.play(
        (0, submit(limit=100 * S, max_retries=1), [START]),
        (0, started(), []),
        (100, finished("failed", error="no"), ["remove j.1"], "queued retried"),
        (101, removed(final=sample(100)), [], "parked limit_reached"),
        (102, raise_to(200), [AGAIN], "starting"),
    )


def test_a_limit_that_could_not_be_raised_is_as_it_was(story):
    story.play(
        (0, submit(limit=100 * S), [START]),
        (0, started(), []),
        (95, metered(95), ["stop j.1 limit_reached by 100"]),
        (96, finished("saved"), ["remove j.1"]),
        (96, removed(), [], "parked limit_reached"),
    )
    before = story.gate.snapshot()
    assert story.do(raise_to(2_000)).outcome.code == "insufficient_tokens"
    assert story.gate.snapshot() == before


def test_a_cancelled_job_makes_room_for_the_next_at_once(story):
    story.play(
        (0, submit("wide", devices=4), ["start wide.1 epoch 1 on h1:4"]),
        (0, submit(), [], "queued waiting_for_capacity"),
        (1, Cancel(job_id="wide", account_id="ada"), ["remove wide.1"]),
        (2, removed("wide.1"), [START], "starting"),
    )
