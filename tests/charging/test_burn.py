"""The burn curve."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.charging.burn import DEFAULT_POINTS, BurnCurve, flaws_of, ratio

STEEP = BurnCurve(((0, 100_000), (333_333, 400_001), (800_000, 1_000_000), (1_000_000, 1_250_000)))


@pytest.mark.parametrize(
    ("utilisation_ppm", "f_ppm"),
    [
        (-1, 250_000),
        (0, 250_000),
        (400_000, 625_000),
        (800_000, 1_000_000),
        (900_000, 1_000_000),
        (1_000_000, 1_000_000),
        (2_000_000, 1_000_000),
    ],
)
def test_the_reference_curve_has_a_floor_goes_through_one_at_80_percent_and_is_capped(utilisation_ppm, f_ppm):
    assert BurnCurve().f_ppm(utilisation_ppm) == f_ppm


def test_a_contract_may_burn_up_to_a_quarter_above_the_reference():
    assert STEEP.f_ppm(900_000) == 1_125_000
    assert (STEEP.floor_ppm, STEEP.max_ppm) == (100_000, 1_250_000)


@given(st.integers(0, 1_000_000), st.integers(0, 1_000_000))
def test_a_busier_device_never_burns_less(one, other):
    assert STEEP.f_ppm(min(one, other)) <= STEEP.f_ppm(max(one, other))


@given(device_us=st.integers(1, 10**9), band=st.integers(0, 1))
def test_on_the_border_of_two_bands_both_say_the_same(device_us, band):
    device_us *= 1_000_000
    busy_us = device_us // 1_000_000 * STEEP.points[band + 1][0]
    sides = [STEEP.scaled(side, busy_us=busy_us, device_us=device_us) for side in (band, band + 1)]
    assert sides[0] == sides[1]


FLAWED = [
    ((), None, "0 points", "at least two"),
    (((0, 1_000_000),), None, "1 points", "at least two"),
    (((1, 250_000), (800_000, 1_000_000), (1_000_000, 1_000_000)), 0, "utilisation 0.000001", "at utilisation 0"),
    (((0, 250_000), (800_000, 1_000_000)), 1, "utilisation 0.8", "last point at utilisation 1"),
    (((0, 250_000), (800_000, 1_000_000), (1_100_000, 1_000_000)), 2, "utilisation 1.1", "utilisation 1"),
    (((0, 0), (800_000, 1_000_000), (1_000_000, 1_000_000)), 0, "f 0", "an idle device is still occupied"),
    (((0, -5), (800_000, 1_000_000), (1_000_000, 1_000_000)), 0, "f -0.000005", "more than 0"),
    (((0, 250_000), (800_000, 1_000_000), (1_000_000, 999_999)), 2, "f 0.999999 after 1", "never falls"),
    (((0, 250_000), (0, 300_000), (800_000, 1_000_000), (1_000_000, 1_000_000)), 1, "utilisation 0 after 0", "rise"),
    (((0, 250_000), (800_000, 1_000_000), (1_000_000, 1_250_001)), 2, "f 1.250001", "at most 1.25"),
    (((0, 250_000), (800_000, 999_999), (1_000_000, 1_000_000)), None, "f(0.8) = 0.999999", "f(0.8) = 1"),
    (((0, 250_000), (1_000_000, 1_000_000)), None, "f(0.8) = 0.85", "what a token is"),
]


@pytest.mark.parametrize(("points", "at", "found", "allowed"), FLAWED)
def test_a_flawed_curve_is_refused_with_the_point_and_the_reason(points, at, found, allowed):
    flaw = flaws_of(points)[0]
    assert flaw.at == at
    assert found in flaw.found
    assert allowed in flaw.allowed
    with pytest.raises(ValueError, match="points"):
        BurnCurve(points)


def test_a_curve_that_misses_one_by_less_than_a_ppm_is_refused():
    assert [flaw.found for flaw in flaws_of(((0, 250_000), (799_999, 1_000_000), (1_000_000, 1_000_001)))] == [
        "f(0.8) just beside 1"
    ]


def test_every_flaw_is_said_at_once():
    assert [flaw.at for flaw in flaws_of(((5, 300_000), (4, 200_000), (9, 2_000_000)))] == [0, 1, 1, 2, 2]


def test_the_reference_curve_has_no_flaw():
    assert flaws_of(DEFAULT_POINTS) == ()


def test_a_curve_survives_the_journal_and_a_flawed_one_can_not_be_read_from_it():
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(STEEP), type=BurnCurve) == STEEP
    with pytest.raises(msgspec.ValidationError, match="never falls"):
        msgspec.json.decode(b'{"points": [[0, 900000], [800000, 800000], [1000000, 1000000]]}', type=BurnCurve)


@pytest.mark.parametrize(
    ("ppm", "text"), [(0, "0"), (1_000_000, "1"), (315_000, "0.315"), (10_000_000, "10"), (-1, "-0.000001")]
)
def test_a_ratio_reads_as_people_write_it(ppm, text):
    assert ratio(ppm) == text
