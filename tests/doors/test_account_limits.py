"""What one account may take, however many keys it makes: keys, blobs, logs, pages of changes; nobody else notices."""

import asyncio
import threading

import pytest

from fabric.api import job_calls
from fabric.api.blobs import BLOB_COUNTS_AS, UNUSED_US, USED_US
from fabric.api.job_calls import blob_key
from fabric.api.limits import RateLimit
from fabric.client.client import Client
from fabric.errors import Conflict, InsufficientTokens, RateLimited
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import Cancel
from fabric.gate.key_scopes import KeyScope
from fabric.gate.questions import CallerOf
from fabric.gate.views import CHANGES_MAX
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from tests.doors.test_keys import create
from tests.doors.test_rpc import ask, submit

KB = 1_000
DAY_S = 86_400


def refused_submit(client, number):
    with pytest.raises(InsufficientTokens):
        submit(
            client,
            request_id=f"r{number}",
            limit_uhs=10**6 * UHS_PER_CT,
            payload=pb.Payload(command=["true"], env={"A": "x" * 60 * KB}),
        )


def test_an_account_has_so_many_good_keys_and_revoking_makes_room(house, monkeypatch):
    monkeypatch.setattr("fabric.gate.keys.GOOD_MAX", 5)
    monkeypatch.setattr("fabric.gate.keys.EVER_MAX", 8)
    client = house.client()
    made = [create(client, request_id=f"k{number}") for number in range(4)]
    with pytest.raises(Conflict) as refusal:
        create(client, request_id="more")
    assert (refusal.value.code, refusal.value.facts["limit"]) == ("too_many_keys", 5)
    create(house.client(house.globex))
    for number in range(3):
        key_id = made[number].split("_")[1]
        ask(client, pb.RevokeKeyRequest(request_id=f"x{number}", key_id=key_id))
        create(client, request_id=f"again{number}")
    ask(client, pb.RevokeKeyRequest(request_id="x", key_id=made[3].split("_")[1]))
    with pytest.raises(Conflict) as refusal:
        create(client, request_id="still-more")
    assert refusal.value.facts["limit"] == 8
    assert create(house.client(house.root), operator=True), "the operator's are not counted"


def test_refused_submits_leave_nothing_behind(house):
    client, state = house.client(), house.port.gate.state
    before = house.port.gate.snapshot()
    for number in range(5):
        refused_submit(client, number)
    assert house.port.gate.snapshot() == before
    assert not state.answered


def test_an_account_without_tokens_keeps_few_blobs_and_one_with_many(make_house, limits):
    house = make_house(limits=limits(blobs_bytes_without_tokens=100 * KB, blobs_bytes=1_000 * KB))
    house.port.seed(OpenAccount(account_id="poor", name="Poor", plan="starter"))
    poor, rich = house.client(house.key("poor", "poor")), house.client()
    for _ in range(2):
        poor.put_blob(b"a" * 40 * KB)
    with pytest.raises(RateLimited) as refusal:
        poor.put_blob(b"b" * 70 * KB)
    assert refusal.value.code == "blobs_full"
    assert len([key for key in house.port.blobs if key.startswith("blobs/poor/")]) == 1
    for number in range(15):
        rich.put_blob(bytes([number]) * 60 * KB)
    with pytest.raises(RateLimited):
        rich.put_blob(b"z" * 200 * KB)
    assert rich.put_blob(b"y" * 30 * KB), "what was given up no longer counts"


def test_a_blob_that_no_job_needs_goes_and_one_that_a_job_may_need_stays(make_house, limits):
    house = make_house(limits=limits(blobs_bytes=200 * KB))
    house.port.run_jobs = False
    client = house.client()
    unused, used, ended = (client.put_blob(letter * 60 * KB) for letter in (b"u", b"j", b"e"))
    submit(client, payload=pb.Payload(command=["true"], working_dir_sha256=used))
    over = submit(client, payload=pb.Payload(command=["true"], working_dir_sha256=ended)).job_id
    house.port.seed(Cancel(job_id=over, account_id="acme"))
    with pytest.raises(RateLimited):
        client.put_blob(b"n" * 60 * KB)

    def kept():
        return {sha for sha in (unused, used, ended) if blob_key("acme", sha) in house.port.blobs}

    assert kept() == {unused, used, ended}
    house.port.clock.advance(us=UNUSED_US + 1)
    house.door.blobs._rooms.clear()
    client.put_blob(b"n" * 60 * KB)
    assert kept() == {used, ended}
    house.port.clock.advance(us=USED_US)
    house.door.blobs._rooms.clear()
    client.put_blob(b"m" * 60 * KB)
    assert kept() == {used}


def test_many_small_blobs_fill_an_account_as_few_large_ones_do(make_house, limits):
    """A name in the archive and in the door's memory costs as much as it does, however little stands under it."""
    house = make_house(limits=limits(blobs_bytes=10 * BLOB_COUNTS_AS))
    client = house.client()
    for number in (0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9):
        client.put_blob(bytes([number]))
    with pytest.raises(RateLimited) as refusal:
        client.put_blob(b"one more")
    assert refusal.value.code == "blobs_full"
    assert len([key for key in house.port.blobs if key.startswith("blobs/acme/")]) == 10
    house.port.clock.advance(us=UNUSED_US + 1)
    house.door.blobs._rooms.clear()
    assert client.put_blob(b"one more"), "what no job needs has gone"


def test_what_changed_since_comes_a_page_at_a_time_and_whole(house):
    house.port.run_jobs = False
    client, asked = house.client(house.root, account="acme"), []
    count = CHANGES_MAX + 50
    made = {submit(client, limit_uhs=UHS_PER_CT // 100).job_id for _ in range(count)}
    plain = house.port.changes

    async def counted(**given):
        found = await plain(**given)
        asked.append(len(found))
        return found

    house.port.changes = counted
    stream = client.stream(pb.WatchJobsRequest(after_revision=0), pb.JobUpdate)
    assert not next(stream).HasField("job")
    assert {next(stream).job.job_id for _ in range(count)} == made
    more = submit(client, limit_uhs=UHS_PER_CT // 100).job_id
    assert next(stream).job.job_id == more
    stream.cancel()
    assert max(asked) <= CHANGES_MAX


def test_a_client_that_asks_too_fast_waits_for_its_turn(make_house, limits):
    """A loop that submits a thousand jobs is no attack, and nobody who wrote it expects a refusal in its middle."""
    house = make_house(limits=limits(requests_per_s=10))
    house.port.run_jobs = False
    client = Client(house.profile(house.acme), paced=True)
    try:
        made = {submit(client, limit_uhs=UHS_PER_CT // 100).job_id for _ in range(35)}
        assert len(made) == 35
        assert {job.job_id for job in client.call(pb.ListJobsRequest(), pb.ListJobsReply).jobs} == made
    finally:
        client.close()


def test_what_many_streams_are_told_of_one_accounts_jobs_has_a_bound(house, monkeypatch):
    """Each change is told to each stream: who opens many and changes much has the last state of each job, later."""
    house.port.run_jobs = False
    now, told, client = [0.0], [], house.client()
    house.door.updates = RateLimit(per_s=10, monotonic=lambda: now[0])
    plain = job_calls._update

    async def counted(*given, **more):
        told.append(given)
        return await plain(*given, **more)

    monkeypatch.setattr(job_calls, "_update", counted)
    streams = [client.stream(pb.WatchJobsRequest(), pb.JobUpdate) for _ in range(4)]
    for stream in streams:
        next(stream)
    jobs = [submit(client, limit_uhs=UHS_PER_CT // 100).job_id for _ in range(15)]
    for job_id in jobs:
        ask(client, pb.CancelRequest(request_id=job_id, job_id=job_id))
    ask(house.client(house.globex), pb.BalanceRequest())
    assert len(told) <= 20, "time stands still, and so much is said at once"
    over = threading.Event()

    def let_time_pass():
        while not over.wait(0.01):
            now[0] += 1.0

    passing = threading.Thread(target=let_time_pass)
    passing.start()
    try:
        for stream in streams:
            left = set(jobs)
            while left:
                update = next(stream)
                left -= {update.job.job_id} if update.job.state == "cancelled" else set()
            stream.cancel()
    finally:
        over.set()
        passing.join(60)
    assert len(told) < 2 * len(jobs) * len(streams), "of what has changed again meanwhile, the last state alone is told"


async def test_who_reads_faster_than_it_may_waits_and_is_not_refused(limits):
    now = [0.0]
    rate = RateLimit(per_s=1_000_000, monotonic=lambda: now[0])
    for _ in range(3):
        now[0] += 100.0
        await rate.pace("acme", as_many=5_000_000)
    with pytest.raises(RateLimited):
        rate.spend("acme")


def test_processes_that_share_a_key_are_not_counted_together(make_house, limits):
    """A gateway's call that takes long is in no other gateway's way."""
    house = make_house(limits=limits(calls=1, messages=1))
    key = house.key("op", "gateway", operator=True, scopes=(KeyScope.GATEWAY,))
    waiting, go_on = threading.Event(), threading.Event()
    plain = house.port.ask

    async def slowly(question):
        if isinstance(question, CallerOf) and question.key_id == "k-acme":
            waiting.set()
            await asyncio.to_thread(go_on.wait, 60)
        return await plain(question)

    def caller_of(key_id):
        return house.client(key).call(pb.CallerOfRequest(key_id=key_id), pb.CallerOfReply).account_id

    house.port.ask = slowly
    first = threading.Thread(target=caller_of, args=("k-acme",))
    first.start()
    try:
        assert waiting.wait(20)
        assert caller_of("k-globex") == "globex"
    finally:
        go_on.set()
        first.join(60)
