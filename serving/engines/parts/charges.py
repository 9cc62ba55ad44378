"""What a call has cost, put beside what an engine answers."""

import contextlib
import json
from typing import Any, Final

import msgspec

from fabric.units import CT_DECIMALS, family_of, format_ct, format_llm_tokens
from serving.metering.packages import units_of
from serving.metering.payer import SignedPayer

DATA: Final = b"data: "
"""What an event's line in a stream begins with."""
USAGE: Final = b'"usage"'
_LAST_EVENTS: Final = frozenset({"message_delta", "response.completed", "response.incomplete"})
_COST_DECIMALS: Final = 12


def stated(line: bytes, ticket: SignedPayer) -> bytes:
    """A line of a stream with, where it is the last word on usage, what the meter has booked."""
    if not line.startswith(DATA) or USAGE not in line or not _is_last_word(said_in(line)):
        return line
    return costed_line(line, ticket)


def said_in(line: bytes) -> dict[str, Any]:
    """The document of a line of a stream; {} where there is none."""
    with contextlib.suppress(ValueError):
        said = json.loads(line.removeprefix(DATA))
        if isinstance(said, dict):
            return said
    return {}


def costed_line(line: bytes, ticket: SignedPayer) -> bytes:
    """A line of a stream as `costed`."""
    return DATA + costed(line.removeprefix(DATA).rstrip(), ticket)


def costed(body: bytes, ticket: SignedPayer) -> bytes:
    """A document with what the meter has booked: `fabric` beside everything, and `usage.cost` in compute tokens, as
    OpenRouter's clients read it. All else stays as the engine wrote it.
    """
    try:
        said = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        inner = msgspec.json.decode(said["response"], type=dict[str, msgspec.Raw]) if "response" in said else said
        if "usage" in inner and (usage := msgspec.json.decode(inner["usage"], type=dict[str, msgspec.Raw] | None)):
            inner["usage"] = msgspec.Raw(msgspec.json.encode({**usage, **_cost(ticket)}))
    except msgspec.MsgspecError:
        return body
    if inner is not said:
        said["response"] = msgspec.Raw(msgspec.json.encode(inner))
    ct = format_ct(ticket.charged_uhs, decimals=CT_DECIMALS)
    fabric: dict[str, Any] = {"call": ticket.call_id, "charged_uhs": str(ticket.charged_uhs), "charged_ct": ct}
    fabric |= ticket.llm_tokens()
    if taken := units_of(ticket.ended):
        fabric["packages"] = [
            {"asset": asset, "family": family_of(asset), "llm_tokens": format_llm_tokens(units)}
            for asset, units in taken.items()
        ]
    return msgspec.json.encode({**said, "fabric": fabric})


def _cost(ticket: SignedPayer) -> dict[str, Any]:
    """A number in decimals that is written, never reckoned, as one."""
    ct = format_ct(ticket.charged_uhs, decimals=_COST_DECIMALS, round_up=True)
    details = {"unit": "compute_tokens", "charged_uhs": str(ticket.charged_uhs)}
    return {"cost": msgspec.Raw(ct.replace(",", "").encode()), "cost_details": details}


def _is_last_word(said: dict[str, Any]) -> bool:
    """Whether an event tells the usage of a whole answer: OpenAI's chunk without choices, or the other surfaces' last."""
    if said.get("type") in _LAST_EVENTS:
        return True
    return "type" not in said and said.get("choices") == [] and bool(said.get("usage"))
