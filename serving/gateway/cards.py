"""A model as `GET /v1/models` shows it: vLLM's fields, those that OpenRouter's clients read, and our rates beside them."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from fabric.charging.rates import Rate
from fabric.units import UHS_PER_CT
from serving.gateway.directory import ModelFacts

_DIGITS: Final = 15
_TOKENS: Final = 1_000_000
_MICRO: Final = 1_000_000
_ALWAYS: Final = (
    "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "min_p", "presence_penalty", "repetition_penalty",
    "response_format", "seed", "stop", "structured_outputs", "temperature", "top_k", "top_logprobs", "top_p",
)  # fmt: skip
_ABILITIES: Final = ("text", "embeddings", "scores")
_KINDS: Final = (
    ("prompt", "input_uhs_per_mtok"), ("completion", "output_uhs_per_mtok"), ("input_cache_read", "cached_uhs_per_mtok"),
    ("internal_reasoning", "reasoning_uhs_per_mtok"),
)  # fmt: skip


def card(model: ModelFacts, *, price_microcny_per_ct: int) -> dict[str, Any]:
    """The card.

    Args:
        model: what is known of it.
        price_microcny_per_ct: what a compute token costs on the caller's plan; 0 = not known.
    """
    tools = ("tools", "tool_choice", "parallel_tool_calls") if model.calls_tools else ()
    said: dict[str, Any] = {
        "id": model.name,
        "object": "model",
        "created": model.created_at_us // 1_000_000,
        "owned_by": "token-fabric",
        "root": model.parent or model.name,
        "parent": model.parent or None,
        "max_model_len": model.max_context,
        "context_length": model.max_context,
        "permission": [],
        "capabilities": _capabilities(model),
        "supported_parameters": sorted((*_ALWAYS, *tools, *(("reasoning",) if model.reasons else ()))),
        "fabric": {"state": model.state, "rates": [msgspec.to_builtins(rate) for rate in model.rates]},
    }
    if model.rates:
        said["pricing_ct"] = _prices(model.rates, per_ct=_MICRO)
        if price_microcny_per_ct:
            said["pricing"] = {"currency": "CNY", **_prices(model.rates, per_ct=price_microcny_per_ct)}
    return said


def _capabilities(model: ModelFacts) -> dict[str, bool]:
    """What it can be asked for, as far as that is known: before its first replica has started nobody knows."""
    if not model.abilities:
        return {"tools": model.calls_tools, "structured_outputs": True, "reasoning": model.reasons}
    writes = "text" in model.abilities
    return {
        **{ability: ability in model.abilities for ability in _ABILITIES},
        "tools": writes and model.calls_tools,
        "structured_outputs": writes,
        "reasoning": writes and model.reasons,
    }


def _prices(rates: Sequence[Rate], *, per_ct: int) -> dict[str, str]:
    """For one LLM token of each kind, in decimals: on the accelerator where it costs most."""
    return {
        kind: _decimal(max(getattr(rate, name) for rate in rates) * per_ct, _TOKENS * int(UHS_PER_CT) * _MICRO)
        for kind, name in _KINDS
    }


def _decimal(number: int, by: int) -> str:
    """A quotient with `_DIGITS` decimals, rounded up: a price is never shown lower than it is."""
    scaled = -(-number * 10**_DIGITS // by)
    return f"{scaled // 10**_DIGITS}.{scaled % 10**_DIGITS:0{_DIGITS}d}"
