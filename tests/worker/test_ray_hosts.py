"""Where the ranks of a program meet: who knows the attempt's word is told, and whoever doesn't holds nothing."""

import contextlib
import socket
import threading
import time

import msgspec
import pytest

from fabric.system.messages import Talk
from fabric.worker.ray_hosts import STRANGERS_MAX, Head, Hello, Meeting, Said, new_word, ring

HEAD = Head(address="127.0.0.1:1", token="t" * 64, folder="/tmp/x")
WORD = new_word()
DECODE = msgspec.msgpack.Decoder(Said).decode


@pytest.fixture
def meeting(unused_tcp_port, tmp_path):
    bell = tmp_path / "bell"
    with contextlib.closing(Meeting(port=unused_tcp_port, word=WORD, bell=bell)):
        yield unused_tcp_port, str(bell)


@pytest.fixture
def connect(meeting):
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(("127.0.0.1", meeting[0]), 20))


def rank_threads():
    return sum(thread.name == "fabric-rank" for thread in threading.enumerate())


def test_a_rank_that_knows_the_word_hears_where_the_head_is(meeting, connect):
    rank = Talk(connect(), DECODE)
    rank.say(Hello(word=WORD))
    ring(meeting[1], HEAD)
    assert rank.hear() == HEAD


def test_a_rank_that_does_not_know_the_word_hears_nothing(meeting, connect):
    stranger = Talk(connect(), DECODE)
    stranger.say(Hello(word=new_word()))
    ring(meeting[1], HEAD)
    assert stranger.hear() is None


def test_many_who_say_nothing_are_few_at_once_and_a_rank_gets_in(meeting, connect):
    for _ in range(3 * STRANGERS_MAX):
        connect()
    rank = Talk(connect(), DECODE)
    rank.say(Hello(word=WORD))
    ring(meeting[1], HEAD)
    assert rank.hear() == HEAD
    deadline = time.monotonic() + 30
    while rank_threads() > STRANGERS_MAX + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert rank_threads() <= STRANGERS_MAX + 1


def test_a_word_beyond_what_ranks_say_is_not_taken_in(connect):
    stranger = connect()
    stranger.sendall((2**25).to_bytes(4, "big") + b"x")
    with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(1) == b""
