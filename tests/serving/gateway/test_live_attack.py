"""Odd requests and rude clients before the real engine: what is told, what is booked and what is recorded are one number."""

import json
import random
import socket
import struct
import threading
import time

import httpx
import pytest

from tests.serving.gateway.test_live_gateway import front

__all__ = ["front"]
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(500)]

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/chat/completions/batch": {"messages": [MESSAGES, MESSAGES], "max_tokens": 4},
    "/v1/completions": {"prompt": "def main(", "max_tokens": 4},
    "/v1/responses": {"input": "hi", "max_output_tokens": 4},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/embeddings": {"input": "hi"},
}
ODD = {
    "max_tokens": [0, 1, -1, None, 2**31, 2**63, 2**70, "5", 1.5, True], "max_completion_tokens": [0, 1, -5, None],
    "n": [0, 2, 3, -1, None, "2"], "best_of": [1, 2, 5], "temperature": [0, 2, -1, 1e9, None, "hot"], "top_p": [0, 1, 2, -0.1],
    "top_k": [-1, 0, 1, 10**9], "min_p": [0, 1, 2], "stream": [True, False, None], "stop": ["", [], ["e"], None, [""], 7],
    "logprobs": [True, 0, 1, 5, -1, 21], "top_logprobs": [0, 3, -1, 25], "prompt_logprobs": [0, 1, -1], "echo": [True, False],
    "seed": [0, -1, 2**63, None], "presence_penalty": [-2, 2, 3], "repetition_penalty": [0, 1, -1, 2], "logit_bias": [{}, {"5": 100}, {"x": 1}, {"999999": 1}],
    "stream_options": [{"include_usage": True}, {"include_usage": False}, {}, None, {"continuous_usage_stats": True, "include_usage": True}],
    "response_format": [{"type": "json_object"}, {"type": "text"}, {"type": "json_schema"}, {"type": "nonsense"}, None],
    "structured_outputs": [{"regex": "[ab]+"}, {"choice": ["a", "b"]}, {"regex": "("}, {}], "tool_choice": ["none", "auto", "required", None],
    "truncate_prompt_tokens": [1, 0, -1, 5], "min_tokens": [0, 3, 10**6], "ignore_eos": [True], "skip_special_tokens": [False],
    "include_stop_str_in_output": [True], "allowed_token_ids": [[1], [], [10**9]], "bad_words": [["a"], [""]], "user": ["u", 3],
    "add_generation_prompt": [False], "continue_final_message": [True], "return_token_ids": [True], "suffix": ["x"], "store": [True],
    "prompt": ["", [], [[1, 2], [3]], ["a", "b"], [""], 5, [10**9], None], "messages": [[], None, [{"role": "x"}], [{"role": "user", "content": None}]],
    "input": ["", [], [{"role": "user", "content": "x"}], 7], "tools": [[], None], "metadata": [{"a": "b"}], "reasoning_effort": ["low"],
    "encoding_format": ["base64"], "use_beam_search": [True, False], "parallel_tool_calls": [True], "kv_transfer_params": [{"x": 1}],
}  # fmt: skip


def odd(rng):
    path = rng.choice(list(BODIES))
    body = {"model": "byte-lm", **BODIES[path]}
    if rng.random() < 0.5:
        body["stream"] = True
    for name in rng.sample(list(ODD), rng.choice((1, 1, 2, 3))):
        body[name] = rng.choice(ODD[name])
    return path, body


def booked(rig, call):
    """What the ledger charged for a request."""
    with rig.wire.lock:
        found = [one for one in rig.ledger.calls.values() if one.call_id.partition(".")[0] == call]
        return sum(rig.ledger.charged[one.call_id] for one in found), len(found)


def asked_again(front, key, call):
    until = time.monotonic() + 60
    while True:
        answer = httpx.get(f"{front.url}/v1/generations/{call}", headers={"authorization": f"Bearer {key}"}, timeout=30)
        if answer.status_code == 200 and answer.json()["fabric"]["state"] == "booked":
            return int(answer.json()["fabric"]["charged_uhs"])
        assert time.monotonic() < until, answer.text
        time.sleep(0.1)


def stated(answer, text):
    if "text/event-stream" not in answer.headers["content-type"]:
        return int(answer.headers.get("x-fabric-charged-uhs", 0))
    told = [
        json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {") and '"fabric":{"call"' in line
    ]
    errors = [line for line in text.splitlines() if '"error"' in line]
    assert len(told) == 1 or errors, text[-600:]
    return int(told[0]["fabric"]["charged_uhs"]) if told else None


@pytest.mark.parametrize("seed", [1, pytest.param(0, marks=pytest.mark.soak)])
def test_whatever_is_asked_what_is_stated_is_booked_and_recorded(rig, front, seed):
    rng = random.Random(seed)
    account = rig.account(uhs=10**12)
    key = front.directory.add_key(f"odd{seed}", account)
    statuses, given = {}, []
    with httpx.Client(base_url=front.url, headers={"authorization": f"Bearer {key}"}, timeout=120) as http:
        for _ in range(60):
            path, body = odd(rng)
            with http.stream("POST", path, json=body) as answer:
                text = answer.read().decode()
            given.append((path, body, answer, text))
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, (path, body, text)
            assert "--" not in text or answer.status_code == 200, (path, body, text)
    rig.free_again(account, within_s=60)  # nothing of it is held any more: all is booked
    for path, body, answer, text in given:
        call = answer.headers["x-request-id"]
        charged, count = booked(rig, call)
        if answer.status_code == 200 and count:
            assert stated(answer, text) in {charged, None}, (path, body, text[-500:])
            assert asked_again(front, key, call) == charged
        else:
            assert charged == 0, (path, body, text)
    rig.ledger.check()
    print(seed, statuses)


def request(key, path, body, *, more=b""):
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n"
    return (head + f"content-length: {len(raw)}\r\n").encode() + more + b"\r\n" + raw


def connected(front):
    host, _, port = front.url.partition("//")[2].partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


LONG = {"model": "byte-lm", "prompt": "def", "max_tokens": 200, "ignore_eos": True, "stream": True}


@pytest.mark.parametrize("seed", range(2))
def test_who_leaves_at_any_instant_pays_what_was_made_and_nothing_stays_held(rig, front, seed):
    rng = random.Random(100 + seed)
    account = rig.account(uhs=10**12)
    key = front.directory.add_key(f"rude{seed}", account)
    calls = set()

    def rude(number):
        mine = random.Random(seed * 1000 + number)
        with connected(front) as one:
            raw = request(key, "/v1/completions", LONG | {"stream": mine.random() < 0.7, "n": mine.choice((1, 1, 3))})
            cut = mine.choice((len(raw), len(raw), mine.randrange(len(raw))))
            one.sendall(raw[:cut])
            how = mine.choice(("close", "reset", "half", "slow"))
            if cut == len(raw) and how != "close":
                one.settimeout(mine.random() * 2 + 0.01)
                try:
                    data = one.recv(mine.choice((1, 500, 5_000)))
                    if b"x-request-id: " in data:
                        calls.add(data.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode())
                except TimeoutError:
                    pass
            if how == "half":
                one.shutdown(socket.SHUT_WR)
                one.settimeout(30)
                while one.recv(65536):
                    pass
            elif how == "reset":
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "slow":
                time.sleep(mine.random())

    threads = [threading.Thread(target=rude, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
        time.sleep(rng.random() * 0.1)
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    until = time.monotonic() + 60
    while (front.gateway._open or rig.ledger.held(account)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not front.gateway._open
    rig.free_again(account, within_s=60)
    with rig.wire.lock:
        rig.ledger.check()
        mine = [one for one in rig.ledger.calls.values() if one.account_id == account]
        spent = sum(rig.ledger.charged[one.call_id] for one in mine)
        assert rig.ledger.free[account] == 10**12 - spent
    for call in calls:
        assert asked_again(front, key, call) == booked(rig, call)[0]
    print(seed, len(mine), "calls", len(calls), "asked for")


def answers(one, count):
    """So many answers of one connection, in order: their statuses and bodies."""
    found, rest = [], b""
    while len(found) < count:
        while b"\r\n\r\n" not in rest:
            rest += _more(one)
        head, _, rest = rest.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(rest) < length:
            rest += _more(one)
        found.append((int(head.split()[1]), json.loads(rest[:length])))
        rest = rest[length:]
    assert rest == b""
    return found


def _more(one):
    data = one.recv(65536)
    assert data, "the connection was closed"
    return data


def test_a_connection_is_good_for_more_after_errors_and_for_several_requests_at_once(rig, front):
    account = rig.account(uhs=10**12)
    key = front.directory.add_key("pipelined", account)
    good = {"model": "byte-lm", "prompt": "x", "max_tokens": 2}
    asked = [
        (good, 200), (good | {"model": "none"}, 404), (good, 200), (good | {"max_tokens": -1}, 400), (good | {"n": 4_000}, 400),
        (good, 200), (good | {"structured_outputs": {"regex": "("}}, 400), (good, 200),
    ]  # fmt: skip
    with connected(front) as one:
        one.sendall(b"".join(request(key, "/v1/completions", body) for body, _ in asked))
        found = answers(one, len(asked))
    assert [status for status, _ in found] == [status for _, status in asked]
    charges = [int(body["fabric"]["charged_uhs"]) for status, body in found if status == 200]
    rig.free_again(account, within_s=60)
    assert sum(charges) == 10**12 - rig.ledger.free[account]
