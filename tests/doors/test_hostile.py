"""A customer with a valid key and a client of its own making: it gets a clear no, and nobody else notices."""

import asyncio
import contextlib
import threading

import pytest

from fabric.client.client import new_request_id
from fabric.errors import FabricError, InsufficientTokens, InvalidRequest, RateLimited, Unavailable
from fabric.gate.questions import RecordsOf
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from fabric.wire import hash_secret, make_secret
from fabric.wire.keys import format_key
from fabric.wire.service import METHODS
from tests.doors.test_bad_input import submit


def command(**more):
    return pb.Payload(command=["true"], **more)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (command(env={"A": "x\0y"}), "invalid_env"),
        (command(env={"A=B": "x"}), "invalid_env"),
        (command(env={"": "x"}), "invalid_env"),
        (pb.Payload(command=["tr\0ue"]), "invalid_payload"),
        (command(runtime_env_json='{"env_vars": {"A": "\\u0000"}}'), "invalid_env"),
        (command(runtime_env_json='{"env_vars": {"A": 1}}'), "invalid_runtime_env"),
        (command(runtime_env_json='{"env_vars": [1]}'), "invalid_runtime_env"),
        (command(runtime_env_json='{"pip": NaN}'), "invalid_runtime_env"),
        (command(runtime_env_json='{"pip": ["\\ud800"]}'), "invalid_runtime_env"),
        (command(runtime_env_json='{"pip": ' + "[" * 50_000 + "]" * 50_000 + "}"), "invalid_runtime_env"),
    ],
)
def test_what_no_machine_could_run_is_refused_before_anything_is_held(house, payload, code):
    with pytest.raises(InvalidRequest) as refusal:
        submit(house.client(), payload=payload)
    assert refusal.value.code == code
    assert house.port.batches == []


@pytest.mark.parametrize(
    ("request_", "reply", "code"),
    [
        (pb.BuyBundleRequest(request_id="r", bundle="b" * 201), pb.Accepted, "invalid_bundle"),
        (pb.SubscribeRequest(request_id="r", subscription="s" * 201), pb.Accepted, "invalid_subscription"),
        (pb.TopUpRequest(request_id="r", amount_uhs=1, payment_ref="p" * 201), pb.Accepted, "invalid_payment_ref"),
        (
            pb.AuthorizeRequest(request_id="r", hold_id="h", amount_uhs=1, ttl_us=9, models=["m"] * 33),
            pb.Accepted,
            "invalid_models",
        ),
        (
            pb.AuthorizeRequest(request_id="r", hold_id="h", amount_uhs=1, ttl_us=9, models=["m" * 201]),
            pb.Accepted,
            "invalid_models",
        ),
        (pb.GetJobRequest(job_id="j" * 300_000), pb.Job, "too_large"),
    ],
)
def test_what_would_be_remembered_for_ever_is_short(house, request_, reply, code):
    with pytest.raises(InvalidRequest) as refusal:
        house.client().call(request_, reply)
    assert refusal.value.code == code
    assert house.port.batches == []


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"payload": command(env={"A": "x" * 66_000})}, "payload_too_large"),
        ({"payload": pb.Payload(command=["x" * 66_000])}, "payload_too_large"),
        ({"payload": command(env={"A": "x" * 200_000})}, "too_large"),
        ({"accelerators": ["H100"] * 33}, "invalid_accelerators"),
    ],
)
def test_a_job_takes_little_room_in_the_record_whatever_it_runs(house, more, code):
    with pytest.raises(InvalidRequest) as refusal:
        submit(house.client(), **more)
    assert refusal.value.code == code
    assert house.port.batches == []


def test_what_takes_much_room_in_the_record_counts_as_several_requests(make_house, limits):
    """It is recorded for ever, also where it is refused for want of tokens."""
    house = make_house(limits=limits(requests_per_s=20))
    house.port.run_jobs = False
    client, tried = house.client(), []

    def ask_on():
        for _ in range(30):
            tried.append("x" * 60_000)
            with contextlib.suppress(InsufficientTokens):
                submit(client, limit_uhs=1_000 * UHS_PER_CT, payload=command(env={"A": tried[-1]}))

    with pytest.raises(RateLimited):
        ask_on()
    assert len(tried) < 20
    for _ in range(10):
        submit(house.client(house.globex), payload=command(env={"A": "x" * 5_000}))


def test_what_looks_through_all_that_one_has_counts_as_several_requests(make_house, limits):
    house = make_house(limits=limits(requests_per_s=20))
    client = house.client()

    def ask_on():
        for _ in range(15):
            client.call(pb.ListJobsRequest(), pb.ListJobsReply)

    with pytest.raises(RateLimited):
        ask_on()


@pytest.mark.parametrize("offsets", [{"1/0": -5}, {"../x": 1}, {"1": 1}, {f"{n}/0": 1 for n in range(5_000)}])
def test_a_log_is_read_from_where_a_log_can_be(house, offsets):
    job_id = submit(house.client()).job_id
    with pytest.raises(InvalidRequest) as refusal:
        list(house.client().stream(pb.LogsRequest(job_id=job_id, offsets=offsets), pb.LogChunk))
    assert refusal.value.code == "invalid_offsets"


def test_uploads_that_never_end_are_in_nobodys_way(house, monkeypatch):
    monkeypatch.setattr("fabric.api.job_calls.UPLOAD_IDLE_S", 2.0)
    over = threading.Event()

    def trickle():
        yield pb.Chunk(data=b"x")
        over.wait(30)

    client = house.client()
    send = client._callable(METHODS["PutBlob"])
    stalled = [send.future(trickle(), metadata=client._metadata) for _ in range(12)]
    try:
        assert house.client(house.globex).put_blob(b"hello")
        for each in stalled:
            assert isinstance(client._error(each.exception()), Unavailable)
            assert "upload_stalled" in each.details()
    finally:
        over.set()


def test_streams_are_counted_for_each_customer_until_they_are_closed(make_house, limits):
    house = make_house(limits=limits(streams=3))
    client = house.client()
    streams = [client.stream(pb.WatchJobsRequest(), pb.JobUpdate) for _ in range(3)]
    for stream in streams:
        next(stream)
    with pytest.raises(RateLimited) as refusal:
        next(house.client(house.key("acme", "second")).stream(pb.WatchJobsRequest(), pb.JobUpdate))
    assert refusal.value.code == "too_many_streams"
    next(house.client(house.globex).stream(pb.WatchJobsRequest(), pb.JobUpdate))
    for stream in streams:
        stream.cancel()
    for _ in range(100):
        try:
            next(client.stream(pb.WatchJobsRequest(), pb.JobUpdate))
            break
        except RateLimited:
            threading.Event().wait(0.02)
    else:
        pytest.fail("closed streams still count")


def test_few_histories_are_read_at_once_for_one_customer(make_house, limits):
    house = make_house(limits=limits(histories=1))
    reading, go_on = threading.Event(), threading.Event()
    plain = house.port.ask

    async def slowly(question):
        if isinstance(question, RecordsOf):
            reading.set()
            await asyncio.to_thread(go_on.wait, 60)
        return await plain(question)

    house.port.ask = slowly
    client = house.client()
    first = threading.Thread(target=lambda: list(client.stream(pb.UsageRequest(), pb.Cdr)))
    first.start()
    try:
        assert reading.wait(60)
        with pytest.raises(RateLimited) as refusal:
            list(client.stream(pb.StatementRequest(), pb.Chunk))
        assert refusal.value.code == "too_many_streams"
        next(client.stream(pb.WatchJobsRequest(), pb.JobUpdate))
        assert list(house.client(house.globex).stream(pb.StatementRequest(), pb.Chunk))
    finally:
        go_on.set()
        first.join(60)
    assert list(client.stream(pb.StatementRequest(), pb.Chunk))


def test_more_keys_are_not_more_requests(make_house, limits):
    house = make_house(limits=limits(requests_per_s=5))
    clients = [house.client(house.key("acme", f"key{number}")) for number in range(10)]

    def ask_on():
        for client in clients * 5:
            client.call(pb.BalanceRequest(), pb.BalanceReply)

    with pytest.raises(RateLimited):
        ask_on()


def test_many_at_once_never_spend_more_than_there_is(house):
    """Submits, holds and raises from many threads against a balance that covers a few of them."""
    secret = make_secret()
    created = house.client(house.root, account="globex").call(
        pb.CreateKeyRequest(request_id="k", secret_sha256=hash_secret(secret)), pb.CreateKeyReply
    )
    house.port.run_jobs = False
    key = format_key(created.key_id, secret)
    yes, no = [], []

    def greedy(number):
        client = house.client(key)
        for turn in range(6):
            try:
                if (number + turn) % 2:
                    yes.append(submit(client, limit_uhs=6 * UHS_PER_CT).held_uhs)
                else:
                    hold = pb.AuthorizeRequest(
                        request_id=new_request_id(),
                        hold_id=f"h-{number}-{turn}",
                        amount_uhs=7 * UHS_PER_CT,
                        ttl_us=10**9,
                    )
                    yes.append(client.call(hold, pb.Accepted).granted_uhs)
            except InsufficientTokens as refusal:
                no.append(refusal)
            except FabricError as other:  # pragma: no cover
                no.append(other)

    threads = [threading.Thread(target=greedy, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    balance = house.client(key).call(pb.BalanceRequest(), pb.BalanceReply)
    assert all(isinstance(refusal, InsufficientTokens) for refusal in no)
    assert len(yes) + len(no) == 72
    assert sum(yes) == balance.held_uhs <= 100 * UHS_PER_CT
    assert balance.free_uhs == 100 * UHS_PER_CT - balance.held_uhs >= 0
    assert balance.debt_uhs == 0
    house.port.gate.check()
