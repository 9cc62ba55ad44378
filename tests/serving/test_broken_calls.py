"""A call that can't go on, as the ledger is away for too long or the engine has ended, is no mistake of ours: it is told so, with
what it costs. Without an engine.
"""

import json

import httpx
import pytest

from fabric.errors import Unavailable
from serving.calls import CHARGED_UHS, Call, Usage
from serving.engines.parts.admission import Admission
from serving.gateway import refusals
from serving.metering.payer import TICKET

TRUST = "t"
HEADERS = {"x-fabric-trust": TRUST, "x-fabric-account": "ann", "x-fabric-call": "c1"}
AWAY = Unavailable("the ledger can't be reached: try again", code="ledger_unreachable")
THEIR_500 = {"error": {"message": "oh", "type": "InternalServerError", "code": 500, "param": None}}


def admitted(*, charged_uhs=0, broke=None):
    """What the meter does to the ticket of a call that ends so."""
    ticket = TICKET.get()
    ticket.admitted = ticket.opened = 1
    ticket.broke, ticket.charged_uhs = broke, charged_uhs
    ticket.ended.append(
        Call(
            call_id="c1",
            account_id="ann",
            key_id="k",
            model="m",
            accelerator="H100",
            usage=Usage(1),
            started_at_us=0,
            ended_at_us=1,
            ended="error",
        )
    )


async def say(send, status, body, kind=b"application/json"):
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})


async def asked(app, *, is_dead=False, path="/v1/completions"):
    transport = httpx.ASGITransport(Admission(app, trust=TRUST, is_dead=lambda: is_dead), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://r") as http:
        return await http.post(path, content=b"{}", headers=HEADERS)


@pytest.mark.parametrize("raises", [True, False], ids=["by its exception", "by the engine's own 500"])
@pytest.mark.parametrize(("charged", "told"), [(0, "charged nothing"), (7, "what it had made until then is charged")])
async def test_a_call_whose_ledger_is_away_is_told_so_and_what_it_costs(raises, charged, told):
    async def app(_scope, _receive, send):
        admitted(charged_uhs=charged, broke=AWAY)
        if raises:
            raise AWAY
        await say(send, 500, json.dumps(THEIR_500).encode())

    answer = await asked(app)
    said = answer.json()["error"]
    assert (answer.status_code, said["code"]) == (503, "ledger_unreachable")
    assert told in said["message"]
    assert answer.headers[CHARGED_UHS] == str(charged)
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("gets_in", [True, False])
async def test_a_call_to_an_engine_that_has_ended_is_told_so(gets_in):
    async def app(_scope, _receive, send):
        if gets_in:
            admitted()
        await say(send, 500, json.dumps(THEIR_500).encode())

    answer = await asked(app, is_dead=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_ended")


async def test_a_mistake_of_a_living_engine_stays_one():
    async def app(_scope, _receive, send):
        admitted()
        await say(send, 500, json.dumps(THEIR_500).encode())

    assert (await asked(app)).status_code == 500


async def test_a_stream_that_can_not_go_on_says_why():
    async def app(_scope, _receive, send):
        start = [(b"content-type", b"text/event-stream")]
        admitted(charged_uhs=7)
        await send({"type": "http.response.start", "status": 200, "headers": start})
        text = b'data: {"choices": [{"text": "an \\"error\\""}]}\n\n'
        await send({"type": "http.response.body", "body": text, "more_body": True})
        TICKET.get().broke = AWAY
        event = b"data: " + json.dumps(THEIR_500).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    answer = await asked(app)
    text, error, done = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert json.loads(text)["choices"]
    assert json.loads(error)["error"]["code"] == "ledger_unreachable"
    assert done == "[DONE]"
    assert refusals.retold_event(f"data: {error}\n\n".encode(), "completions") is None, "a gateway hands it on"


@pytest.mark.parametrize("is_charged", [True, False])
def test_what_an_engine_failed_at_is_told_with_what_it_costs(is_charged):
    said = json.loads(refusals.retold(500, json.dumps(THEIR_500).encode(), anthropic=False, is_charged=is_charged))
    assert said["error"]["code"] == "engine_failed"
    assert ("charged nothing" in said["error"]["message"]) != is_charged
