"""How many replicas: more when callers wait or are late, fewer after quiet, never beyond the bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.host.scaling import Bounds, Demand, wanted


@pytest.mark.parametrize(
    ("running", "waiting", "replicas", "ttft_ms", "quiet_s", "bounds", "expected"),
    [
        (0, 0, 0, None, 0, Bounds(0, 3), 0),
        (0, 1, 0, None, 0, Bounds(0, 3), 1),  # somebody asks for a model that sleeps
        (0, 0, 1, None, 30, Bounds(0, 3), 1),
        (0, 0, 1, None, 61, Bounds(0, 3), 0),
        (0, 0, 1, None, 999, Bounds(1, 3), 1),
        (8, 0, 1, None, 0, Bounds(0, 3), 1),
        (9, 0, 1, None, 0, Bounds(0, 3), 2),
        (10, 40, 1, None, 0, Bounds(0, 3), 3),
        (3, 0, 1, 900, 0, Bounds(0, 3, ttft_objective_us=500_000), 2),
        (0, 0, 1, 900, 0, Bounds(0, 3, ttft_objective_us=500_000), 1),  # late once, but nobody is there now
        (3, 0, 1, 400, 0, Bounds(0, 3, ttft_objective_us=500_000), 1),
        (1, 0, 3, None, 61, Bounds(0, 3), 2),  # one at a time
    ],
)
def test_replicas_follow_what_is_asked_for(running, waiting, replicas, ttft_ms, quiet_s, bounds, expected):
    ttft_us = None if ttft_ms is None else ttft_ms * 1_000
    demand = Demand(running, waiting, replicas, capacity=10, ttft_us=ttft_us, quiet_us=quiet_s * 1_000_000)
    assert wanted(demand, bounds) == expected


@given(
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(0, 40),
    st.integers(0, 64),
    st.integers(0, 5),
    st.integers(5, 9),
)
def test_the_bounds_hold_whatever_happens(running, waiting, replicas, capacity, least, most):
    demand = Demand(running, waiting, replicas, capacity, ttft_us=10**6, quiet_us=10**9)
    assert least <= wanted(demand, Bounds(least, most, ttft_objective_us=1)) <= most
