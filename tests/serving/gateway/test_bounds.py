"""What a request may ask for: each limit holds on every surface, and what is beyond it reaches no replica."""

import asyncio
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import limits
from serving.gateway.admission import Pool
from serving.gateway.bodies import parse
from serving.gateway.bounds import Size, check, check_text
from serving.gateway.directory import Replica
from serving.gateway.fairness import QueueTicket
from serving.gateway.routes import ROUTES
from tests.serving.gateway.house import CHAT, STREAM

POSTS = [route for route in ROUTES if route.method == "POST"]
LONG = "a" * (limits.PATTERN_CHARS_MAX + 1)
WIDE = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(8_000)}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

# What is asked for, and how the answer calls it.
TOO_MUCH = [
    ({"n": limits.CHOICES_MAX + 1}, "n"),
    ({"n": 4_000}, "n"),
    ({"n": 10**400}, "n"),
    ({"best_of": 4_000}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"top_logprobs": 10_000}, "top_logprobs"),
    ({"prompt_logprobs": 100}, "prompt_logprobs"),
    ({"stop": ["x"] * (limits.STOPS_MAX + 1)}, "stop"),
    ({"stop": "x" * (limits.STOP_CHARS_MAX + 1)}, "stop"),
    ({"stop_sequences": ["x" * 5_000]}, "stop_sequences"),
    ({"stop_token_ids": list(range(1_000))}, "stop_token_ids"),
    ({"bad_words": ["x"] * 1_000}, "bad_words"),
    ({"logit_bias": {str(n): 1 for n in range(2_000)}}, "logit_bias"),
    ({"allowed_token_ids": list(range(5_000))}, "allowed_token_ids"),
    ({"tools": [TOOL] * (limits.TOOLS_MAX + 1)}, "tools"),
    ({"tools": [{**TOOL, "function": {"name": "f", "parameters": WIDE}}] * 3}, "tools"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": WIDE}}}, "grammar"),
    ({"structured_outputs": {"json": WIDE}}, "grammar"),
    ({"structured_outputs": {"choice": ["x" * 100] * 2_000}}, "grammar"),
    ({"structured_outputs": {"regex": LONG}}, "pattern"),
    ({"guided_regex": LONG}, "pattern"),
    ({"guided_grammar": "x" * 200_000}, "grammar"),
    ({"text": {"format": {"type": "json_schema", "name": "a", "schema": WIDE}}}, "grammar"),
    ({"text": {"format": {"type": "json_schema", "schema": {"items": [{"pattern": LONG}]}}}}, "pattern"),
    ({"output_config": {"format": {"schema": {"patternProperties": {LONG: {}}}}}}, "pattern"),
    ({"tools": [{"name": "f", "input_schema": {"properties": {"a": {"pattern": LONG}}}}]}, "pattern"),
]


@pytest.mark.parametrize(("asked", "named"), TOO_MUCH, ids=lambda value: str(value)[:60])
async def test_what_is_beyond_a_limit_is_told_number_and_limit_and_reaches_no_replica(house, asked, named):
    for route in POSTS:
        body = {"model": "tiny", "messages": [], "prompt": "x", "input": "x", **asked}
        async with house.post(route.path, body=body) as answer:
            said = (await answer.json())["error"]
            assert answer.status in {400, 413}, route.path
            assert said["code"] in {"limit_exceeded", "request_too_large", "grammar_too_large"} or (
                route.surface == "anthropic"
            )
            assert any(character.isdigit() for character in said["message"])
            assert named in said["message"]
    assert house.engine.requests == []


PROMPTS = [
    ("/v1/completions", "prompt", ["x"] * 1_025),
    ("/v1/completions", "prompt", [[1]] * 1_025),
    ("/v1/embeddings", "input", ["x"] * 1_025),
    ("/v2/embed", "texts", ["x"] * 1_025),
    ("/v1/chat/completions/batch", "messages", [[{"role": "user", "content": "x"}]] * 1_025),
    ("/tokenize", "prompt", ["x"] * 1_025),
]


@pytest.mark.parametrize(("path", "field", "prompts"), PROMPTS, ids=[f"{path} {name}" for path, name, _ in PROMPTS])
async def test_a_list_of_prompts_is_bounded_and_with_n_both_together_are(house, path, field, prompts):
    async with house.post(path, body={"model": "tiny", field: prompts}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "limit_exceeded")
    async with house.post(path, body={"model": "tiny", field: prompts[:100], "n": 20}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "limit_exceeded")
    assert house.engine.requests == []


async def test_n_beyond_what_a_replica_writes_at_once_is_refused(house):
    house.directory.show(Replica(replica_id="r1", model="tiny", address="http://127.0.0.1:9", capacity=16))
    await house.settled(lambda: house.gateway.pools.of("tiny", "ann")[0].widest == 16)
    async with house.post(body={**CHAT, "n": 17}) as answer:
        said = (await answer.json())["error"]
        assert (answer.status, said["code"], said["fabric"]["limit"]) == (400, "limit_exceeded", 16)


ROUTE = next(route for route in ROUTES if route.path == "/v1/completions")


def test_a_prompt_of_token_ids_is_one_and_lists_of_them_are_several():
    for prompt, count in [("x", 1), ([1, 2, 3], 1), (["a", "b"], 2), ([[1, 2], [3]], 2), ([], 1), (None, 1)]:
        assert check({"prompt": prompt, "n": 2}, ROUTE, body_bytes=9) == Size(2, count)


@given(
    st.recursive(
        st.none() | st.integers(max_value=20) | st.text(max_size=3),
        lambda each: st.lists(each, max_size=3),
        max_leaves=9,
    )
)
def test_whatever_is_in_a_field_the_bounds_are_counted_or_told(value):
    names = (
        "n",
        "prompt",
        "stop",
        "tools",
        "logit_bias",
        "response_format",
        "best_of",
        "structured_outputs",
        "logprobs",
    )
    for name in names:
        assert check({name: value}, ROUTE, body_bytes=9).sequences >= 1


async def test_what_nobody_pays_for_is_bounded_in_bytes_and_at_once(house):
    for path in ("/tokenize", "/detokenize", "/v1/messages/count_tokens"):
        async with house.post(path, body={"model": "tiny", "prompt": "x" * (limits.COUNTED_BYTES_MAX + 1)}) as answer:
            assert answer.status == 413, path
    statuses = []
    for _ in range(5):
        async with house.post("/tokenize", body={"model": "tiny", "prompt": "x" * (1_000 << 10)}) as answer:
            statuses.append(answer.status)
            if answer.status == 429:
                assert (await answer.json())["error"]["code"] == "too_much_counted"
                assert answer.headers["retry-after"]
    assert statuses[:2] == [200, 200]
    assert 429 in statuses
    async with house.post() as answer:
        assert answer.status == 200, "answers are another matter"


def pool_of(*capacities):
    pool = Pool(monotonic=lambda: 0.0)
    pool.update(
        [Replica(replica_id=f"r{n}", model="m", address="a", capacity=each) for n, each in enumerate(capacities)]
    )
    return pool


async def test_a_request_takes_as_many_seats_as_answers_are_written_for_it():
    pool = pool_of(16)
    wide = pool.seat_now(QueueTicket("ann", rank=2, cost=1, sequences=16, apart=16), ())
    assert wide.width == 16
    narrow = [pool.seat_now(QueueTicket("bob", rank=2, cost=1), ()) for _ in range(3)]
    assert [seat is not None for seat in narrow] == [True, True, False]
    wide.leave()
    assert pool.seat_now(QueueTicket("bob", rank=2, cost=1), ()) is not None


async def test_a_long_list_of_prompts_leaves_half_of_a_replica_to_others():
    pool = pool_of(16)
    assert pool.seat_now(QueueTicket("ann", rank=2, cost=1, sequences=1_000), ()).width == 9
    assert all(pool.seat_now(QueueTicket("bob", rank=2, cost=1), ()) for _ in range(9))


async def test_who_needs_many_seats_gets_them_though_others_need_few():
    pool = pool_of(4)
    seats = [pool.seat_now(QueueTicket("bob", rank=2, cost=1), ()) for _ in range(5)]
    wide = asyncio.ensure_future(pool.wait(QueueTicket("ann", rank=2, cost=1, sequences=4, apart=4), ()))
    await asyncio.sleep(0)
    later = [asyncio.ensure_future(pool.wait(QueueTicket("bob", rank=2, cost=1), ())) for _ in range(8)]
    await asyncio.sleep(0)
    for seat in seats[:4]:
        seat.leave()
    await asyncio.sleep(0)
    assert wide.done()
    assert sum(each.done() for each in later) <= 1
    wide.result().leave()
    for _ in range(9):
        await asyncio.sleep(0)
        for each in later:
            if each.done():
                each.result().leave()
    assert all(each.done() for each in later)


async def test_whose_turn_it_is_may_leave_and_the_next_is_seated():
    pool = pool_of(4)
    seats = [pool.seat_now(QueueTicket("bob", rank=2, cost=1), ()) for _ in range(5)]
    wide = asyncio.ensure_future(pool.wait(QueueTicket("ann", rank=2, cost=7, sequences=4, apart=4), ()))
    await asyncio.sleep(0)
    seats[0].leave()
    other = asyncio.ensure_future(pool.wait(QueueTicket("cem", rank=2, cost=1), ()))
    await asyncio.sleep(0)
    assert not other.done()
    wide.cancel()
    await asyncio.wait([wide, other], timeout=10)
    assert other.done()
    assert pool.waiting == 0


async def test_a_replica_is_told_how_many_prompts_may_be_in_the_engine_at_a_time(house):
    asked = {"model": "tiny", "prompt": ["x"] * 300, "n": 2, "max_tokens": 1}
    async with house.post("/v1/completions", body=asked) as answer:
        assert answer.status == 200
    assert house.engine.requests[-1][1]["x-fabric-at-once"] == "18"
    async with house.post(body=STREAM) as answer:
        assert answer.status == 200
    assert house.engine.requests[-1][1]["x-fabric-at-once"] == "1"


CONTEXT = 20_000
LETTERS = "x" * (CONTEXT * limits.CHARS_PER_TOKEN_MAX + 1)
PART = {"type": "text", "text": LETTERS}
TOO_LONG = [
    {"prompt": LETTERS, "input": LETTERS, "messages": [{"role": "user", "content": LETTERS}]},
    {"prompt": [LETTERS], "input": [LETTERS], "messages": [{"role": "user", "content": [PART]}]},
    {"prompt": [LETTERS[:-9], 1], "input": [{"role": "user", "content": [PART]}], "messages": [{"content": [PART, LETTERS]}]},
    {"system": LETTERS, "instructions": LETTERS, "documents": [PART], "messages": [], "prompt": "x", "input": "x"},
]  # fmt: skip


@pytest.mark.parametrize("asked", TOO_LONG, ids=range(len(TOO_LONG)))
@pytest.mark.parametrize("shortened", [{}, {"truncate_prompt_tokens": 4}, {"truncate_prompt_tokens": -1}], ids=str)
async def test_a_text_that_can_never_fit_is_not_made_tokens(house, asked, shortened):
    facts = house.directory.models["tiny"]
    house.directory.models["tiny"] = msgspec.structs.replace(facts, max_context=CONTEXT)
    house.directory.change()
    await house.settled(lambda: house.gateway.board.models["tiny"].max_context == CONTEXT)
    refused, metered = 0, [route for route in POSTS if route.metered]
    for route in metered:
        async with house.post(route.path, body={"model": "tiny", "max_tokens": 1, **asked, **shortened}) as answer:
            refused += answer.status == 413
            if answer.status == 413:
                assert (await answer.json())["error"]["message"]
    assert refused >= 5
    assert all(len(str(body)) < len(LETTERS) for _, _, body in house.engine.requests)


def test_a_text_that_may_be_shortened_and_one_for_each_prompt_pass():
    check_text({"input": "x" * limits.CHARS_ALWAYS}, Size(1, 1), max_context=512)
    check_text({"prompt": [LETTERS[:-1]] * 12}, Size(3, 12), max_context=CONTEXT)
    check_text({"prompt": LETTERS}, Size(1, 1), max_context=None)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + LETTERS}}
    check_text(
        {"messages": [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}]},
        Size(1, 1),
        max_context=9,
    )
    check_text({"prompt": [1] * 10**6}, Size(1, 1), max_context=9)


PARTS = [
    {"messages": [{"role": "user", "content": "a"}] * 30_000}, {"messages": [{"role": "user", "content": ["a"] * 70_000}]},
    {"metadata": {str(n): "a" for n in range(70_000)}}, {"input": [[]] * 70_000}, {"prompt": [None] * 70_000},
]  # fmt: skip


@pytest.mark.parametrize("asked", PARTS, ids=lambda asked: f"{next(iter(asked))}")
async def test_no_request_has_more_parts_than_an_event_loop_can_walk(house, asked):
    for route in POSTS:
        async with house.post(route.path, body={"model": "tiny", **asked}) as answer:
            said = (await answer.json())["error"]
            assert answer.status == 400
            assert str(limits.VALUES_MAX) in said["message"]
    assert not house.engine.requests


def test_a_prompt_of_many_tokens_is_few_parts():
    assert len(parse(json.dumps({"prompt": list(range(200_000))}).encode())["prompt"]) == 200_000
