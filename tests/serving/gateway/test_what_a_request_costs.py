"""What is looked at or written once for a request, and what of it needs no look: the same is refused all the same."""

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.api.connections import Sockets
from fabric.errors import InvalidRequest
from serving.gateway import bodies, bounds, media
from serving.gateway.bounds import Size, check_text
from serving.gateway.refusals import TooLarge
from serving.http_server import _JOINED_BYTES_MAX, Held
from serving.limits import DEPTH_MAX
from tests.serving.gateway.house import STREAM

LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3) | st.just("http://a.example/b")
NAMES = st.sampled_from(
    ["type", "text", "content", "url", "image_url", "image", "source", "input", "arguments", "schema", "uuid", "x"]
)
VALUES = st.recursive(
    LEAVES | st.just("tool_use") | st.just("input_image"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=30,
)


class Wire:
    """A transport that counts writes."""

    def __init__(self):
        self.written = []
        self.closed = False

    def write(self, data):
        assert not self.closed
        self.written.append(bytes(data))

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed


def verdict(check, *args, **more):
    try:
        check(*args, **more)
    except (InvalidRequest, TooLarge) as error:
        return error.code
    return None


@given(VALUES, st.integers(1, 12), st.integers(0, 4))
def test_a_body_that_is_too_small_to_be_walked_would_pass_the_walk(value, most, depth):
    body = {"messages": value}
    raw = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "VALUES_MAX", most)
        patch.setattr(bodies, "DEPTH_MAX", depth)
        if bodies._is_small(raw):
            assert verdict(bodies._check_shape, body) is None


def test_a_body_one_level_too_deep_is_refused_however_short_it_is():
    for levels, refused in ((DEPTH_MAX - 1, None), (DEPTH_MAX, "invalid_json")):
        assert verdict(bodies.parse, b'{"a":' + b"[" * levels + b"]" * levels + b"}") == refused


@given(st.dictionaries(st.sampled_from(["prompt", "input", "messages", "system"]), VALUES), st.integers(0, 40))
def test_a_text_is_too_long_or_not_whether_its_bytes_are_known_or_not(body, most):
    raw = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds.limits, "CHARS_ALWAYS", most)
        known = verdict(check_text, body, Size(1, 1), max_context=0, body_bytes=len(raw))
        assert known == verdict(check_text, body, Size(1, 1), max_context=0)


def _as_walked_before(part, field):
    """What media are, by looking for every name in every part."""
    if isinstance(part, list):
        return [said for inner in part for said in _as_walked_before(inner, field)]
    if not isinstance(part, dict):
        return []
    inner = [inner for name, inner in part.items() if media._is_walked(name, part)]
    return [media._is_medium(part, field), *(said for each in inner for said in _as_walked_before(each, field))]


@given(st.dictionaries(st.sampled_from(["messages", "input", "tools", "metadata", "x"]), VALUES))
def test_media_are_found_wherever_they_are(body):
    def check():
        for field, whole in body.items():
            if field not in media._DATA:
                _as_walked_before(whole, field)

    assert (verdict(media.check, body) is None) == (verdict(check) is None)


def test_head_and_body_of_an_answer_leave_in_one_write():
    wire = Wire()
    held = Held(wire)
    held.write(b"HTTP/1.1 200 OK\r\n\r\n")
    held.write(b"{}")
    assert wire.written == []
    assert held.let_go() is wire
    assert wire.written == [b"HTTP/1.1 200 OK\r\n\r\n{}"]


def test_a_long_body_is_not_copied_and_nothing_held_is_lost_at_a_close():
    wire = Wire()
    held = Held(wire)
    held.write(b"head")
    held.write(b"x" * _JOINED_BYTES_MAX)
    held.close()
    assert wire.written == [b"head", b"x" * _JOINED_BYTES_MAX]
    assert held.is_closing()


def test_a_socket_is_asked_once_who_is_at_its_other_end():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sockets = Sockets(port)
        asked = []
        ask = sockets._ask
        sockets._ask = lambda descriptor: asked.append(descriptor) or ask(descriptor)
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as taken:
            assert [each.peer for each in sockets.look()] == [client.getsockname()]
            assert [each.descriptor for each in sockets.look()] == [taken.fileno()]
            assert asked.count(taken.fileno()) == 1
        assert sockets.look() == []


async def test_a_client_that_leaves_after_a_long_body_ends_the_work(house):
    house.engine.token_s = 0.02
    text = "word " * 20_000  # beyond what a server reads ahead
    async with house.post(
        body={**STREAM, "max_tokens": 10_000, "messages": [{"role": "user", "content": text}]}
    ) as answer:
        if answer.status != 200:
            pytest.fail(await answer.text())
        await answer.content.readany()
        call = answer.headers["x-fabric-call"]
        answer.close()
    await house.settled(lambda: house.engine.ended.get(call) == "client_gone")
