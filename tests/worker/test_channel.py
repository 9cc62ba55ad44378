"""The line between the gate and a runner: what it carries, whom it lets in, and that it is never the only way."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from fabric.cluster import dispatch as orders_module
from fabric.cluster.dispatch import carry_out
from fabric.gate.events import LeaseOutcome
from fabric.gate.instructions import Share
from fabric.worker.channel import BYTES_MAX, KEY_BYTES, STRANGERS_MAX, Address, Broken, Line, Listener
from fabric.worker.runner import Order, decode_end, decode_order, encode_end, encode_order
from fabric.worker.stage import JobEnd, Save
from tests.worker.leases import lease_of

HOST = "127.0.0.1"
ENDED = JobEnd(outcome=LeaseOutcome.SUCCEEDED, result_ref="inline:gAVLAS4=", saves=(Save(1, 2, 3),), reusable=True)
BY_RAY = JobEnd(outcome=LeaseOutcome.SAVED)
ORDER = Order(
    lease=lease_of(shares=(Share("h1", 2),)),
    rank=0,
    master_addr=HOST,
    master_port=1,
    work_dir="work",
)


async def echo(question):
    return b"heard " + question


@pytest.fixture(autouse=True)
async def _closed(monkeypatch):
    """Both ends of every line, when a test is over."""
    opened, listening, serve = [], [], asyncio.start_server

    async def open_connection(*where):
        opened.append(await asyncio.streams.open_connection(*where))
        return opened[-1]

    async def start_server(*arguments):
        listening.append(await serve(*arguments))
        return listening[-1]

    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    monkeypatch.setattr(asyncio, "start_server", start_server)
    yield
    for each in (*(writer for _, writer in opened), *listening):
        each.close()
        with contextlib.suppress(ConnectionResetError):
            await each.wait_closed()
    await asyncio.sleep(0.01)


@pytest.fixture
async def address():
    return await Listener(echo).address(HOST)


async def test_a_question_gets_its_answer_and_the_next_one_too(address):
    line = await Line.open(address)
    assert [await line.ask(b"one"), await line.ask(b"")] == [b"heard one", b"heard "]


async def test_who_does_not_know_the_key_is_told_nothing(address):
    line = await Line.open(Address(host=HOST, port=address.port, key=b"x" * KEY_BYTES))
    with pytest.raises(Broken):
        await line.ask(b"one")
    assert not line.is_free


async def test_a_line_that_cannot_be_opened_is_none(address, unused_tcp_port):
    assert await Line.open(None) is None
    assert await Line.open(Address(host=HOST, port=unused_tcp_port, key=address.key)) is None


async def test_there_is_no_line_where_rays_connections_are_encrypted(monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    assert await Listener(echo).address(HOST) is None


async def test_many_who_show_no_key_are_few_at_once_and_the_gate_gets_in(address):
    strangers = [await asyncio.open_connection(HOST, address.port) for _ in range(3 * STRANGERS_MAX)]
    line = await Line.open(address)
    assert await line.ask(b"one") == b"heard one"
    assert sum(not reader.at_eof() for reader, _ in strangers) <= STRANGERS_MAX
    assert await line.ask(b"two") == b"heard two"


async def test_a_key_is_not_shown(address):
    assert str(address.key) not in repr(address)


async def test_a_question_that_is_given_up_closes_the_line_so_that_no_answer_goes_to_another():
    async def never(_):
        await asyncio.Event().wait()

    listener = Listener(never)
    line = await Line.open(await listener.address(HOST))
    asking = line.ask(b"one")
    await asyncio.sleep(0.01)
    assert not line.is_free
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not line.is_free


async def test_what_is_too_long_breaks_the_line():
    async def much(_):
        return bytes(BYTES_MAX + 1)

    listener = Listener(much)
    line = await Line.open(await listener.address(HOST))
    with pytest.raises(Broken):
        await line.ask(b"one")


def test_orders_and_ends_come_out_as_they_went_in():
    assert decode_order(encode_order(ORDER)) == ORDER
    assert decode_end(encode_end(ENDED)) == ENDED


# -- orders --------------------------------------------------------------------------------------------------------------


class Runner:
    """A runner's actor as Ray shows it, and the runner at the other end of its line."""

    def __init__(self, say):
        self.say = say
        self.over_ray, self.by_line = [], []
        self.asked_over_ray = asyncio.Event()
        self.ray_knows = asyncio.get_running_loop().create_future()
        self.run = SimpleNamespace(remote=self._remote)

    def _remote(self, order):
        self.over_ray.append(order)
        self.asked_over_ray.set()
        return self.ray_knows

    async def answer(self, question):
        self.by_line.append(decode_order(question))
        return await self.say()


@pytest.fixture
async def seat():
    """Makes a runner that says something by its line."""

    async def make(say, *, line=True):
        runner = Runner(say)
        found = await Line.open(await Listener(runner.answer).address(HOST)) if line else None
        return runner, SimpleNamespace(actor=runner, line=found)

    return make


async def test_an_order_goes_by_the_line_and_ray_is_left_alone(seat):
    async def end():
        return encode_end(ENDED)

    runner, seated = await seat(end)
    assert await carry_out(ORDER, seated) == ENDED
    assert await carry_out(ORDER, seated) == ENDED
    assert (runner.by_line, runner.over_ray) == ([ORDER, ORDER], [])


async def test_an_order_goes_over_ray_where_there_is_no_line(seat):
    runner, seated = await seat(None, line=False)
    runner.ray_knows.set_result(BY_RAY)
    assert await carry_out(ORDER, seated) == BY_RAY


@pytest.mark.parametrize("said", [b"no end at all", None])
async def test_what_a_broken_line_leaves_open_is_asked_over_ray(seat, said):
    async def end():
        if said is None:
            raise ValueError("it has no encoding")
        return said

    runner, seated = await seat(end)
    runner.ray_knows.set_result(BY_RAY)
    assert await carry_out(ORDER, seated) == BY_RAY
    assert runner.by_line == runner.over_ray == [ORDER]


async def test_a_silent_line_is_not_believed_for_ever(seat, monkeypatch):
    monkeypatch.setattr(orders_module, "LINE_ALONE_S", 0.01)

    async def never():
        await asyncio.Event().wait()

    runner, seated = await seat(never)
    runner.ray_knows.set_exception(ConnectionError("the node has died"))
    with pytest.raises(ConnectionError, match="died"):
        await carry_out(ORDER, seated)
    assert not seated.line.is_free


async def test_of_a_long_job_the_line_may_still_be_the_first_to_tell(seat, monkeypatch):
    monkeypatch.setattr(orders_module, "LINE_ALONE_S", 0.01)

    async def later():
        await runner.asked_over_ray.wait()
        return encode_end(ENDED)

    runner, seated = await seat(later)
    assert await carry_out(ORDER, seated) == ENDED
    assert runner.over_ray == [ORDER]
    assert seated.line.is_free
