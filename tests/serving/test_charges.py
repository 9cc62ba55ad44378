"""What a client is told of a charge is what the meter booked, or nothing: one source, at the replica's front."""

import json

import httpx
import pytest

from serving.calls import Call, Usage
from serving.engines.parts.admission import Admission
from serving.engines.parts.charges import costed
from serving.metering.payer import TICKET, SignedPayer
from serving.metering.slices import Payer
from tests.gate.shop import ANY, QWEN

TRUST = "t"
HEADERS = {"x-fabric-trust": TRUST, "x-fabric-account": "ann", "x-fabric-call": "c1"}


def call(number):
    return Call(f"c1.{number}", "ann", "k", "m", "CPU", Usage(3), 0, 0, "stop")


class App:
    """Ends so many calls of those it began before it sends the last of its lines."""

    def __init__(self, lines, *, opened=1, ended=1, kind=b"text/event-stream; charset=utf-8"):
        self.lines, self.opened, self.ended, self.kind = lines, opened, ended, kind

    async def __call__(self, scope, receive, send):
        ticket = TICKET.get()
        ticket.admitted = ticket.opened = self.opened
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", self.kind)]})
        for number, line in enumerate(self.lines):
            if number == len(self.lines) - 1:
                for each in range(self.ended):
                    ticket.ended.append(call(each))
                    ticket.charged_uhs += 4_316
            more = number < len(self.lines) - 1
            await send({"type": "http.response.body", "body": line, "more_body": more})


async def answer(app, path="/v1/completions", body=None):
    transport = httpx.ASGITransport(Admission(app, trust=TRUST))
    async with httpx.AsyncClient(transport=transport, base_url="http://r") as http:
        return await http.post(path, json=body or {"model": "m"}, headers=HEADERS)


CHUNK = b'data: {"id":"x","choices":[{"index":0,"text":"a"}],"usage":{"prompt_tokens":9,"completion_tokens":1}}\n\n'
LAST = {
    "openai": b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":9}}\n\ndata: [DONE]\n\n',
    "anthropic": b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":2}}\n\n',
    "responses": b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{}}}\n\n',
    "responses cut": b'event: response.incomplete\ndata: {"type":"response.incomplete","response":{"usage":{}}}\n\n',
}


@pytest.mark.parametrize("surface", LAST)
async def test_a_stream_says_once_what_was_booked_for_all_its_calls(surface):
    said = await answer(App([CHUNK, LAST[surface]], opened=2, ended=2))
    documents = [json.loads(line[6:]) for line in said.text.splitlines() if line.startswith("data: {")]
    (stated,) = [each["fabric"] for each in documents if "fabric" in each]
    tokens = {"prompt_tokens": 6, "cached_tokens": 0, "completion_tokens": 0, "reasoning_tokens": 0}
    assert stated == {"call": "c1", "charged_uhs": "8632", "charged_ct": stated["charged_ct"], **tokens}
    assert "fabric" in documents[-1]
    usage = documents[-1].get("usage") or documents[-1]["response"]["usage"]
    if surface in {"openai", "anthropic"}:
        assert f"{usage.pop('cost'):.12f}" == "0.000002397778"
        assert usage.pop("cost_details") == {"unit": "compute_tokens", "charged_uhs": "8632"}
    del documents[-1]["fabric"]
    given = [
        json.loads(line[6:]) for line in (CHUNK + LAST[surface]).decode().splitlines() if line.startswith("data: {")
    ]
    assert documents == given


async def test_what_is_not_booked_yet_is_not_stated():
    said = await answer(App([CHUNK, LAST["openai"]], opened=3, ended=2))
    assert "fabric" not in said.text
    said = await answer(App([b'{"usage":{}}'], opened=3, ended=2, kind=b"application/json"))
    assert "x-fabric-charged-uhs" not in said.headers
    said = await answer(App([b'{"usage":{}}'], opened=2, ended=2, kind=b"application/json"))
    assert (said.headers["x-fabric-charged-uhs"], said.json()["fabric"]["charged_uhs"]) == ("8632", "8632")


def chunk(text, finish="null", index=0):
    return f'data: {{"id":"x","choices":[{{"index":{index},"text":"{text}","finish_reason":{finish}}}]}}\n\n'.encode()


END = b"data: [DONE]\n\n"


@pytest.mark.parametrize("pieces", [
    [chunk("a"), chunk("b", '"stop"'), END], [chunk("a"), chunk("b", '"stop"') + END], [chunk("a") + chunk("b", '"stop"') + END],
    [chunk("a", '"stop"'), chunk("b", index=1), chunk("c", '"length"', 1), END],
    [chunk("a", '"stop"') + chunk("b", '"length"', 1), END],
])  # fmt: skip
async def test_a_stream_that_was_not_asked_for_usage_says_in_its_last_chunk_what_was_booked(pieces):
    said = await answer(App(pieces))
    documents = [json.loads(line[6:]) for line in said.text.splitlines() if line.startswith("data: {")]
    assert documents[-1].pop("fabric")["charged_uhs"] == "4316"
    assert documents == [json.loads(line[6:]) for line in b"".join(pieces).decode().splitlines() if "{" in line]
    assert said.text.endswith("data: [DONE]\n\n")


async def test_a_stream_that_breaks_before_its_end_loses_no_piece():
    pieces = [chunk("a"), chunk("b", '"stop"')]
    said = await answer(App(pieces, ended=0))
    assert said.content == b"".join(pieces)


async def test_an_answer_in_one_piece_says_its_cost_and_stays_as_it_was_written():
    given = b'{"id":"x","text":"\\u00e9 1e400","big":123456789012345678901234567890,"usage":{"prompt_tokens":9}}'
    said = await answer(App([given], kind=b"application/json"))
    document = said.json()
    assert document["usage"]["cost"] == pytest.approx(4_316 / 3.6e9, rel=1e-3)
    assert said.headers["content-length"] == str(len(said.content))
    assert b'"big":123456789012345678901234567890' in said.content
    assert document["fabric"]["call"] == "c1"


async def test_what_a_model_writes_is_never_taken_for_the_usage():
    text = json.dumps({"choices": [{"text": 'data: {"choices":[],"usage":{"a":1}}'}]}).encode()
    lines = [b"data: " + text + b"\n\n", b'data: {"usage": not json\n\n', b'data: ["usage"]\n\n']
    said = await answer(App([*lines, b"data: [DONE]\n\n"]))
    assert "fabric" not in said.text


@pytest.mark.parametrize(
    ("body", "only"),
    [
        ({"echo": True, "max_tokens": 0}, True), ({"echo": True, "max_tokens": 1}, False), ({"max_tokens": 0}, False),
        ({"echo": False, "max_tokens": 0}, False), ({"echo": True}, False), ({"prompt": '"echo"', "max_tokens": 0}, False),
    ],
)  # fmt: skip
async def test_who_wants_the_prompt_alone_is_known_before_it_is_paid_for(body, only):
    seen = []

    class Watched(App):
        async def __call__(self, scope, receive, send):
            seen.append(TICKET.get().only_prompt)
            await super().__call__(scope, receive, send)

    await answer(Watched([b"{}"], kind=b"application/json"), body=body)
    await answer(Watched([b"{}"], kind=b"application/json"), path="/v1/chat/completions", body=body)
    assert seen == [only, False]


def test_an_answer_says_what_it_took_of_packages():
    ticket = SignedPayer(payer=Payer("ann"), key_id="k", call_id="c1")
    usage = Usage(prompt_tokens=10, completion_tokens=5)
    ticket.ended.append(
        Call("c1", "ann", "k", "m", "H100", usage, 0, 1, "stop", packages=((QWEN, 22_000), (ANY, 2_000)))
    )
    said = json.loads(costed(b'{"usage": {"prompt_tokens": 10}}', ticket))
    assert said["fabric"]["packages"] == [
        {"asset": QWEN, "family": "llm:qwen", "llm_tokens": "22"},
        {"asset": ANY, "family": "llm:any", "llm_tokens": "2"},
    ]
