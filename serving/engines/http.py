"""The engine `http`: a server that somebody else keeps up, and that speaks as vLLM's own does.

An offer names its URL as the model's source (`http://10.0.0.7:8000`). The lease is where the meter before it runs; the server
should be reachable for replicas alone, as it knows neither accounts nor keys of the fabric. Where it doesn't salt its prefix
cache (`cache_salt`), accounts share that, and one may find out by the time to a first token what another has asked.
"""

from typing import Any, Final
from urllib.parse import urlsplit

from fabric.errors import InvalidRequest
from serving.engines.parts.openai_requests import CHAT
from serving.engines.parts.proxy import ProxiedEngine
from serving.engines.port import Start
from serving.metering.meter import Meter
from serving.metering.payer import SignedPayer

_CHAT_ID: Final = "chatcmpl"
_COMPLETION_ID: Final = "cmpl"


async def open_engine(start: Start, meter: Meter) -> ProxiedEngine:
    """As `serving.engines.port` has it.

    Raises:
        InvalidRequest: the source is no URL (code `bad_source`), or the server can't be metered (code `engine_unmetered`).
        Unavailable: it can't be reached (code `engine_unreachable`).
    """
    parts = urlsplit(start.source)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/") or parts.query:
        raise InvalidRequest(
            f"the engine http asks a server by its URL, such as http://10.0.0.7:8000: {start.source[:200]!r} is none",
            code="bad_source",
        )
    if start.options:
        raise InvalidRequest(
            f"the engine http starts nothing, and takes no options: {' '.join(start.options)[:200]}",
            code="invalid_engine_arg",
        )
    return await ProxiedEngine.open(start.source, Vllm(), start, meter)


class Vllm:
    """As `vllm serve` is spoken to."""

    def marked(self, body: dict[str, Any], ticket: SignedPayer, call_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        headers = {"X-Request-Id": call_id, "X-Vllm-Priority": str(-ticket.tier_rank)}
        return {**body, "cache_salt": ticket.salt}, headers

    def stopped(self, path: str, call_id: str) -> tuple[str, dict[str, Any]]:
        kind = _CHAT_ID if path == CHAT else _COMPLETION_ID
        return "/inference/v1/abort_requests", {"request_ids": [f"{kind}-{call_id}"]}
