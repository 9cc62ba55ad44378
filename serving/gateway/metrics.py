"""What a gateway counts, for Prometheus: by model, tier and class of status, never by account or key.

Model names come from the fabric's list and tiers from its plans, so that no client can make a new series.
"""

from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.gateway.admission import Pools
from serving.gateway.events import Usage

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TIERS: Final = {0: "enterprise", 1: "professional", 2: "starter"}
_KEPT_MAX: Final = 10_000

Kind = TypeVar("Kind", Counter, Histogram)


class _Series(Generic[Kind]):
    """The series of a metric by model, rank and what else tells them apart: each is looked for once, not for each request."""

    def __init__(self, metric: Kind) -> None:
        self._metric: Kind = metric
        self._kept: dict[tuple[str | int, ...], Kind] = {}

    def of(self, model: str, rank: int, *more: str) -> Kind:
        """The one of a model and a rank."""
        found = self._kept.get((model, rank, *more))
        if found is None:
            if len(self._kept) >= _KEPT_MAX:
                self._kept.clear()
            found = self._kept[(model, rank, *more)] = self._metric.labels(model, tier_of(rank), *more)
        return found


class Metrics:
    """One gateway's numbers."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        where = ["model", "tier"]
        self._requests = Counter("fabric_gateway_requests", "Ended", [*where, "status"], registry=registry)
        self._ended = _Series(self._requests)
        self._refusals = Counter("fabric_gateway_refusals", "Refused here, by why", ["code"], registry=registry)
        self._tokens = _Series(
            Counter("fabric_gateway_llm_tokens", "Told by answers", [*where, "kind"], registry=registry)
        )
        self._first = _seconds("fabric_gateway_first_byte_seconds", "Until the answer begins", registry)
        self._queued = _seconds("fabric_gateway_queue_seconds", "In line", registry)
        self._lost = Counter("fabric_gateway_replica_lost", "Cut off by a replica's end", ["model"], registry=registry)
        self._waiting = Gauge("fabric_gateway_waiting", "Requests in line", where, registry=registry)
        self._seated = Gauge("fabric_gateway_running", "Requests at replicas", ["model"], registry=registry)
        self._replicas = Gauge("fabric_gateway_replicas", "Replicas that may be asked", ["model"], registry=registry)
        self._board = Gauge("fabric_gateway_board_age_seconds", "Since replicas were told of", registry=registry)
        self._open = Gauge("fabric_gateway_open_requests", "Requests in hand", registry=registry)

    def ended(self, *, model: str, rank: int, status: int) -> None:
        """A request ended; `status` 499 is a client that left."""
        self._ended.of(model, rank, f"{status // 100}xx").inc()

    def refused(self, code: str) -> None:
        """A request was refused here."""
        self._refusals.labels(code).inc()

    def began(self, *, model: str, rank: int, seconds: float) -> None:
        """The answer's first byte left."""
        self._first.of(model, rank).observe(seconds)

    def seated(self, *, model: str, rank: int, seconds: float) -> None:
        """A request left the line for a replica."""
        self._queued.of(model, rank).observe(seconds)

    def lost(self, model: str) -> None:
        """A replica went away in the middle."""
        self._lost.labels(model).inc()

    def used(self, *, model: str, rank: int, usage: Usage) -> None:
        """An answer told its usage."""
        for kind, tokens in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            series = self._tokens.of(model, rank, kind)
            if tokens > 0:
                series.inc(tokens)

    def exposition(self, pools: Pools, *, open_requests: int, board_age_s: float) -> bytes:
        """Everything as text."""
        self._open.set(open_requests)
        self._board.set(board_age_s)
        for gauge in (self._waiting, self._seated, self._replicas):
            gauge.clear()
        for model, _, pool in pools.items():
            for rank, waiting in pool.waiting_by_rank().items():
                self._waiting.labels(model, tier_of(rank)).inc(waiting)
            self._seated.labels(model).inc(pool.seated)
            self._replicas.labels(model).inc(sum(replica.state == "ready" for replica in pool.replicas))
        return generate_latest(self._registry)


def tier_of(rank: int) -> str:
    """What people call a tier."""
    return _TIERS.get(rank, "other")


def _seconds(name: str, what: str, registry: CollectorRegistry) -> _Series[Histogram]:
    return _Series(Histogram(name, what, ["model", "tier"], buckets=_SECONDS, registry=registry))
