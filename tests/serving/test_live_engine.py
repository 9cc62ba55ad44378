"""The real engine, metered: exact on every surface, refused before it starts, cut at the last paid token."""

import asyncio
import concurrent.futures
import itertools
import os
import signal
import time

import httpx
import openai
import psutil
import pytest

from .rig import CACHED, IN, OUT, TRUST

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

TEXT = "def main(argument):"
PROMPT = len(TEXT) + 1
ASK = {"model": "byte-lm", "prompt": TEXT, "ignore_eos": True, "temperature": 0}
CHAT = {"model": "byte-lm", "messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "temperature": 0}
CHAT_PROMPT = len("user: hi\nassistant: ") + 1
USAGE = {"stream": True, "stream_options": {"include_usage": True}}

# (path, body that wants `n` tokens, prompt tokens)
SURFACES = {
    "chat": ("/v1/chat/completions", lambda n: CHAT | {"max_tokens": n}, CHAT_PROMPT),
    "completions": ("/v1/completions", lambda n: ASK | {"max_tokens": n}, PROMPT),
    "responses": (
        "/v1/responses",
        lambda n: {"model": "byte-lm", "input": "hi", "temperature": 0, "max_output_tokens": n, "store": False},
        CHAT_PROMPT + 1,  # vLLM puts a <s> of its own before the template's
    ),
    "messages": (
        "/v1/messages",
        lambda n: {"model": "byte-lm", "messages": CHAT["messages"], "max_tokens": n},
        CHAT_PROMPT,
    ),
}


def test_an_engine_starts_without_an_error_in_its_log(rig):
    started = rig.lines[: next(at for at, line in enumerate(rig.lines) if line.startswith("serving "))]
    assert [line for line in started if " ERROR " in line] == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("surface", SURFACES)
def test_without_tokens_every_surface_answers_402_before_anything_is_sent(rig, surface, stream):
    path, body, prompt = SURFACES[surface]
    account = rig.account(uhs=prompt * IN + OUT - 1)
    answer = rig.post(path, account, body(8) | {"stream": stream})
    assert answer.status_code == 402
    error = answer.json()["error"]
    assert "top up" in error["message"]
    if surface == "messages":
        assert error["type"] == "billing_error"
    else:
        assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
        assert error["fabric"]["needed_uhs"] == prompt * IN + OUT
    assert rig.free_again(account) == prompt * IN + OUT - 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("surface", SURFACES)
def test_every_surface_is_cut_at_exactly_the_last_paid_token(rig, surface, stream):
    path, body, prompt = SURFACES[surface]
    account = rig.account(prompt=prompt, completion=7)
    if stream:
        assert len(list(rig.events(path, account, body(40) | {"stream": True}))) > 1
    else:
        assert rig.post(path, account, body(40)).status_code == 200
    (call,) = rig.settled(account)
    assert (call.usage.prompt_tokens, call.usage.completion_tokens, call.ended) == (prompt, 7, "balance_exhausted")
    assert rig.ledger.free[account] == 0


def test_a_cut_stream_says_so_and_ends_in_order(rig):
    account = rig.account(prompt=PROMPT, completion=7)
    *chunks, end, usage, done = rig.events("/v1/completions", account, ASK | USAGE | {"max_tokens": 40})
    assert done == "[DONE]"
    assert usage["usage"]["completion_tokens"] == 7
    assert (end["choices"][0]["finish_reason"], end["choices"][0]["stop_reason"]) == ("length", "balance_exhausted")
    rich = rig.account(prompt=PROMPT, completion=40)
    whole = rig.post("/v1/completions", rich, ASK | {"max_tokens": 7}).json()["choices"][0]["text"]
    assert "".join(chunk["choices"][0]["text"] for chunk in [*chunks, end]) == whole


def test_strict_clients_get_an_error_event_after_the_usage(rig):
    account = rig.account(prompt=PROMPT, completion=3)
    events = list(rig.events("/v1/completions", account, ASK | USAGE | {"max_tokens": 40}, strict="1"))
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "insufficient_quota"
    assert events[-3]["usage"]["completion_tokens"] == 3


def test_what_is_wanted_and_paid_is_given_and_the_rest_goes_back(rig):
    account = rig.account(uhs=10_000_000)
    answer = rig.post("/v1/chat/completions", account, CHAT | {"max_tokens": 9}, call_id="call_of_nine")
    assert answer.headers["x-fabric-call"] == "call_of_nine"
    charged = int(answer.headers["x-fabric-charged-uhs"])
    assert charged == CHAT_PROMPT * IN + 9 * OUT
    assert int(answer.headers["x-fabric-free-uhs"]) == 10_000_000 - charged
    (call,) = rig.settled(account)
    assert (call.call_id, call.key_id, call.ended, call.rate_version) == (
        "call_of_nine", f"key-of-{account}", "length", 1,
    )  # fmt: skip
    assert rig.ledger.free[account] == 10_000_000 - CHAT_PROMPT * IN - 9 * OUT


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_share_one_balance(rig, stream):
    account = rig.account(prompt=PROMPT, completion=20)
    body = ASK | {"max_tokens": 50, "n": 3, "temperature": 1, "seed": 1}
    if stream:
        chunks = [event for event in rig.events("/v1/completions", account, body | USAGE) if event != "[DONE]"]
        ends = {c["index"]: c["finish_reason"] for e in chunks for c in e["choices"] if c["finish_reason"]}
        assert ends == {0: "length", 1: "length", 2: "length"}
        assert chunks[-1]["usage"]["completion_tokens"] == 20
    else:
        answer = rig.post("/v1/completions", account, body).json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
        assert answer["usage"]["completion_tokens"] == 20
    (call,) = rig.settled(account)
    assert call.usage.completion_tokens == 20


def test_a_list_of_prompts_is_as_many_calls_and_those_without_tokens_stay_empty(rig):
    account = rig.account(prompt=2 * PROMPT, completion=8)
    answer = rig.post("/v1/completions", account, ASK | {"prompt": [TEXT] * 6, "max_tokens": 4})
    assert answer.status_code == 200
    choices = answer.json()["choices"]
    assert len(choices) == 6
    calls = [c for c in rig.ledger.calls.values() if c.account_id == account] or rig.settled(account, calls=2)
    assert rig.ledger.free[account] >= 0
    assert 1 <= len(calls) <= 6


def test_a_stop_string_ends_the_call_at_what_the_engine_produced(rig):
    rich = rig.account(uhs=10_000_000)
    text = rig.post("/v1/completions", rich, ASK | {"max_tokens": 30}).json()["choices"][0]["text"]
    stop = text[10:12]
    account = rig.account(uhs=10_000_000)
    answer = rig.post("/v1/completions", account, ASK | {"max_tokens": 30, "stop": stop}).json()
    (call,) = rig.settled(account)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert call.usage.completion_tokens == answer["usage"]["completion_tokens"] < 30
    assert call.ended == "stop"


def test_cached_prompt_tokens_are_exact_and_cheaper(rig):
    account = rig.account(uhs=10_000_000)
    long = "".join(chr(97 + n % 26) for n in range(320))
    body = ASK | {"prompt": long, "max_tokens": 1}
    for _ in range(2):
        answer = rig.post("/v1/completions", account, body).json()
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == 256
    _, second = sorted(rig.settled(account, calls=2), key=lambda call: call.started_at_us)
    assert second.usage.cached_tokens == 256
    assert rig.ledger.charged[second.call_id] == (321 - 256) * IN + 256 * CACHED + OUT


def test_a_top_up_while_it_streams_extends_it(rig):
    account = rig.account(prompt=PROMPT, completion=60)
    seen = 0
    for event in rig.events("/v1/completions", account, ASK | USAGE | {"max_tokens": 200}):
        if event != "[DONE]" and event["choices"]:
            seen += 1
            if seen == 5:
                with rig.wire.lock:
                    rig.ledger.top_up(account, 1_000 * OUT)
    (call,) = rig.settled(account)
    assert (call.usage.completion_tokens, call.ended) == (200, "length")


def test_a_client_that_leaves_pays_what_it_was_given(rig):
    account = rig.account(uhs=10_000_000)
    stream = rig.events("/v1/completions", account, ASK | {"stream": True, "max_tokens": 400})
    assert len(list(itertools.islice(stream, 12))) == 12
    stream.close()
    (call,) = rig.settled(account)
    assert call.ended == "client_gone"
    assert 12 <= call.usage.completion_tokens < 400
    until = time.monotonic() + 10
    while rig.counter("num_requests_running") and time.monotonic() < until:
        time.sleep(0.1)
    assert rig.counter("num_requests_running") == 0


def test_sixteen_at_once_spend_one_balance_to_the_token_and_never_more(rig):
    account = rig.account(prompt=16 * PROMPT, completion=500)

    def one(number):
        body = ASK | {"max_tokens": 100, "temperature": 1, "seed": number}
        if number % 2:
            return rig.post("/v1/completions", account, body | {"stream": True}).status_code
        return rig.post("/v1/completions", account, body).status_code

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert set(pool.map(one, range(16))) <= {200, 402}
    until = time.monotonic() + 15
    while rig.ledger.held(account) and time.monotonic() < until:
        time.sleep(0.1)
    calls = [call for call in rig.ledger.calls.values() if call.account_id == account]
    spent = sum(c.usage.prompt_tokens * IN + c.usage.completion_tokens * OUT for c in calls)
    assert rig.ledger.held(account) == 0
    assert 0 <= rig.ledger.free[account] == 16 * PROMPT * IN + 500 * OUT - spent
    assert rig.ledger.free[account] < 40 * OUT


def test_what_was_settled_is_what_the_engine_counted(rig):
    before = {name: rig.counter(name) for name in ("prompt_tokens_total", "generation_tokens_total")}
    account = rig.account(uhs=50_000_000)
    for number in range(6):
        rig.post("/v1/completions", account, ASK | {"max_tokens": 5 + number, "n": 1 + number % 2, "temperature": 1})
    calls = rig.settled(account, calls=6)
    counted = {name: rig.counter(name) - was for name, was in before.items()}
    assert sum(call.usage.completion_tokens for call in calls) == counted["generation_tokens_total"]
    assert sum(call.usage.prompt_tokens for call in calls) + 3 * PROMPT == counted["prompt_tokens_total"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (ASK | {"max_tokens": -1}, 400),
        (ASK | {"max_tokens": 0}, 400),
        (ASK | {"max_tokens": 100_000}, 400),
        (ASK | {"max_tokens": 4, "logprobs": 10_000}, 400),
        (ASK | {"max_tokens": 4, "structured_outputs": {"regex": "("}}, 400),
        (ASK | {"prompt": "x" * 600}, 400),
        (ASK | {"use_beam_search": True, "n": 2, "max_tokens": 4}, 400),
        (ASK | {"model": "another"}, 404),
        ("not json", 400),
    ],
    ids=[
        "negative",
        "none",
        "beyond the context",
        "too many logprobs",
        "no grammar",
        "longer than the context",
        "beam search",
        "unknown model",
        "no object",
    ],
)
def test_what_is_refused_costs_nothing(rig, body, status):
    account = rig.account(uhs=1_000_000)
    assert rig.post("/v1/completions", account, body).status_code == status
    until = time.monotonic() + 10
    while rig.ledger.held(account) and time.monotonic() < until:
        time.sleep(0.05)
    assert rig.ledger.held(account) == 0
    assert rig.ledger.free[account] == 1_000_000


def test_what_the_engine_made_beyond_what_was_paid_left_it_never_and_is_little(rig):
    """There is no limit in the engine (a top-up could not extend it): what it makes while it is told to stop is unpaid, and is
    bounded by what it makes in the time that one answer of the ledger and one abort take, never by what was asked for.
    """
    before, paid, calls = rig.counter("generation_tokens_total"), 7, 6
    for _ in range(calls):
        account = rig.account(prompt=PROMPT, completion=paid)
        given = list(rig.events("/v1/completions", account, ASK | USAGE | {"max_tokens": 450}))
        assert given[-2]["usage"]["completion_tokens"] == paid
        assert len("".join(event["choices"][0]["text"] for event in given[:-2])) <= paid
        (call,) = rig.settled(account)
        assert (call.usage.completion_tokens, rig.ledger.free[account]) == (paid, 0)
    made = rig.counter("generation_tokens_total") - before
    print(f"{made:.0f} tokens made for {calls * paid} paid")
    assert made >= calls * paid
    assert made - calls * paid < calls * (450 - paid) / 4


def test_only_a_gateway_with_the_secret_is_heard(rig):
    for headers in ({}, {"x-fabric-trust": "guess", "x-fabric-account": "ann"}):
        answer = httpx.post(rig.address + "/v1/completions", json=ASK, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_a_gateway")
    assert httpx.get(rig.address + "/health").status_code == 200


@pytest.mark.parametrize("path", ["/invocations", "/docs", "/openapi.json", "/server_info", "/v1/models/none"])
def test_other_doors_of_the_engine_are_closed(rig, path):
    answer = httpx.get(rig.address + path, headers=rig.headers("ann"))
    assert answer.status_code == 404


def test_a_covered_call_is_recorded_and_charged_nothing(rig):
    account = rig.account(uhs=1)
    answer = rig.post("/v1/completions", account, ASK | {"max_tokens": 5}, covered="1")
    assert answer.status_code == 200
    (call,) = rig.settled(account)
    assert (call.covered, call.usage.completion_tokens, rig.ledger.charged[call.call_id]) == (True, 5, 0)


def test_openais_own_clients_are_served(rig):
    account = rig.account(uhs=10_000_000)
    options = {"base_url": rig.address + "/v1", "api_key": "none", "max_retries": 0}
    headers = rig.headers(account)
    with openai.OpenAI(**options, default_headers=headers) as client:
        assert client.models.retrieve("byte-lm").id == "byte-lm"
        said = client.chat.completions.create(model="byte-lm", messages=CHAT["messages"], max_tokens=4)
        assert said.usage.completion_tokens <= 4

    async def stream():
        async with openai.AsyncOpenAI(**options, default_headers=rig.headers(account)) as client:
            chunks = await client.chat.completions.create(
                model="byte-lm", messages=CHAT["messages"], max_tokens=4, stream=True
            )
            return [chunk async for chunk in chunks]

    assert asyncio.run(stream())[-1].choices[0].finish_reason in {"length", "stop"}
    broke = rig.account(uhs=1)
    with (
        openai.OpenAI(**options, default_headers=rig.headers(broke)) as client,
        pytest.raises(openai.APIStatusError) as refused,
    ):
        client.chat.completions.create(model="byte-lm", messages=CHAT["messages"], stream=True)
    assert (refused.value.status_code, refused.value.code) == (402, "insufficient_quota")


def test_while_the_ledger_is_away_calls_go_on_within_what_is_held(rig):
    account = rig.account(uhs=1_000 * OUT)
    rig.post("/v1/completions", account, ASK | {"max_tokens": 2})
    rig.ledger.reachable = False
    try:
        answer = rig.post("/v1/completions", account, ASK | {"max_tokens": 20})
    finally:
        rig.ledger.reachable = True
    assert answer.status_code == 200
    first, second = rig.settled(account, calls=2)
    assert {first.usage.completion_tokens, second.usage.completion_tokens} == {2, 20}


def test_a_killed_replica_leaves_no_process_and_settles_what_it_had_produced(rig):
    """The last test: it ends the session's engine, and starts another on the same outbox."""
    account = rig.account(uhs=10_000_000)
    family = rig.family()
    stream = rig.events("/v1/completions", account, ASK | {"stream": True, "max_tokens": 450})
    delivered = sum(1 for event, _ in zip(stream, range(20), strict=False) if event != "[DONE]")
    os.kill(rig.process.pid, signal.SIGKILL)
    with pytest.raises(httpx.RemoteProtocolError):
        list(stream)
    rig.process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    rig.start()
    (call,) = rig.settled(account)
    assert call.usage.completion_tokens >= delivered
    assert call.ended == "error"
    answer = rig.post("/v1/completions", account, ASK | {"max_tokens": 3})
    assert answer.status_code == 200
    assert TRUST not in "".join(rig.lines)
