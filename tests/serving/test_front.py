"""What stands before an engine's application: it lets nobody in who could not pay for a single token."""

import httpx
import pytest

from fabric.errors import InsufficientTokens
from serving.engines.parts.admission import Admission
from serving.gateway.routes import ROUTES

TRUST = "t"
HEADERS = {"x-fabric-trust": TRUST, "x-fabric-account": "ann", "x-fabric-call": "c1"}
POSTS = [route.path for route in ROUTES if route.method == "POST"]


async def app(scope, receive, send):
    raise AssertionError(f"{scope['path']} was let in")


async def poor(_ticket):
    raise InsufficientTokens("needs 1, 0 free: top up")


@pytest.mark.parametrize("path", POSTS)
async def test_who_can_pay_for_no_token_makes_no_engine_work(path):
    """Neither a chat template is rendered for them nor a prompt made tokens: their bodies are not even read as JSON."""
    transport = httpx.ASGITransport(Admission(app, trust=TRUST, afford=poor))
    async with httpx.AsyncClient(transport=transport, base_url="http://r") as http:
        body = b'{"use_beam_search": true, "echo": true, "prompt": ' + b"[" * 10_000
        answer = await http.post(path, content=body, headers=HEADERS)
    assert answer.status_code == 402
