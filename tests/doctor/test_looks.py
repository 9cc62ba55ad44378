"""The doctor says how the gate's looks for unleased use go."""

import msgspec
import pytest

from fabric.doctor import Health, dependencies
from fabric.enforcement.health import Health as Looks

NOW_S = 1_000_000


def said(**facts):
    return msgspec.json.encode(Looks(**{"looks": 100, "removed": 3, "at_s": NOW_S, **facts}))


@pytest.mark.parametrize(
    ("told", "health", "naming"),
    [
        (said(), Health.OK, "3 uses ended, 0 failures in 100 looks"),
        (said(failures=2), Health.OK, "2 failures in 100 looks"),
        (said(failures=2, failing=2, last_failure="actors: UNAVAILABLE"), Health.WARN, "actors: UNAVAILABLE"),
        (said(at_s=NOW_S - 600), Health.WARN, "for 600 s"),
    ],
)
def test_looks_that_fail_or_stop_are_told_with_a_remedy(told, health, naming):
    (finding,) = dependencies.check_reconciler(told, now_s=NOW_S)
    assert finding.health is health
    assert naming in finding.found
    assert bool(finding.remedy) == (health is Health.WARN)


def test_devices_that_ray_holds_for_nobody_are_told_with_their_node_and_a_remedy():
    _, finding = dependencies.check_reconciler(said(stuck={"h1": 2}), now_s=NOW_S)
    assert finding.health is Health.WARN
    assert "2 of its devices" in finding.found
    assert "drain h1" in finding.remedy


def test_a_cluster_that_no_gate_has_looked_at_yet_is_left_out():
    assert dependencies.check_reconciler(b"", now_s=NOW_S) == []
