"""The figures about calls: told apart by model, tier and kind, and by nothing that grows with customers."""

from collections import defaultdict

import pytest

from fabric.charging.served import Served
from fabric.cluster import metrics

SEEN = defaultdict(float)


class StandInFigure:
    def __init__(self, name, _description, tag_keys=(), boundaries=None):
        self.name, self.tag_keys = name, tag_keys

    def inc(self, value, tags):
        assert set(tags) == set(self.tag_keys)
        assert value > 0, "Ray refuses to count nothing"
        SEEN[(self.name, *tags.values())] += value


@pytest.fixture
def figures(monkeypatch):
    SEEN.clear()
    for name in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(metrics, name, StandInFigure)
    return metrics.Metrics()


def test_calls_are_counted_by_model_and_tier(figures):
    figures.calls({("tiny", "starter"): Served(2, 200, 40, 20, 3_600_000_000), ("own", "pro"): Served(calls=1)})
    figures.calls({("tiny", "starter"): Served(3, 207, 40, 20, 3_600_000_000), ("own", "pro"): Served(calls=1)})
    assert dict(SEEN) == {
        ("fabric_calls", "tiny", "starter"): 3,
        ("fabric_calls", "own", "pro"): 1,
        ("fabric_llm_tokens", "tiny", "starter", "prompt"): 167,
        ("fabric_llm_tokens", "tiny", "starter", "cached"): 40,
        ("fabric_llm_tokens", "tiny", "starter", "completion"): 20,
        ("fabric_call_tokens_burned", "tiny", "starter"): 1.0,
    }
