"""What a replica counts: by model, tier and how calls end, and never by who asked."""

import itertools
from typing import ClassVar

import pytest

from serving.calls import Call, Usage
from serving.metering import metrics


class MetricStandIn:
    made: ClassVar[dict] = {}

    def __init__(self, name, _, *, tag_keys, **more):
        self.keys, self.series = set(tag_keys), {}
        MetricStandIn.made[name] = self

    def inc(self, value, tags):
        assert set(tags) == self.keys
        assert value > 0
        key = tuple(sorted(tags.items()))
        self.series[key] = self.series.get(key, 0) + value

    observe = inc


@pytest.fixture
def counters(monkeypatch):
    monkeypatch.setattr(MetricStandIn, "made", {})
    monkeypatch.setattr("ray.util.metrics.Counter", MetricStandIn)
    monkeypatch.setattr("ray.util.metrics.Histogram", MetricStandIn)
    return MetricStandIn.made


def call(number, ended, usage):
    return Call(f"c{number}", f"account{number}", f"key{number}", "m", "H100", usage, 0, 1, ended)


def test_a_thousand_callers_make_no_more_series_than_one(counters):
    told = metrics.SeenByRay()
    ends = ("stop", "length", "balance_exhausted", "client_gone", "error", "cancelled")
    for number, (ended, rank) in enumerate(itertools.islice(itertools.cycle(itertools.product(ends, range(3))), 1_000)):
        told.began(model="m", tier_rank=rank, seconds=0.1)
        told.ended(call(number, ended, Usage(5, 1, 3, 1)), tier_rank=rank, charged_uhs=7)
    assert {name: len(each.series) for name, each in counters.items()} == {
        "fabric_replica_calls": 18, "fabric_replica_llm_tokens": 12, "fabric_replica_charged_uhs": 3,
        "fabric_replica_first_token_seconds": 3,
    }  # fmt: skip
    tokens = counters["fabric_replica_llm_tokens"].series
    kinds = {kind: sum(n for key, n in tokens.items() if ("kind", kind) in key) for kind in ("prompt", "completion")}
    assert kinds == {"prompt": 5_000, "completion": 3_000}
    assert "account" not in str(tokens)


def test_what_cost_nothing_is_a_call_all_the_same(counters):
    told = metrics.SeenByRay()
    told.ended(call(1, "error", Usage(0)), tier_rank=2, charged_uhs=0)
    assert counters["fabric_replica_calls"].series == {(("ended", "error"), ("model", "m"), ("tier", "enterprise")): 1}
    assert counters["fabric_replica_llm_tokens"].series == {}
