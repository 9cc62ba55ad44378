"""What a key's holder is told of itself and of its calls, in the words of OpenRouter's API."""

import re
import time
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from fabric.units import family_of, format_ct, format_llm_tokens
from serving.gateway.directory import KeyFacts
from serving.gateway.generations import Generation

_DECIMALS: Final = 12
_CALL: Final = re.compile(r"c[0-9a-f]{24}", re.ASCII)


def call_named(text: str) -> str:
    """The call in a request's or an answer's id (`c…`, `chatcmpl-c…`); "" = there is none."""
    found = _CALL.search(text)
    return found[0] if found else ""


def credits_of(key: KeyFacts) -> dict[str, Any]:
    """What can be spent. `total_credits` less `total_usage` is what is free, as its readers reckon."""
    data = {"total_credits": number(key.free_uhs), "total_usage": 0, "unit": "compute_tokens"}
    facts: dict[str, Any] = {"free_uhs": str(key.free_uhs), "free_ct": format_ct(key.free_uhs, decimals=8)}
    if key.packages:
        facts["packages"] = [
            {"asset": asset, "family": family_of(asset), "free_llm_tokens": format_llm_tokens(free)}
            for asset, free in key.packages.items()
        ]
    return {"data": data, "fabric": facts}


def key_of(key: KeyFacts) -> dict[str, Any]:
    """The key itself."""
    left = None if key.limit_uhs is None else max(0, key.limit_uhs - key.spent_uhs)
    rate = {"requests": key.requests_per_min or None, "tokens": key.tokens_per_min or None, "interval": "1m"}
    ends = None if key.expires_at_us is None else datetime.fromtimestamp(key.expires_at_us / 1e6, tz=UTC).isoformat()
    data = {
        "label": key.name or key.key_id,
        "limit": None if key.limit_uhs is None else number(key.limit_uhs),
        "limit_remaining": None if left is None else number(min(left, key.free_uhs)),
        "usage": number(key.spent_uhs),
        "is_free_tier": False,
        "rate_limit": rate,
        "expires_at": ends,
        "unit": "compute_tokens",
    }
    return {"data": data, "fabric": {"key": key.key_id, "account": key.account_id}}


def generation(one: Generation, *, charged_uhs: int | None) -> dict[str, Any]:
    """A call, and what it cost; `charged_uhs` None = not known yet."""
    known = charged_uhs is not None
    data = {
        "id": one.call_id,
        "model": one.model,
        "created_at": datetime.fromtimestamp(one.at_us / 1e6, tz=UTC).isoformat(),
        "streamed": one.streamed,
        "cancelled": one.ended == "client_gone",
        "status": one.status,
        "generation_time": one.took_us // 1_000,
        "tokens_prompt": one.prompt_tokens,
        "tokens_completion": one.completion_tokens,
        "native_tokens_prompt": one.prompt_tokens,
        "native_tokens_completion": one.completion_tokens,
        "native_tokens_cached": one.cached_tokens,
        "native_tokens_reasoning": one.reasoning_tokens,
        "total_cost": number(charged_uhs or 0) if known else None,
        "unit": "compute_tokens",
    }
    facts = {"call": one.call_id, "state": "booked" if known else "running"}
    if charged_uhs is not None:
        facts |= {"charged_uhs": str(charged_uhs), "charged_ct": format_ct(charged_uhs, decimals=8)}
    return {"data": data, "fabric": facts}


def number(uhs: int) -> msgspec.Raw:
    """Compute tokens as a JSON number in decimals: written, never reckoned."""
    return msgspec.Raw(format_ct(uhs, decimals=_DECIMALS, round_up=True).encode())


def now_us() -> int:
    """On the wall."""
    return time.time_ns() // 1_000
