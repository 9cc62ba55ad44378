"""Moments in price files: from when on they hold, and when an offer ends."""

import pytest

from fabric.charging.catalogue import Ends
from fabric.config.cluster import shipped
from fabric.config.prices import load_catalogue, load_tariffs
from tests.config.test_prices import changed

MIDNIGHT_US = 1_798_732_800_000_000
"""As 2027 begins in Shanghai."""


@pytest.mark.parametrize(
    "said",
    [
        '"2027-01-01T00:00+08:00"',
        "2027-01-01T00:00:00+08:00",
        '"2026-12-31T16:00Z"',
        '"2027-01-01 00:00 Asia/Shanghai"',
        "2027-01-01 Asia/Shanghai",
    ],
)
def test_prices_say_from_when_on_they_hold_with_its_time_zone(said, tmp_path):
    for load, name in ((load_tariffs, "tariffs.yaml"), (load_catalogue, "plans.yaml")):
        text = shipped(name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(f"{text}\neffective_from: {said}\n", encoding="utf-8")
        assert load(tmp_path / name).effective_from_us == MIDNIGHT_US
        assert load(shipped(name)).effective_from_us == 0, "at once"


def test_a_subscription_says_how_it_ends(tmp_path):
    first, second = (each.name for each in load_catalogue(shipped("plans.yaml")).subscriptions)
    ends = {"at": "2027-01-01 00:00 Asia/Shanghai", "then": second, "rollover": "keep"}
    file = tmp_path / "plans.yaml"
    file.write_text(changed(load_catalogue, ("subscriptions", 0, "ends"), ends), encoding="utf-8")
    found = load_catalogue(file)
    assert found.subscription(first).ends == Ends(at_us=MIDNIGHT_US, then=second, keeps_rollover=True)
    assert found.subscription(second).ends is None
    del ends["then"], ends["rollover"]
    file.write_text(changed(load_catalogue, ("subscriptions", 0, "ends"), ends), encoding="utf-8")
    assert load_catalogue(file).subscription(first).ends == Ends(at_us=MIDNIGHT_US)
