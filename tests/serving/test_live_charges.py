"""Random requests on every surface of the real engine: what was stated, what the meter booked and the records are one."""

import random

import pytest

from .rig import CACHED, IN, OUT

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

WORDS = ["def", "main", "argument", "return", "import", "class", "while", "yield"]


def text(rng):
    return " ".join(rng.choices(WORDS, k=rng.choice((1, 3, 30))))


def request(rng):
    """A surface, a body, and whether it streams."""
    surface = rng.choice(("completions", "completions", "chat", "batch", "responses", "messages"))
    stream, most = rng.random() < 0.5 and surface != "batch", rng.randint(1, 12)
    body = {"model": "byte-lm", "temperature": 1, "stream": stream}
    turns = [{"role": "user", "content": text(rng)}]
    if surface in {"completions", "chat"} and stream:
        body["stream_options"] = {"include_usage": True}
    match surface:
        case "completions":
            prompts = [text(rng) for _ in range(rng.choice((1, 1, 4, 9)))]
            n, echo = rng.choice((1, 1, 3)), rng.random() < 0.3
            body |= {"prompt": prompts, "n": n, "echo": echo, "max_tokens": rng.choice((0, most)) if echo else most}
            return "/v1/completions", body
        case "chat":
            return "/v1/chat/completions", body | {"messages": turns, "n": rng.choice((1, 2)), "max_tokens": most}
        case "batch":
            del body["stream"]
            return "/v1/chat/completions/batch", body | {"messages": [turns] * rng.choice((1, 3)), "max_tokens": most}
        case "responses":
            return "/v1/responses", body | {"input": text(rng), "max_output_tokens": most, "store": False}
        case _:
            return "/v1/messages", body | {"messages": turns, "max_tokens": most}


def stated(rig, path, account, body):
    """What the answer says that it cost; and how many completion tokens, where it says that."""
    if not body.get("stream"):
        answer = rig.post(path, account, body, at_once="4")
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        return int(answer.headers["x-fabric-charged-uhs"]), usage.get("completion_tokens", usage.get("output_tokens"))
    events = [event for event in rig.events(path, account, body, at_once="4") if event != "[DONE]"]
    (last,) = [event for event in events if "fabric" in event]
    usage = last.get("usage") or last["response"]["usage"]
    return int(last["fabric"]["charged_uhs"]), usage.get("completion_tokens", usage.get("output_tokens"))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_stated_is_what_is_booked_and_what_is_in_the_records(rig, seed):
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(12):
        path, body = request(rng)
        account = rig.account(uhs=10_000_000)
        told_uhs, told_tokens = stated(rig, path, account, body)
        prompts = len(body["prompt"]) if path == "/v1/completions" else len(body["messages"]) if "batch" in path else 1
        calls = rig.settled(account, calls=prompts)
        booked = sum(rig.ledger.charged[call.call_id] for call in calls)
        rated = sum(
            (u.prompt_tokens - u.cached_tokens) * IN + u.cached_tokens * CACHED + u.completion_tokens * OUT
            for u in (call.usage for call in calls)
        )
        assert told_uhs == booked == rated == 10_000_000 - rig.ledger.free[account], body
        assert told_tokens == sum(call.usage.completion_tokens for call in calls)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_only_echoed_costs_the_prompt_alone(rig, stream):
    account = rig.account(prompt=len("def main") + 1, completion=0)
    body = {"model": "byte-lm", "prompt": "def main", "echo": True, "max_tokens": 0, "stream": stream}
    if stream:
        chunks = [event for event in rig.events("/v1/completions", account, body) if event != "[DONE]"]
        assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "def main"
    else:
        answer = rig.post("/v1/completions", account, body).json()
        assert (answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == ("def main", 0)
    (call,) = rig.settled(account)
    assert (call.usage.completion_tokens, call.ended, rig.ledger.free[account]) == (0, "length", 0)
