"""Exact rating, against fractions."""

from fractions import Fraction
from itertools import pairwise
from math import ceil

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.charging.burn import BurnCurve
from fabric.charging.rating import Band, Meter, burn_per_s, hold_for, total_uhs
from fabric.charging.rounding import half_even, up
from fabric.units import PPM, UHS_PER_CT

HOUR_US = 3_600_000_000


@st.composite
def curves(draw):
    """Any curve there may be: through (0.8, 1), never falling, with widths that share no factor."""
    before = sorted(draw(st.sets(st.integers(1, 799_999), max_size=3)))
    rises = sorted(draw(st.lists(st.integers(1, PPM), min_size=len(before) + 1, max_size=len(before) + 1)))
    after = sorted(draw(st.sets(st.integers(800_001, 999_999), max_size=2)))
    tops = sorted(draw(st.lists(st.integers(PPM, 1_250_000), min_size=len(after) + 1, max_size=len(after) + 1)))
    return BurnCurve(tuple(zip([0, *before, 800_000, *after, PPM], [*rises, PPM, *tops], strict=True)))


WEIGHTS = st.integers(1, 3_000_000)
DEVICES = st.integers(1, 64)


@st.composite
def metered(draw):
    """Devices and some windows of theirs: (window_us, busy_us)."""
    devices = draw(DEVICES)
    lengths = draw(st.lists(st.integers(1, 20_000_000), min_size=1, max_size=12))
    return devices, [(length, draw(st.integers(0, devices * length))) for length in lengths]


def f(curve, utilisation):
    """The curve as it is defined, in fractions."""
    points = [(Fraction(x, PPM), Fraction(y, PPM)) for x, y in curve.points]
    for (left, low), (right, high) in pairwise(points):
        if utilisation <= right:
            return low + (high - low) * (utilisation - left) / (right - left)
    raise AssertionError(utilisation)


def exactly(curve, weight_ppm, devices, windows):
    return sum(
        Fraction(weight_ppm, PPM) * devices * window_us * f(curve, Fraction(busy_us, devices * window_us))
        for window_us, busy_us in windows
    )


def charges(curve, weight_ppm, devices, windows):
    meter = Meter(weight_ppm=weight_ppm, curve=curve)
    return [meter.add(devices=devices, window_us=window_us, busy_us=busy_us) for window_us, busy_us in windows]


def test_one_token_is_one_hour_of_one_h100_at_80_percent():
    assert charges(BurnCurve(), PPM, 1, [(HOUR_US, HOUR_US * 8 // 10)]) == [UHS_PER_CT]


@pytest.mark.parametrize(
    ("devices", "weight_ppm", "busy_part", "uhs"),
    [
        (1, 1_000_000, Fraction(0), 250_000),
        (1, 1_000_000, Fraction(1), 1_000_000),
        (8, 1_000_000, Fraction(1, 2), 8 * 718_750),
        (1, 315_000, Fraction(4, 5), 315_000),
        (4, 259_000, Fraction(2, 5), 4 * 161_875),
    ],
)
def test_a_second_burns_devices_times_weight_times_f(devices, weight_ppm, busy_part, uhs):
    busy_us = int(devices * 1_000_000 * busy_part)
    assert charges(BurnCurve(), weight_ppm, devices, [(1_000_000, busy_us)]) == [uhs]


@given(curves(), WEIGHTS, metered())
def test_the_sum_charged_is_the_exact_charge_rounded_once(curve, weight_ppm, work):
    devices, windows = work
    assert sum(charges(curve, weight_ppm, devices, windows)) == round(exactly(curve, weight_ppm, devices, windows))


@given(
    curves(),
    WEIGHTS,
    DEVICES,
    st.tuples(st.integers(1, 1_000_000), st.integers(0, PPM)),
    st.lists(st.integers(1, 1000), min_size=1, max_size=30),
)
def test_however_an_interval_is_split_the_sum_charged_is_the_same(curve, weight_ppm, devices, unit, parts):
    """Parts of one utilisation: multiples of the same window."""
    window_us, busy_ppm = unit
    busy_us = devices * window_us * busy_ppm // PPM
    split = charges(curve, weight_ppm, devices, [(window_us * part, busy_us * part) for part in parts])
    whole = charges(curve, weight_ppm, devices, [(window_us * sum(parts), busy_us * sum(parts))])
    assert sum(split) == sum(whole)


@given(curves(), WEIGHTS, metered())
def test_windows_of_one_band_charge_what_they_charge_as_one_window(curve, weight_ppm, work):
    """Even where their utilisations differ: that is why a charging record needs no more than the sums."""
    devices, windows = work
    bands = {curve.band_of(busy_us=busy_us, device_us=devices * window_us) for window_us, busy_us in windows}
    joined = [(sum(window for window, _ in windows), sum(busy for _, busy in windows))]
    if len(bands) == 1:
        assert sum(charges(curve, weight_ppm, devices, windows)) == sum(charges(curve, weight_ppm, devices, joined))


@given(curves(), WEIGHTS, metered(), st.randoms(use_true_random=False))
def test_the_order_of_windows_does_not_matter(curve, weight_ppm, work, random):
    devices, windows = work
    shuffled = random.sample(windows, len(windows))
    assert sum(charges(curve, weight_ppm, devices, windows)) == sum(charges(curve, weight_ppm, devices, shuffled))


@given(curves(), WEIGHTS, metered())
def test_no_window_ever_takes_a_charge_back(curve, weight_ppm, work):
    assert min(charges(curve, weight_ppm, *work)) >= 0


@given(curves(), WEIGHTS, metered(), st.booleans())
def test_a_hold_covers_whatever_is_metered(curve, weight_ppm, work, unseen):
    devices, windows = work
    meter = Meter(weight_ppm=weight_ppm, curve=curve)
    for window_us, busy_us in windows:
        meter.add(devices=devices, window_us=window_us, busy_us=busy_us)
    duration_us = sum(window for window, _ in windows)
    if unseen:
        meter.estimate(devices=devices, window_us=duration_us)
        duration_us *= 2
    held = hold_for(devices=devices, duration_us=duration_us, weight_ppm=weight_ppm, curve=curve)
    assert meter.rated_uhs <= held


@given(curves(), WEIGHTS, DEVICES, st.integers(1, HOUR_US))
def test_a_hold_is_what_devices_in_full_use_burn_and_not_a_unit_more(curve, weight_ppm, devices, duration_us):
    burned = exactly(curve, weight_ppm, devices, [(duration_us, devices * duration_us)])
    assert hold_for(devices=devices, duration_us=duration_us, weight_ppm=weight_ppm, curve=curve) == ceil(burned)


@given(curves(), WEIGHTS, DEVICES, st.integers(0, HOUR_US), st.integers(0, HOUR_US))
def test_two_holds_are_never_less_than_one_for_both(curve, weight_ppm, devices, one_us, other_us):
    def held(duration_us):
        return hold_for(devices=devices, duration_us=duration_us, weight_ppm=weight_ppm, curve=curve)

    assert held(one_us + other_us) <= held(one_us) + held(other_us)


@given(curves(), WEIGHTS, metered())
def test_more_busy_time_never_costs_less(curve, weight_ppm, work):
    devices, windows = work
    busier = [(window_us, min(busy_us + busy_us // 3 + 1, devices * window_us)) for window_us, busy_us in windows]
    assert sum(charges(curve, weight_ppm, devices, windows)) <= sum(charges(curve, weight_ppm, devices, busier))


def test_more_busy_time_than_there_is_counts_as_all_of_it():
    curve = BurnCurve(((0, 250_000), (800_000, PPM), (PPM, 1_250_000)))
    assert charges(curve, PPM, 2, [(1_000_000, 99_000_000), (1_000_000, -5)]) == [2_500_000, 500_000]


@pytest.mark.parametrize("window_us", [0, -1])
def test_no_time_costs_nothing(window_us):
    assert charges(BurnCurve(), PPM, 2, [(window_us, 5)]) == [0]


def test_time_that_nobody_saw_counts_as_f_one_whatever_the_cap():
    meter = Meter(weight_ppm=500_000, curve=BurnCurve(((0, 250_000), (800_000, PPM), (PPM, 1_250_000))))
    assert meter.estimate(devices=3, window_us=1_000_000) == 1_500_000


def test_a_third_of_a_unit_is_carried_until_it_is_one():
    assert charges(BurnCurve(), 333_333, 1, [(1, 1)] * 6) == [0, 1, 0, 0, 1, 0]


@given(curves(), WEIGHTS, metered())
def test_a_meter_goes_on_from_a_snapshot_as_if_nothing_had_been(curve, weight_ppm, work):
    devices, windows = work
    through = Meter(weight_ppm=weight_ppm, curve=curve)
    restored = Meter(weight_ppm=weight_ppm, curve=curve)
    for window_us, busy_us in windows:
        through.add(devices=devices, window_us=window_us, busy_us=busy_us)
        restored.add(devices=devices, window_us=window_us, busy_us=busy_us)
        restored = msgspec.msgpack.decode(msgspec.msgpack.encode(restored), type=Meter)
    assert restored == through


def test_ten_thousand_devices_for_a_hundred_years_still_fit_a_snapshot():
    meter = Meter(weight_ppm=3_000_000, curve=BurnCurve())
    century_us = 100 * 366 * 24 * HOUR_US
    meter.add(devices=1000, window_us=century_us, busy_us=century_us)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(meter), type=Meter) == meter


@given(curves(), WEIGHTS, DEVICES, st.integers(0, PPM))
def test_the_burn_a_second_is_the_charge_of_a_second(curve, weight_ppm, devices, utilisation_ppm):
    second = charges(curve, weight_ppm, devices, [(1_000_000, devices * utilisation_ppm)])
    shown = burn_per_s(devices=devices, weight_ppm=weight_ppm, curve=curve, utilisation_ppm=utilisation_ppm)
    assert [shown] == second


def test_the_total_can_be_reckoned_from_the_sums_alone():
    bands = [Band(device_us=2_000_000, busy_us=800_000), Band(device_us=1_000_000, busy_us=1_000_000)]
    total = total_uhs(bands, estimated_device_us=500_000, weight_ppm=PPM, curve=BurnCurve())
    assert total == 1_250_000 + 1_000_000 + 500_000


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**20))
def test_rounding_is_half_even_or_up(numerator, denominator):
    assert half_even(numerator, denominator) == round(Fraction(numerator, denominator))
    assert up(numerator, denominator) == -(-numerator // denominator) >= Fraction(numerator, denominator)


@pytest.mark.parametrize(("numerator", "rounded"), [(1, 0), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2)])
def test_a_half_goes_to_the_even_neighbour(numerator, rounded):
    assert half_even(numerator, 2) == rounded
