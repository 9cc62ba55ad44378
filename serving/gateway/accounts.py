"""What a key's holder is told of itself and of its calls, in the words of OpenRouter's API."""

import re
import time
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Final

import msgspec

from fabric.units import family_of, format_cny, format_ct, format_llm_tokens
from serving.gateway.directory import KeyFacts, LimitFacts
from serving.gateway.generations import Generation
from serving.gateway.refusals import Headers

_DECIMALS: Final = 12
_RESETS: Final = {"day": "daily", "week": "weekly", "month": "monthly", "life": None}
"""As OpenRouter calls them."""
_UNITS: Final = {"ct": "CT", "cny": "CNY", "llm": "LLM tokens"}
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
    left = None if key.limit_uhs is None else max(0, key.limit_uhs - key.spent_uhs - key.held_uhs)
    nearest = _nearest(key, unit="ct")
    limit_uhs, resets = key.limit_uhs, None
    if nearest is not None and (left is None or nearest.left < left):
        limit_uhs, left, resets = nearest.amount, nearest.left, _RESETS.get(nearest.period)
    rate = {"requests": key.requests_per_min or None, "tokens": key.tokens_per_min or None, "interval": "1m"}
    ends = None if key.expires_at_us is None else datetime.fromtimestamp(key.expires_at_us / 1e6, tz=UTC).isoformat()
    data = {
        "label": key.name or key.key_id,
        "limit": None if limit_uhs is None else number(limit_uhs),
        "limit_reset": resets,
        "limit_remaining": None if left is None else number(min(left, key.free_uhs)),
        "usage": number(key.spent_uhs),
        "is_free_tier": False,
        "rate_limit": rate,
        "expires_at": ends,
        "unit": "compute_tokens",
    }
    limits = [_shown(each) for each in key.limits]
    return {"data": data, "fabric": {"key": key.key_id, "account": key.account_id, "limits": limits}}


def limit_headers(key: KeyFacts) -> Headers:
    """What an answer says of the limit of which the least is left, as it stood a moment before the call; [] = there is none."""
    nearest = _nearest(key)
    if nearest is None:
        return []
    ends = [] if nearest.resets_at_us is None else [(b"x-fabric-limit-reset", _moment(nearest.resets_at_us).encode())]
    said = f"{_number(nearest.amount, nearest.unit)} {_UNITS.get(nearest.unit, nearest.unit)} per {nearest.period}"
    return [
        (b"x-fabric-limit", said.encode()),
        (b"x-fabric-limit-remaining", _number(nearest.left, nearest.unit).encode()),
        *ends,
    ]


def _nearest(key: KeyFacts, *, unit: str = "") -> LimitFacts | None:
    """The hard limit of which the least part is left."""
    hard = [each for each in key.limits if each.hard and unit in ("", each.unit)]
    return min(hard, key=lambda each: each.left if unit else Fraction(each.left, each.amount), default=None)


def _shown(limit: LimitFacts) -> dict[str, Any]:
    ends = None if limit.resets_at_us is None else _moment(limit.resets_at_us)
    return {
        "of": limit.whose,
        "period": limit.period,
        "unit": limit.unit,
        "hard": limit.hard,
        "limit": msgspec.Raw(_number(limit.amount, limit.unit).encode()),
        "used": msgspec.Raw(_number(limit.used, limit.unit).encode()),
        "held": msgspec.Raw(_number(limit.held, limit.unit).encode()),
        "remaining": msgspec.Raw(_number(limit.left, limit.unit).encode()),
        "resets_at": ends,
        "time_zone": limit.zone,
    }


def _number(amount: int, unit: str) -> str:
    if unit == "ct":
        return format_ct(amount, decimals=8)
    return format_cny(amount) if unit == "cny" else str(amount)


def _moment(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // 1_000_000, tz=UTC).isoformat()


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
    facts: dict[str, Any] = {"call": one.call_id, "state": "booked" if known else "running"}
    facts["tags"] = dict(tag.partition("=")[::2] for tag in one.tags)
    if charged_uhs is not None:
        facts |= {"charged_uhs": str(charged_uhs), "charged_ct": format_ct(charged_uhs, decimals=8)}
    return {"data": data, "fabric": facts}


def number(uhs: int) -> msgspec.Raw:
    """Compute tokens as a JSON number in decimals: written, never reckoned."""
    return msgspec.Raw(format_ct(uhs, decimals=_DECIMALS, round_up=True).encode())


def now_us() -> int:
    """On the wall."""
    return time.time_ns() // 1_000
