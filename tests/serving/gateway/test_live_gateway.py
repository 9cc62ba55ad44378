"""The gateway before the real engine: nothing is lost or added on any surface, and official clients see vLLM's own answers."""

import re

import httpx
import openai
import pytest

from serving.gateway import phrases
from tests.serving.gateway.live_front import before
from tests.serving.rig import RATE

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

PROMPT = {"prompt": "def main(argument):", "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}
SURFACES = {
    "chat": ("/v1/chat/completions", CHAT | {"max_tokens": 8}),
    "chat with logprobs": ("/v1/chat/completions", CHAT | {"max_tokens": 4, "logprobs": True, "top_logprobs": 2}),
    "chat with a schema": (
        "/v1/chat/completions",
        {"messages": CHAT["messages"], "max_tokens": 24, "response_format": {"type": "json_object"}},
    ),
    "chat with tools": ("/v1/chat/completions", CHAT | {"max_tokens": 8, "tools": [TOOL], "tool_choice": "none"}),
    "several choices": ("/v1/chat/completions", CHAT | {"max_tokens": 6, "n": 3, "seed": 7, "temperature": 1.0}),
    "stop strings": ("/v1/completions", PROMPT | {"max_tokens": 40, "stop": ["e"]}),
    "completions": ("/v1/completions", PROMPT | {"max_tokens": 8}),
    "responses": ("/v1/responses", {"input": "hi", "max_output_tokens": 8}),
    "messages": ("/v1/messages", {"messages": CHAT["messages"], "max_tokens": 8}),
    "tokenize": ("/tokenize", {"prompt": "hello"}),
    "too long": ("/v1/completions", {"prompt": "x" * 2_000, "max_tokens": 4}),
    "no tokens wanted": ("/v1/completions", {"prompt": "x", "max_tokens": -1}),
    "beyond the context": ("/v1/completions", {"prompt": "x", "max_tokens": 100_000}),
}


@pytest.fixture(scope="module")
def front(rig, tmp_path_factory):
    """A gateway before the session's engine."""
    with before(rig, tmp_path_factory.mktemp("front")) as house:
        yield house


def plain(text):
    """Without ids, times and what replica and gateway add."""
    text = re.sub(r',"fabric":\{[^}]*\}', "", text)
    text = re.sub(r',"cost":[0-9.]+,"cost_details":\{[^}]*\}', "", text)
    text = re.sub(r'(chatcmpl|cmpl|resp|msg|rs|fc|chatcmpl-tool)[-_]?[-_A-Za-z0-9]*(?=")', r"\1", text)
    return re.sub(r'"(created|created_at|completed_at)":\s*[0-9.]+', r'"\1":0', text)


@pytest.mark.parametrize("name", SURFACES)
def test_the_same_body_comes_through_as_from_the_replica_itself(rig, front, name):
    path, body = SURFACES[name]
    body = {"model": "byte-lm", "temperature": 0, **body}
    if path == "/tokenize":
        del body["temperature"]
    direct = rig.post(path, rig.account(uhs=10**12), body)
    passed = httpx.post(front.url + path, json=body, headers={"authorization": f"Bearer {front.key}"}, timeout=60)
    assert passed.status_code == direct.status_code
    if direct.status_code == 200:
        cached = re.compile(r'"(cached_tokens|cache_read_input_tokens)":\s*[0-9]+')
        assert cached.sub("", plain(passed.text)) == cached.sub("", plain(direct.text))
    else:
        assert passed.json()["error"]["message"] == phrases.told(direct.json()["error"]["message"]).message
        assert passed.json()["error"]["code"] is None or isinstance(passed.json()["error"]["code"], str)


def test_streams_come_through_with_the_same_words(rig, front):
    for name in ("chat", "completions", "responses", "messages"):
        path, body = SURFACES[name]
        body = {"model": "byte-lm", "temperature": 0, "stream": True, **body}
        direct = "".join(str(event) for event in rig.events(path, rig.account(uhs=10**12), body))
        with httpx.stream(
            "POST", front.url + path, json=body, headers={"authorization": f"Bearer {front.key}"}
        ) as answer:
            passed = "".join(answer.iter_text())
        words = re.compile(r"""['"](?:content|text|delta)['"]: ?['"]([^'"]*)['"]""")
        assert "".join(words.findall(passed)) == "".join(words.findall(direct))


def test_the_charge_told_is_the_charge_made(rig, front):
    account = rig.account(uhs=10**9)
    key = front.directory.add_key("told", account)
    front.directory.models["byte-lm"] = front.directory.models["byte-lm"].__class__(name="byte-lm", rates=(RATE,))
    front.directory.change()
    with openai.OpenAI(base_url=front.url + "/v1", api_key=key, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="byte-lm", messages=CHAT["messages"], max_tokens=5, extra_body={"ignore_eos": True},
            metadata={"app": "search"}, extra_headers={"X-Fabric-Tags": "team=red"},
        )  # fmt: skip
        raw.parse()
        told = {raw.headers["x-fabric-call"]: int(raw.headers["x-fabric-charged-uhs"])}
        assert int(raw.headers["x-fabric-free-uhs"]) == 10**9 - sum(told.values())
        chunks = list(
            client.chat.completions.create(
                model="byte-lm", messages=CHAT["messages"], max_tokens=7, stream=True,
                stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
            )
        )  # fmt: skip
        remark = chunks[-1].model_extra["fabric"]
        told[remark["call"]] = int(remark["charged_uhs"])
        calls = rig.settled(account, calls=2)
        assert {call.call_id: rig.ledger.charged[call.call_id] for call in calls} == told
        tags = {call.call_id: call.tags for call in calls}
        assert tags == {raw.headers["x-fabric-call"]: ("app=search", "team=red"), remark["call"]: ()}


def test_without_tokens_the_official_client_gets_402_once(rig, front):
    key = front.directory.add_key("broke", rig.account(uhs=1))
    with openai.OpenAI(base_url=front.url + "/v1", api_key=key) as client:
        for stream in (False, True):
            with pytest.raises(openai.APIStatusError) as refused:
                client.chat.completions.create(model="byte-lm", messages=CHAT["messages"], stream=stream)
            assert (refused.value.status_code, refused.value.code) == (402, "insufficient_quota")
            assert "top up" in refused.value.message


def test_a_stream_that_runs_out_of_tokens_ends_at_the_last_paid_one(rig, front):
    from tests.serving.rig import IN, OUT

    prompt = len("user: hi\nassistant: ") + 1
    account = rig.account(uhs=prompt * IN + 7 * OUT)
    key = front.directory.add_key("seven", account)
    with openai.OpenAI(base_url=front.url + "/v1", api_key=key) as client:
        chunks = list(
            client.chat.completions.create(
                model="byte-lm", messages=CHAT["messages"], max_tokens=60, stream=True,
                stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
            )
        )  # fmt: skip
    last = next(chunk for chunk in reversed(chunks) if chunk.choices).choices[0]
    assert (last.finish_reason, last.model_extra["stop_reason"]) == ("length", "balance_exhausted")
    assert chunks[-1].usage.completion_tokens == 7
    (call,) = rig.settled(account)
    assert (call.usage.completion_tokens, rig.ledger.free[account]) == (7, 0)


def test_a_client_that_leaves_is_charged_for_what_the_engine_made_until_then(rig, front):
    account = rig.account(uhs=10**9)
    key = front.directory.add_key("leaver", account)
    body = {"model": "byte-lm", "stream": True, "max_tokens": 400, **CHAT}
    with httpx.stream(
        "POST", front.url + "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
    ) as answer:
        events = answer.iter_lines()
        for _ in range(20):
            next(events)
    (call,) = rig.settled(account)
    assert call.ended == "client_gone"
    assert 5 <= call.usage.completion_tokens < 400
