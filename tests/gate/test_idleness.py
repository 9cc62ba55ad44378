"""Idle devices: seen by the meters alone, told to the owner, and parked if the owner wants that. Then nothing burns."""

import pytest

from fabric.gate.events import Resume
from fabric.gate.questions import JobOf
from tests.gate.conftest import finished, metered, removed, saved, started, submit
from tests.gate.world import S

START = "start j.1 epoch 1 on h1:1"
RESUME = Resume(job_id="j", account_id="ada")


def idle_s(story):
    us = story.gate.ask(JobOf(job_id="j"), story.now_us).idle_us
    return None if us is None else us / S


def test_a_job_that_leaves_its_devices_idle_is_parked_after_its_dwell_and_burns_nothing(story):
    story.play(
        (0, submit(auto_park_us=60 * S), [START]),
        (0, started(), []),
        (10, metered(10), []),
        (40, metered(30, seq=2, busy=0.9), [], "running"),
        (69, metered(29, seq=3, busy=0.5), [], "running"),
        (71, metered(2, seq=4, busy=0), ["stop j.1 idle by 81"], "stopping idle"),
        (72, saved(), []),
        (72, finished("saved"), ["remove j.1"], "parked idle"),
        (72, removed(), []),
    )
    burned = story.job().burned_uhs
    story.play((10_000, RESUME, ["start j.2 epoch 2 on h1:1"], "starting"))
    assert story.job().burned_uhs == burned
    assert "IDLE, durable in 1 s" in story.gate.ask(JobOf(job_id="j"), story.now_us).timeline


def test_work_in_between_begins_the_dwell_anew(story):
    story.play((0, submit(auto_park_us=60 * S, limit=900 * S), [START]), (0, started(), []))
    for at in range(1, 20):
        busy = 50 if at % 2 else 0
        story.play((at * 50, metered(50, seq=at, busy=busy), [], "running"))
        assert idle_s(story) == (None if busy else 50)


def test_a_job_without_a_policy_is_told_how_long_it_idles_and_is_left_alone(story):
    story.play(
        (0, submit(), [START]), (0, started(), []),
        (100, metered(100, busy=4.9), [], "running"),
        (200, metered(100, seq=2, busy=4.9), [], "running"),
    )  # fmt: skip
    assert idle_s(story) == 200


def test_the_jobs_own_word_and_what_nobody_saw_park_nothing(story):
    from fabric.gate.events import Metered, Sample

    story.play((0, submit(auto_park_us=5 * S), [START]), (0, started(), []))
    unseen = Sample(lease_id="j.1", seq=1, window_us=20 * S, busy_us=0, estimated=True)
    story.play((20, Metered(samples=(unseen,)), [], "running"))
    assert idle_s(story) is None


@pytest.mark.parametrize("dwell_us", [0, -1, 5 * S - 1, 2**62])
def test_a_dwell_that_makes_no_sense_is_refused(story, dwell_us):
    assert story.do(submit(auto_park_us=dwell_us)).outcome.code == "invalid_auto_park"


def test_a_job_goes_where_the_nodes_say_that_its_data_are(story):
    from fabric.gate.events import NodeDown, NodeHolds, NodeUp, Pool
    from fabric.placement.locality import Dataset, Holdings

    gb = 10**9
    story.do(NodeUp(node_id="h2", accelerator="H100", devices=4, pool=Pool.SPOT))
    data = (Dataset(prefix="s3://data/", bytes=100 * gb),)
    holds = NodeHolds(node_id="h2", holdings=Holdings(bytes_by_prefix={"s3://data/": 90 * gb}, rate_bytes_per_s=gb))
    story.play((0, submit("cold", data=data), ["start cold.1 epoch 1 on h1:1"]), job="cold")
    story.play((1, holds, []), (1, submit("warm", data=data), ["start warm.1 epoch 1 on h2:1"]), job="warm")
    story.do(NodeDown(node_id="h2"))
    assert "h2" not in story.gate.state.holdings
    assert story.do(NodeHolds(node_id="nowhere", holdings=Holdings())).outcome.code == "not_found"


@pytest.mark.parametrize(
    "data", [(("", 1),), (("a", -1),), (("a", 1), ("a", 2)), tuple((f"p{i}", 1) for i in range(33))]
)
def test_data_that_make_no_sense_are_refused(story, data):
    from fabric.placement.locality import Dataset

    given = tuple(Dataset(prefix=prefix, bytes=size) for prefix, size in data)
    assert story.do(submit(data=given)).outcome.code == "invalid_data"


def test_a_quote_tells_what_jobs_of_that_name_took(story):
    from fabric.gate.questions import QuoteOf
    from tests.gate.world import spec

    def quote(account="ada", name="train"):
        return story.gate.ask(QuoteOf(account_id=account, spec=spec(name=name)), story.now_us)

    assert quote().runs == 0
    for at in range(10):
        job, begin = f"j{at}", at * 100
        story.play(
            (begin, submit(job), [f"start {job}.1 epoch 1 on h1:1"]),
            (begin, started(f"{job}.1"), []),
            (begin + at + 1, metered(at + 1, f"{job}.1"), []),
            (begin + at + 1, finished("succeeded", f"{job}.1"), [f"remove {job}.1"]),
            (begin + at + 1, removed(f"{job}.1"), []),
            job=job,
        )
    told = quote()
    assert (told.runs, told.burned_p50_uhs, told.burned_p90_uhs) == (10, 5 * S, 9 * S)
    assert (told.took_p50_us, told.took_p90_us, told.attempts_p90) == (5 * S, 9 * S, 1)
    assert quote("bob").runs == quote(name="other").runs == 0
