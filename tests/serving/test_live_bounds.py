"""The real engine, asked for what would have stopped it for everybody: it says no, or does it, and others go on."""

import concurrent.futures
import json
import threading
import time

import httpx
import pytest

from serving import limits

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ASK = {"model": "byte-lm", "prompt": "def main(argument):", "temperature": 0, "max_tokens": 4}
CHAT = {"model": "byte-lm", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 4}
PATTERNS = {f"p{n}": {"type": "string", "pattern": "^(a{1,200}){1,200}$"} for n in range(30)}
ISSUE = {"type": "object", "properties": PATTERNS}


def nested(depth, word="oneOf", *, twice=False):
    schema = {"type": "string"}
    for level in range(depth):
        inner = {"type": "object", "properties": {f"a{level}": schema}, "required": [f"a{level}"]}
        other = {"type": "object", "properties": {"b": schema if twice else {"type": "integer"}}}
        schema = {word: [inner, other]}
    return schema


def chained(depth):
    """Small on paper, and doubled at each level."""
    rules = {
        f"n{n}": {"oneOf": [{"$ref": f"#/$defs/n{n + 1}"}, {"items": {"$ref": f"#/$defs/n{n + 1}"}}]}
        for n in range(depth)
    }
    return {"$defs": {**rules, f"n{depth}": {"type": "string"}}, "$ref": "#/$defs/n0"}


LOOP = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
EBNF = (
    "root ::= r0\n"
    + "\n".join(f'r{n} ::= "a" r{n + 1} | "b" r{n + 1} | r{n + 1}' for n in range(2_500))
    + '\nr2500 ::= "z"'
)
LARK = "start: r0\n" + "\n".join(f'r{n}: "a" r{n + 1} | "b" r{n + 1}' for n in range(2_000)) + '\nr2000: "z"'
TAGS = {
    "structures": [{"begin": f"<f{n}>", "schema": nested(4, twice=True), "end": "</f>"} for n in range(60)],
    "triggers": ["<f"],
}
SHAPES = [
    {"json": ISSUE}, {"json": nested(14)}, {"json": nested(9, twice=True)}, {"json": nested(14, "anyOf")},
    {"json": nested(14, "allOf")}, {"json": chained(40)}, {"json": LOOP}, {"json": {"enum": [f"v{n}" for n in range(9_000)]}},
    {"json": {"type": "string", "minLength": 10**9}}, {"json": {"type": "string", "maxLength": 10**9}},
    {"json": {"type": "array", "items": {"type": "string", "pattern": "a{1,1000}"}, "minItems": 10**9}},
    {"json": {"type": "array", "items": nested(3), "minItems": 500, "maxItems": 1_000}},
    {"json": {"type": "object", "minProperties": 10**9}}, {"json": {"type": "integer", "maximum": 10**400}},
    {"json": {"type": "integer", "minimum": -(10**18), "maximum": 10**18}},
    {"json": {"type": "object", "patternProperties": {"^(a{1,300}){1,300}$": {}}}}, {"json": {"type": 17}}, {"json": "{"},
    {"json": "null"}, {"json": {"$ref": "http://169.254.169.254/"}}, {"regex": "((a{0,100}){0,100}){0,100}"},
    {"regex": "(a|b)*a(a|b){20}"}, {"regex": "(?=a)(?!b)(?<=c)x"}, {"regex": "(a*)*\\1"}, {"regex": "("}, {"regex": "a\x00"},
    {"regex": "[\ud7ff\U0010ffff]{1,5000}"}, {"choice": ["x" * 50] * 1_500}, {"choice": []}, {"grammar": EBNF},
    {"grammar": LARK}, {"grammar": 'root ::= root root | "a"'}, {"grammar": "root ::= root"}, {"grammar": "root ::= nothing"},
    {"grammar": 'root ::= "a"\nroot ::= "b"'}, {"grammar": ""}, {"structural_tag": json.dumps(TAGS)},
    {"structural_tag": "{}"}, {"structural_tag": "["},
]  # fmt: skip


def shaped_as_each_surface_says_it(schema):
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    named = {"type": "function", "function": {"name": "f"}}
    text = {"format": {"type": "json_schema", "name": "s", "schema": schema, "strict": True}}
    return [
        ("/v1/chat/completions", CHAT | {"response_format": form}),
        ("/v1/chat/completions", CHAT | {"structured_outputs": {"json": schema}}),
        ("/v1/chat/completions", CHAT | {"tools": [tool], "tool_choice": named}),
        ("/v1/chat/completions", CHAT | {"tools": [tool], "tool_choice": "required"}),
        ("/v1/chat/completions/batch", CHAT | {"messages": [CHAT["messages"]] * 3, "response_format": form}),
        ("/v1/completions", ASK | {"response_format": form}),
        ("/v1/completions", ASK | {"structured_outputs": {"json": schema}, "n": 3, "temperature": 1}),
        ("/v1/completions", ASK | {"structured_outputs": {"json": schema}, "prompt": ["a", "b"]}),
        ("/v1/responses", {"model": "byte-lm", "input": "hi", "max_output_tokens": 4, "store": False, "text": text}),
        (
            "/v1/messages",
            {k: CHAT[k] for k in ("model", "messages", "max_tokens")} | {"output_config": {"format": text["format"]}},
        ),
    ]


class Stream:
    """Somebody else's, all the while: how many events it had, and the longest it was silent."""

    def __init__(self, rig):
        self.rig, self.events, self.silent_s, self.failed = rig, 0, 0.0, None
        self.account, self._over = rig.account(uhs=10**12), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        while not self.events and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _run(self):
        body = ASK | {"stream": True, "ignore_eos": True, "max_tokens": 480}
        try:
            while not self._over.is_set():
                last = time.monotonic()
                for _ in self.rig.events("/v1/completions", self.account, body):
                    now = time.monotonic()
                    self.silent_s, last, self.events = max(self.silent_s, now - last), now, self.events + 1
        except Exception as error:  # noqa: BLE001
            self.failed = error


def test_no_schema_or_grammar_stops_the_engine_and_what_is_refused_costs_nothing(rig):
    statuses = {}
    with Stream(rig) as other:
        for number, shape in enumerate(SHAPES):
            account = rig.account(uhs=1_000_000)
            answer = rig.post("/v1/completions", account, ASK | {"structured_outputs": shape})
            assert answer.status_code in {200, 400}, (str(shape)[:200], answer.text)
            statuses[number] = answer.status_code
            if answer.status_code == 400:
                assert answer.json()["error"]["message"]
                assert rig.free_again(account) == 1_000_000, shape
            assert httpx.get(rig.address + "/health", timeout=30).status_code == 200
        before = other.events
        until = time.monotonic() + 30
        while other.events == before and time.monotonic() < until:
            time.sleep(0.05)
        assert other.events > before
    assert other.failed is None
    print(f"the other stream was silent for {other.silent_s:.2f} s at the most; {statuses}")
    assert statuses[0] == 400
    assert statuses[SHAPES.index({"grammar": 'root ::= "a"\nroot ::= "b"'})] == 400


def test_the_schema_that_stopped_a_replica_is_refused_in_every_spelling(rig):
    account = rig.account(uhs=1_000_000)
    for path, body in shaped_as_each_surface_says_it(ISSUE):
        answer = rig.post(path, account, body)
        assert answer.status_code in {200, 400}, (path, answer.text)
        if answer.status_code == 200:  # this model calls no tools, and its schema shapes nothing
            assert "tools" in body
        else:
            message = answer.json()["error"]["message"]
            assert "s to compile" in message or "tool" in message, (path, message)
    spent = sum(rig.ledger.charged[call.call_id] for call in rig.ledger.calls.values() if call.account_id == account)
    assert rig.free_again(account) == 1_000_000 - spent


def test_a_good_schema_shapes_the_answer_on_every_surface(rig):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    account = rig.account(uhs=10_000_000)
    for path, body in shaped_as_each_surface_says_it(schema):
        answer = rig.post(path, account, body)
        assert answer.status_code == 200 or "tool" in answer.text, (path, answer.text)
        if path == "/v1/completions":
            for choice in answer.json()["choices"]:
                assert choice["text"].lstrip().startswith("{")


def test_who_has_no_tokens_has_nothing_compiled(rig):
    account = rig.account(uhs=1)
    answer = rig.post("/v1/completions", account, ASK | {"structured_outputs": {"regex": "never seen before [a-z]+"}})
    assert answer.status_code == 402
    answer = rig.post("/v1/completions", account, ASK | {"structured_outputs": {"regex": "("}})
    assert answer.status_code == 402


COUNTED = [
    ("/tokenize", {"model": "byte-lm", "prompt": "hello"}),
    ("/tokenize", {"model": "byte-lm", "messages": CHAT["messages"]}),
    ("/detokenize", {"model": "byte-lm", "tokens": [1, 2]}),
    ("/v1/messages/count_tokens", {"model": "byte-lm", "messages": CHAT["messages"]}),
]


@pytest.mark.parametrize(("path", "body"), COUNTED, ids=[f"{path} {list(body)[1]}" for path, body in COUNTED])
def test_what_counts_tokens_is_for_who_has_some_and_takes_none(rig, path, body):
    poor, rich = rig.account(uhs=0), rig.account(uhs=1_000_000)
    assert rig.post(path, poor, body).status_code == 402
    assert rig.post(path, rich, body).status_code == 200
    assert rig.free_again(rich) == 1_000_000
    assert [call for call in rig.ledger.calls.values() if call.account_id == rich] == []


def test_three_at_once_of_what_may_be_counted_hold_nobody_up(rig):
    account = rig.account(uhs=1_000_000)
    body = {"model": "byte-lm", "prompt": "x" * (limits.COUNTED_BYTES_MAX - 100)}
    with Stream(rig) as other, concurrent.futures.ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: rig.post("/tokenize", account, body).status_code, range(3)))
    assert set(answers) <= {200, 400}
    assert other.failed is None
    print(f"the other stream was silent for {other.silent_s:.2f} s at the most")


def test_of_a_list_of_prompts_only_as_many_run_at_a_time_as_there_are_seats_for(rig):
    account, most = rig.account(uhs=100_000_000), 0
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        body = ASK | {"prompt": ["x"] * 24, "max_tokens": 60, "ignore_eos": True}
        asked = pool.submit(rig.post, "/v1/completions", account, body, at_once="3")
        while not asked.done():
            most = max(most, rig.counter("num_requests_running") + rig.counter("num_requests_waiting"))
            time.sleep(0.05)
    assert len(asked.result().json()["choices"]) == 24
    assert 1 <= most <= 3
