"""What a replica counts for its operator: by model and tier, never by account, key or call.

Models come from the offer and tiers from the gateway, so nobody outside can make a new series. The engine's own figures
go the same way (`serving.engines.vllm`), and all of them with Ray's to Prometheus.
"""

from typing import Final, Protocol

from serving.calls import Call

TIERS: Final = ("starter", "professional", "enterprise")
"""By their rank."""
_SECONDS: Final = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]


class Seen(Protocol):
    """Told of every call."""

    def began(self, *, model: str, tier_rank: int, seconds: float) -> None:
        """The first token of a call came, so long after it was asked for."""
        ...

    def ended(self, call: Call, *, tier_rank: int, charged_uhs: int) -> None: ...


class Unseen:
    """Counts nothing: outside Ray nobody reads it."""

    def began(self, *, model: str, tier_rank: int, seconds: float) -> None: ...
    def ended(self, call: Call, *, tier_rank: int, charged_uhs: int) -> None: ...


class SeenByRay:
    """Ray's counters. Only inside a process that Ray runs."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Histogram  # noqa: PLC0415 - a replica may run without Ray

        where = ("model", "tier")
        self._calls = Counter("fabric_replica_calls", "Calls by how they ended.", tag_keys=(*where, "ended"))
        self._tokens = Counter("fabric_replica_llm_tokens", "Metered, by kind.", tag_keys=(*where, "kind"))
        self._charged = Counter("fabric_replica_charged_uhs", "Charged for them.", tag_keys=where)
        self._first = Histogram(
            "fabric_replica_first_token_seconds", "Until the first.", boundaries=_SECONDS, tag_keys=where
        )

    def began(self, *, model: str, tier_rank: int, seconds: float) -> None:
        """As `Seen`."""
        self._first.observe(seconds, tags=_tags(model, tier_rank))

    def ended(self, call: Call, *, tier_rank: int, charged_uhs: int) -> None:
        """As `Seen`."""
        tags, usage = _tags(call.model, tier_rank), call.usage
        self._calls.inc(1, tags={**tags, "ended": call.ended})
        kinds = {
            "prompt": usage.prompt_tokens,
            "cached": usage.cached_tokens,
            "completion": usage.completion_tokens,
            "reasoning": usage.reasoning_tokens,
        }
        for kind, tokens in kinds.items():
            if tokens:
                self._tokens.inc(tokens, tags={**tags, "kind": kind})
        if charged_uhs:
            self._charged.inc(charged_uhs, tags=tags)


def _tags(model: str, tier_rank: int) -> dict[str, str]:
    return {"model": model, "tier": TIERS[tier_rank]}
