"""The same claims as of gRPC's own library, for a client that is installed without it."""

import threading
from dataclasses import replace

import pytest

from fabric.client.client import Client, new_request_id
from fabric.errors import InvalidConfig, Unavailable
from fabric.transport import choice, http2
from fabric.wire import fabric_pb2 as pb
from tests.doors.test_account_limits import *  # noqa: F403
from tests.doors.test_blobs import *  # noqa: F403
from tests.doors.test_rpc import *  # noqa: F403
from tests.doors.test_sdk import *  # noqa: F403
from tests.doors.test_streams import *  # noqa: F403
from tests.doors.test_tls import *  # noqa: F403


@pytest.fixture(autouse=True)
def no_grpcio(monkeypatch):
    monkeypatch.setattr(choice, "has_grpcio", lambda: False)


def test_a_client_without_grpcio_speaks_http2_itself(house):
    assert isinstance(house.client()._channel, http2.Channel)


def test_a_blob_larger_than_any_window_goes_up_and_comes_down_whole(house):
    client, data = house.client(), bytes(range(256)) * 100_000
    job = house.fabric().submit(lambda x: x, data, tokens=1)
    assert job.result(60) == data
    assert client.put_blob(data) == client.put_blob(data)


def test_many_threads_share_one_connection(house):
    client, answers = house.client(), []

    def ask():
        answers.extend(client.call(pb.BalanceRequest(), pb.BalanceReply).account_id for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == ["acme"] * 160


def test_a_door_that_came_back_is_connected_to_anew(make_house):
    house = make_house()
    client = house.client()
    assert client.call(pb.BalanceRequest(), pb.BalanceReply).account_id == "acme"
    lost = client._channel._connection
    client._channel._loop.call_soon_threadsafe(lost._transport.abort)
    assert client.call(pb.BalanceRequest(), pb.BalanceReply).account_id == "acme"
    assert client._channel._connection is not lost


def test_a_door_that_goes_ends_what_is_waited_for_as_unavailable(house):
    client = house.client()
    stream = client.stream(pb.WatchJobsRequest(), pb.JobUpdate)
    next(stream)
    client._channel._loop.call_soon_threadsafe(client._channel._connection._transport.abort)
    with pytest.raises(Unavailable):
        next(stream)


def test_a_stream_is_ended_from_another_thread(house):
    stream = house.client().stream(pb.WatchJobsRequest(), pb.JobUpdate)
    next(stream)
    threading.Timer(0.2, stream.cancel).start()
    with pytest.raises(Unavailable, match="cancelled"):
        next(stream)


def test_an_answer_that_is_read_slowly_waits_at_the_door(house):
    """No more of it is in memory than is unread at most, and all of it arrives."""
    client = house.client()
    job = house.fabric().submit(lambda: None, tokens=1)
    job.wait(20)
    house.port.log_lines[job.id] = b"x" * (1 << 20)
    pieces = [len(chunk.data) for chunk in client.logs(job.id)]
    assert sum(pieces) == 1 << 20


def test_no_answer_in_time_ends_the_call_and_the_connection_stays(house, monkeypatch):
    monkeypatch.setattr("fabric.client.client._ATTEMPTS", 1)
    client, going = house.client(), threading.Event()
    client.call(pb.BalanceRequest(), pb.BalanceReply)
    connection, before = client._channel._connection, house.port.decide

    async def never(events):
        while not going.is_set():
            await http2.asyncio.sleep(0.05)
        return await before(events)

    house.port.decide = never
    with pytest.raises(Unavailable, match="in time"):
        client.call(pb.TopUpRequest(request_id=new_request_id(), amount_uhs=1), pb.Accepted, timeout_s=0.3)
    going.set()
    house.port.decide = before
    assert client.call(pb.BalanceRequest(), pb.BalanceReply).account_id == "acme"
    assert client._channel._connection is connection


def test_a_ca_file_without_a_certificate_is_told(house, tmp_path):
    (tmp_path / "no.pem").write_text("hello")
    with pytest.raises(InvalidConfig, match="no certificate"):
        Client(replace(house.profile(house.acme), ca=str(tmp_path / "no.pem")))
