"""Calls that are repeated, that come together, that are large, and that go on."""

import asyncio
from typing import ClassVar

import pytest

from fabric.api.batcher import Batcher
from fabric.api.job_calls import blob_key, job_id_of
from fabric.client.client import new_request_id
from fabric.errors import (
    Conflict,
    InvalidRequest,
    RateLimited,
    Unavailable,
)
from fabric.gate.events import Cancel
from fabric.gate.instructions import Accepted
from fabric.gate.views import LogChunk
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from fabric.wire.service import METHODS

SPEC = pb.JobSpec(name="noop", kind="script", devices=1, limit_uhs=UHS_PER_CT)
COMMAND = pb.Payload(command=["true"])


def submit(client, *, request_id=None, payload=COMMAND, **spec):
    made = pb.JobSpec(name="noop", kind="script", devices=1, limit_uhs=UHS_PER_CT)
    made.MergeFrom(pb.JobSpec(**spec))
    request = pb.SubmitRequest(request_id=request_id or new_request_id(), spec=made, payload=payload)
    return client.call(request, pb.SubmitReply)


def ask(client, request):
    """Any call: its answer, or the list of what it streams."""
    method = METHODS[type(request).__name__.removesuffix("Request")]
    return list(client.stream(request, method.reply)) if method.server_streams else client.call(request, method.reply)


def test_a_repeated_request_gets_the_first_answer_and_other_content_is_a_conflict(house):
    client = house.client()
    first = submit(client, request_id="once")
    assert submit(client, request_id="once") == first
    assert len(client.call(pb.ListJobsRequest(), pb.ListJobsReply).jobs) == 1
    with pytest.raises(Conflict):
        submit(client, request_id="once", name="other")
    assert submit(house.client(house.globex), request_id="once").job_id != first.job_id
    assert first.job_id == job_id_of("acme", "once")


def test_an_answer_that_got_lost_is_asked_for_again_and_nothing_happens_twice(house):
    house.port.lose_answers = 2
    request = pb.TopUpRequest(request_id="pay", amount_uhs=5 * UHS_PER_CT)
    house.client().call(request, pb.Accepted)
    assert len(house.port.batches) == 3
    assert house.client().call(pb.BalanceRequest(), pb.BalanceReply).free_uhs == 105 * UHS_PER_CT


def test_a_fabric_that_is_away_is_unavailable_after_some_tries(house, monkeypatch):
    monkeypatch.setattr("fabric.client.client._ATTEMPTS", 2)
    monkeypatch.setattr("fabric.client.client._ATTEMPTS_ONCE_KNOWN", 2)
    house.port.away = True
    with pytest.raises(Unavailable, match="try again"):
        house.client().call(pb.ListNodesRequest(), pb.ListNodesReply)


async def test_what_arrives_while_the_gate_is_busy_goes_in_one_call():
    class SlowPort:
        calls: ClassVar = []

        async def decide(self, events):
            self.calls.append([event.job_id for event in events])
            await asyncio.sleep(0.01)
            return [Accepted() for _ in events]

    batcher = Batcher(SlowPort())
    await asyncio.gather(*(batcher.decide(Cancel(job_id=str(n), account_id="a")) for n in range(50)))
    assert SlowPort.calls[0] == ["0"] or len(SlowPort.calls[0]) == 50
    assert len(SlowPort.calls) <= 2
    assert [job for call in SlowPort.calls for job in call] == [str(n) for n in range(50)]


def test_a_blob_is_kept_under_its_hash_and_what_is_too_large_is_refused(make_house, limits):
    house = make_house(limits=limits(blob_bytes=3_000_000))
    client = house.client()
    sha256 = client.put_blob(b"x" * 3_000_000)
    assert len(house.port.blobs[blob_key("acme", sha256)]) == 3_000_000
    with pytest.raises(InvalidRequest, match="3000000") as refusal:
        client.put_blob(b"x" * 3_000_001)
    assert refusal.value.code == "blob_too_large"


def test_a_message_beyond_the_limit_is_refused(make_house, limits):
    house = make_house(limits=limits(request_bytes=100_000))
    with pytest.raises(InvalidRequest) as refusal:
        submit(house.client(), payload=pb.Payload(command=["x" * 200_000]))
    assert refusal.value.code == "too_large"


def test_too_many_requests_are_told_when_to_come_back(make_house, limits):
    house = make_house(limits=limits(requests_per_s=5))
    client = house.client()

    def ask_on():
        for _ in range(50):
            client.call(pb.BalanceRequest(), pb.BalanceReply)

    with pytest.raises(RateLimited) as refusal:
        ask_on()
    assert refusal.value.facts["retry_after_s"] == 1
    house.client(house.globex).call(pb.BalanceRequest(), pb.BalanceReply)


def test_a_watcher_hears_of_its_own_jobs_from_where_it_left_off(house):
    house.port.run_jobs = False
    acme, globex = house.client(), house.client(house.globex)
    stream = acme.stream(pb.WatchJobsRequest(), pb.JobUpdate)
    hello = next(stream)
    assert not hello.HasField("job")
    submit(globex)
    first = submit(acme).job_id
    seen = next(stream)
    assert (seen.job.job_id, seen.job.account_id) == (first, "acme")
    stream.cancel()
    second = submit(acme).job_id
    resumed = acme.stream(pb.WatchJobsRequest(after_revision=seen.revision), pb.JobUpdate)
    next(resumed)
    assert next(resumed).job.job_id == second
    resumed.cancel()


def test_watching_one_job_begins_with_its_state_and_ends_with_it(house):
    job = house.fabric().submit(lambda: "small", tokens=1)
    job.wait(timeout=20)
    updates = list(house.client().stream(pb.WatchJobsRequest(job_id=job.id, results=True), pb.JobUpdate))
    assert [update.HasField("job") for update in updates] == [False, True]
    assert b"small" in updates[-1].result


def test_the_result_of_a_job_that_has_not_ended_is_a_conflict(house):
    house.port.run_jobs = False
    with pytest.raises(Conflict) as refusal:
        house.client().fetch(pb.ResultRequest(job_id=submit(house.client()).job_id))
    assert refusal.value.code == "not_ended"


def test_logs_go_on_where_they_were_when_the_gate_went_away(house):
    job = house.fabric().submit(lambda: None, tokens=1)
    job.wait(timeout=20)
    text, asked = b"one two three", []

    async def logs(job_id, *, offsets, follow):
        start = offsets.get("1/0", 0)
        asked.append(start)
        yield LogChunk(rank=0, attempt=1, offset=start, data=text[start : start + 4])
        if start + 4 < len(text):
            raise Unavailable("the gate is restarting: try again", code="gate_restarting")

    house.port.logs = logs
    assert "".join(job.logs(follow=True)) == text.decode()
    assert asked == [0, 4, 8, 12]


def test_logs_of_a_fabric_that_stays_away_end_in_its_error(house, monkeypatch):
    monkeypatch.setattr("fabric.client.client._ATTEMPTS", 2)
    monkeypatch.setattr("fabric.client.client._ATTEMPTS_ONCE_KNOWN", 2)
    job = house.fabric().submit(lambda: None, tokens=1)
    job.wait(timeout=20)
    house.port.away = True
    with pytest.raises(Unavailable, match="try again"):
        list(job.logs())
