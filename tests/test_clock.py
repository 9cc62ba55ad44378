"""A clock that nobody can set."""

import time

import pytest

from fabric.clock import SteadyClock

HOUR_NS = 3_600 * 10**9


@pytest.fixture
def wall(monkeypatch):
    """The wall's and the monotonic time, in ns, as this test sets them."""
    times = {"wall": 1_700_000_000 * 10**9, "monotonic": 50 * 10**9}
    monkeypatch.setattr(time, "time_ns", lambda: times["wall"])
    monkeypatch.setattr(time, "monotonic_ns", lambda: times["monotonic"])
    return times


@pytest.mark.parametrize("jump_ns", [-HOUR_NS, HOUR_NS, -20 * 365 * 24 * HOUR_NS])
def test_a_wall_clock_that_jumps_while_it_runs_is_not_noticed(wall, jump_ns):
    clock = SteadyClock()
    began = clock.now_us()
    assert began == wall["wall"] // 1000
    wall["wall"] += jump_ns
    wall["monotonic"] += 5_000_000
    assert clock.now_us() == began + 5_000


def test_it_goes_on_from_the_last_time_known_and_never_goes_back_to_it(wall):
    clock = SteadyClock()
    began = clock.now_us()
    clock.go_on_from(began - 10)
    assert clock.now_us() == began
    clock.go_on_from(began + 10)
    assert clock.now_us() == began + 10
    wall["monotonic"] += 1_000_000
    assert clock.now_us() == began + 1_010
