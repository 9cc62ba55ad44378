"""A gate that is there and says nothing: it hangs, or the network swallows what is sent. Who waits is told, and it goes on.

The door is a real one; what is between is a stand-in for a network (`tests.relay`).
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from fabric.api import grpc_server
from fabric.client.client import Client, new_request_id
from fabric.client.profile import Profile
from fabric.errors import Unavailable
from fabric.sdk import Fabric
from fabric.system.processes import are_still
from fabric.transport import choice
from fabric.wire import fabric_pb2 as pb
from fabric.wire import keepalive
from serving import fabric_client as serving_ledger
from serving.fabric_client import FabricClient
from tests.relay import Relay

FOR_EVER_S = 600.0
"""A client that would wait so long is told much sooner, or the test doesn't end in time."""

pytestmark = pytest.mark.timeout(200)


@pytest.fixture(params=["grpcio", "plain HTTP/2"])
def either(request, monkeypatch):
    """With either of the two transports of clients."""
    if request.param != "grpcio":
        pytest.importorskip("h2")
        monkeypatch.setattr(choice, "has_grpcio", lambda: False)


@pytest.fixture
def apart():
    """A door in a process of its own, that can be stopped."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.doors.door_process", "{}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    said = json.loads(process.stdout.readline())
    yield process, said
    os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=60)


@pytest.fixture
def relay(house):
    with Relay(house.server.port) as relay:
        yield relay


@pytest.fixture
def far(house, relay):
    """A client of the door beyond the network."""
    client = Client(through(relay, house.profile(house.acme)))
    yield client
    client.close()


def through(relay, profile):
    return Profile(address=f"127.0.0.1:{relay.port}", api_key=profile.api_key, ca=profile.ca, account=profile.account)


def balance(client):
    return client.call(pb.BalanceRequest(), pb.BalanceReply, timeout_s=FOR_EVER_S)


def top_up(client, request_id):
    request = pb.TopUpRequest(request_id=request_id, amount_uhs=1_000_000)
    return client.call(request, pb.Accepted, timeout_s=FOR_EVER_S)


def until_it_answers(ask):
    while True:
        try:
            return ask()
        except Unavailable:
            pass


def until_it_ends(stream):
    with suppress(Unavailable):
        list(stream)


def test_a_gate_that_hangs_is_named_and_asked_again_until_it_goes_on(either, apart):
    process, said = apart
    client = Client(Profile(address=said["address"], api_key=said["acme"], ca=said["ca"]))
    balance(client)
    os.kill(process.pid, signal.SIGSTOP)
    while not are_still([process.pid]):
        time.sleep(0.001)
    for _ in range(2):
        with pytest.raises(Unavailable, match=f"the gate at {said['address']} doesn't answer: it hangs") as refused:
            balance(client)
        assert (refused.value.code, refused.value.http_status) == ("gate_silent", 503)
    fresh = Client(client.profile)
    with pytest.raises(Unavailable, match=r"the gate at .* doesn't answer"):
        balance(fresh)
    os.kill(process.pid, signal.SIGCONT)
    for each in (client, fresh):
        until_it_answers(lambda each=each: balance(each))
        each.close()


def test_a_network_that_swallows_everything_is_noticed_and_nothing_is_booked_twice(either, house, relay, far):
    """Whether the call was lost on its way, or its answer was."""
    before = balance(far).free_uhs
    for lost in range(2):
        request_id = new_request_id()
        if lost:
            top_up(house.client(), request_id)  # it was carried out, and the answer vanished
        relay.cut()
        with pytest.raises(Unavailable) as refused:
            top_up(far, request_id)
        assert refused.value.code == "gate_silent"
        relay.mend()
        until_it_answers(lambda request_id=request_id: top_up(far, request_id))
    assert balance(far).free_uhs == before + 2_000_000


@pytest.mark.parametrize("how", ["reset", "late", "drip"])
def test_a_network_that_breaks_or_is_slow_is_waited_for(relay, far, how):
    before = balance(far).free_uhs
    relay.cut(how, late_s=0.3)
    mending = threading.Timer(1.5, relay.mend)
    mending.start()
    request_id = new_request_id()
    top_up(far, request_id)
    mending.join()
    top_up(far, request_id)
    assert balance(far).free_uhs == before + 1_000_000


def test_an_answer_that_takes_its_time_is_not_taken_for_silence(house, far):
    """A gate that is alive answers pings, however long it thinks."""
    asked, ask = [], house.port.ask

    async def slow(question):
        asked.append(question)
        await asyncio.sleep((keepalive.PING_MS + keepalive.PONG_MS) / 1_000 + 2)
        return await ask(question)

    balance(far)
    house.port.ask = slow
    assert balance(far).free_uhs > 0
    assert len(asked) == 1


def test_who_waits_for_a_job_hears_of_its_end_though_the_network_was_away(either, house, relay):
    """The stream it listens to has died without a word."""
    house.port.run_jobs = False
    with Fabric(Client(through(relay, house.profile(house.acme)))) as fabric:
        job = fabric.submit(pow, 2, 5, tokens="0.1", accelerators="H100:1")
        heard = []
        waiting = threading.Thread(target=lambda: heard.append(job.wait(FOR_EVER_S)))
        waiting.start()
        relay.cut()
        house.client().call(pb.CancelRequest(request_id=new_request_id(), job_id=job.id), pb.Accepted)
        while not relay.swallowed:
            time.sleep(0.01)
        relay.mend()
        waiting.join(100)
    assert heard == ["cancelled"]


async def test_a_board_that_falls_silent_ends_and_the_next_one_comes(house, relay, monkeypatch):
    monkeypatch.setattr(serving_ledger, "BOARD_S", 2.5)
    ledger = FabricClient(through(relay, house.profile(house.root)))
    try:
        boards = ledger.watch()
        await anext(boards)
        relay.cut()
        with pytest.raises(Unavailable) as ended:
            await anext(boards)
        assert ended.value.code == "gate_silent"
        with pytest.raises(Unavailable):
            await ledger.models()
        relay.mend()
        async with asyncio.timeout(100):
            while True:
                try:
                    async for _ in ledger.watch():
                        return
                except Unavailable:
                    await asyncio.sleep(0.1)
    finally:
        await ledger.close()


def test_a_door_lets_go_of_streams_whose_client_is_gone_without_a_word(make_house, monkeypatch):
    """They would count against their account for hours."""
    sooner = {"grpc.keepalive_time_ms": 300, "grpc.keepalive_timeout_ms": 300, "grpc.http2.ping_timeout_ms": 300}
    monkeypatch.setattr(grpc_server, "OPTIONS", tuple({**dict(grpc_server.OPTIONS), **sooner}.items()))
    house = make_house()
    with Relay(house.server.port) as relay:
        client = Client(through(relay, house.profile(house.acme)))
        stream = client.stream(pb.WatchJobsRequest(), pb.JobUpdate)
        listening = threading.Thread(target=lambda: until_it_ends(stream))
        listening.start()
        while not house.door.streams._open:
            time.sleep(0.01)
        relay.cut()
        while house.door.streams._open:
            time.sleep(0.01)
        stream.cancel()
        listening.join(60)
        client.close()
