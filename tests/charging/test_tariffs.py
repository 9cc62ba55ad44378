"""Tariffs and the names of accelerators."""

import msgspec
import pytest

from fabric.charging.tariffs import Tariffs, Weight, within

HOUR_US = 3_600_000_000
TARIFFS = Tariffs(
    version=3,
    utc_offset_minutes=8 * 60,
    weights=(
        Weight(accelerator="H100", ppm=1_000_000),
        Weight(accelerator="H100", ppm=800_000, hours=(22, 6)),
        Weight(accelerator="H100", ppm=900_000, tier="enterprise"),
        Weight(accelerator="H100", ppm=850_000, service="inference"),
        Weight(accelerator="H100", ppm=700_000, operator="east"),
        Weight(accelerator="H100", ppm=600_000, tier="enterprise", hours=(0, 24)),
        Weight(accelerator="A100", ppm=315_000),
    ),
)
NOON, MIDNIGHT = 4 * HOUR_US, 16 * HOUR_US  # in Beijing


@pytest.mark.parametrize(
    ("given", "ppm"),
    [
        ({"service": "training", "at_us": NOON}, 1_000_000),
        ({"service": "training", "at_us": MIDNIGHT}, 800_000),
        ({"service": "inference", "at_us": NOON}, 850_000),
        ({"service": "inference", "at_us": MIDNIGHT}, 850_000),
        ({"service": "inference", "operator": "west", "at_us": NOON}, 850_000),
        ({"service": "inference", "operator": "east", "at_us": NOON}, 700_000),
        ({"service": "inference", "operator": "east", "tier": "enterprise", "at_us": NOON}, 600_000),
        ({"service": "training", "tier": "starter", "at_us": NOON}, 1_000_000),
    ],
)
def test_the_weight_with_the_most_conditions_counts_and_operator_before_tier_before_service_before_hours(given, ppm):
    assert TARIFFS.weight_ppm("H100", **given) == ppm


def test_the_order_of_the_lines_does_not_matter():
    turned = msgspec.structs.replace(TARIFFS, weights=TARIFFS.weights[::-1])
    for hour in range(24):
        for service in ("training", "inference"):
            given = {"service": service, "operator": "east", "tier": "enterprise", "at_us": hour * HOUR_US}
            assert turned.weight_ppm("H100", **given) == TARIFFS.weight_ppm("H100", **given)


def test_a_type_without_a_price_has_no_weight():
    assert TARIFFS.weight_ppm("910B", service="training") is None


def test_accelerators_come_once_each_in_the_order_of_the_file():
    assert TARIFFS.accelerators == ("H100", "A100")


def test_tariffs_survive_the_journal():
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(TARIFFS), type=Tariffs) == TARIFFS


@pytest.mark.parametrize(
    ("hours", "inside"),
    [((9, 12), {9, 10, 11}), ((22, 2), {22, 23, 0, 1}), ((22, 0), {22, 23}), ((0, 24), set(range(24)))],
)
def test_hours_may_go_over_midnight(hours, inside):
    assert {hour for hour in range(24) if within(hours, hour)} == inside
