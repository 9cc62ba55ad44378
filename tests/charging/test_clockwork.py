"""A lease's weight follows the clock: hours of the day, and prices that begin on a date."""

from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fabric.charging.burn import BurnCurve
from fabric.charging.clockwork import Span, Terms, compact
from fabric.charging.rating import Band, total_uhs
from fabric.charging.sessions import ChargingSession
from fabric.charging.tariffs import Tariffs, Weight
from fabric.units import PPM, UHS_PER_CT

HOUR = 3_600_000_000
STARTED = 1_700_000_000_000_000 // HOUR * HOUR  # 22:00 UTC
STEEP = BurnCurve(((0, 300_000), (500_000, 600_000), (800_000, PPM), (PPM, 1_250_000)))


def open_session(*terms, started=STARTED, devices=1):
    return ChargingSession.open(
        account_id="acme", job_id="job-1", lease_id="job-1.1", name="train", service="training", accelerator="H100",
        devices=devices, terms=terms, started_at_us=started,
    )  # fmt: skip


def terms(*weights, since=0, version=7, offset=0, curve=None):
    return Terms(
        since_us=since, tariff_version=version, curve=curve or BurnCurve(), weights=weights, utc_offset_minutes=offset
    )


def by_hour(*ranges, else_=PPM):
    return tuple(next((ppm for start, end, ppm in ranges if start <= hour < end), else_) for hour in range(24))


def test_a_lease_that_begins_at_night_is_charged_by_day_what_the_day_costs():
    """Ten hours over the end of cheap hours: it was charged 5.0 tokens for what is worth 9.99."""
    session = open_session(terms(*by_hour((22, 24, 500_000))), started=STARTED + HOUR * 2 - 60_000_000)
    due = session.extend(seq=1, window_us=10 * HOUR, busy_us=8 * HOUR, now_us=STARTED + 99 * HOUR)
    assert due == 60 * 500_000 + 10 * UHS_PER_CT - 60 * PPM
    record = session.close(ended="succeeded", at_us=STARTED + 99 * HOUR)
    assert [(span.until_us - span.from_us, span.weight_ppm) for span in record.spans] == [
        (60_000_000, 500_000),
        (10 * HOUR - 60_000_000, PPM),
    ]
    assert record.bands == ()


def test_a_lease_whose_weight_never_turns_has_a_record_as_before():
    session = open_session(terms(500_000))
    session.extend(seq=1, window_us=30 * HOUR, busy_us=0, now_us=STARTED + 30 * HOUR)
    record = session.close(ended="succeeded", at_us=STARTED + 30 * HOUR)
    assert (record.spans, len(record.bands), record.weight_ppm) == ((), 1, 500_000)


def test_hours_are_of_the_tariffs_clock():
    tariffs = Tariffs(
        version=1,
        utc_offset_minutes=480,
        weights=(Weight(accelerator="H100", ppm=PPM), Weight(accelerator="H100", ppm=1, hours=(22, 6))),
    )
    hours = terms(*tariffs.weights_by_hour("H100", service="training"), offset=480)
    for at_us in range(STARTED, STARTED + 24 * HOUR, HOUR // 4):
        assert hours.weight_ppm(at_us) == tariffs.weight_ppm("H100", service="training", at_us=at_us)


def test_prices_that_begin_later_hold_from_their_moment_on_however_late_it_is_metered():
    session = open_session(terms(PPM))
    moment = STARTED + HOUR + 17
    session.foresee((terms(2 * PPM, since=moment, version=8),), now_us=STARTED)
    session.gap(window_us=3 * HOUR)
    record = session.close(ended="lost", at_us=STARTED + 3 * HOUR)
    assert [(span.from_us, span.until_us, span.tariff_version) for span in record.spans] == [
        (STARTED, moment, 7),
        (moment, STARTED + 3 * HOUR, 8),
    ]
    assert record.charged_uhs == 5 * UHS_PER_CT - 17


def test_what_covers_a_lease_is_reckoned_by_each_price_from_its_moment_on():
    """An hour at 1, then at 2: what begins later takes nothing of what is covered before."""
    moment = STARTED + HOUR
    session = open_session(terms(PPM), terms(2 * PPM, since=moment, version=8))
    for tokens, until in (
        (0, STARTED),
        (UHS_PER_CT // 2, STARTED + HOUR // 2),
        (UHS_PER_CT, moment),
        (3 * UHS_PER_CT, moment + HOUR),
    ):
        assert session.covered_until_us(tokens) == until
    assert [session.worst_by(us) for us in (STARTED, moment, moment + 1)] == [PPM, PPM, 2 * PPM]
    session.gap(window_us=2 * HOUR)
    assert session.covered_until_us(2 * UHS_PER_CT) == moment + 2 * HOUR


@given(cuts=st.lists(st.integers(-5, 50), max_size=4), seen=st.booleans(), busy=st.integers(0, 10))
def test_parts_of_a_window_are_cut_where_they_are_asked_to_and_add_up(cuts, seen, busy):
    whole, cut = open_session(terms(PPM)), open_session(terms(PPM))
    moments, end = [STARTED + each * HOUR // 10 for each in cuts], STARTED + 4 * HOUR
    if seen:
        said = {"seq": 1, "window_us": 4 * HOUR, "busy_us": busy * HOUR // 10, "now_us": end}
        due, parts = whole.extend(**said), cut.charge(**said, cuts=moments)
    else:
        due, parts = whole.gap(window_us=4 * HOUR), cut.charge_gap(window_us=4 * HOUR, cuts=moments)
    assert [part.until_us for part in parts] == [*sorted({us for us in moments if STARTED < us < end}), end]
    assert sum(part.uhs for part in parts) == due
    assert whole.close(ended="", at_us=end) == cut.close(ended="", at_us=end)


WEIGHTS = st.lists(st.integers(1, 3), min_size=24, max_size=24).map(
    lambda each: compact(tuple(n * 400_000 for n in each))
)
LATER = st.lists(st.tuples(st.integers(1, 60), WEIGHTS, st.booleans()), max_size=3)
CUTS = st.lists(st.tuples(st.integers(1, 9_000), st.integers(0, 100), st.booleans()), min_size=1, max_size=12)


@given(first=WEIGHTS, later=LATER, offset=st.sampled_from([0, 330, 480, -210]), cuts=CUTS, devices=st.integers(1, 3))
def test_each_moment_is_charged_at_what_was_in_force_in_it_however_time_is_cut(first, later, offset, cuts, devices):
    """Against a bill that looks at every quarter of an hour alone."""
    at, known = STARTED, [terms(*first, offset=offset)]
    for number, (quarters, weights, steep) in enumerate(later):
        at += quarters * HOUR // 4
        known.append(terms(*weights, since=at, version=8 + number, offset=offset, curve=STEEP if steep else None))
    session = open_session(*known, devices=devices)
    now, due = STARTED, 0
    for seq, (seconds, percent, seen) in enumerate(cuts, 1):
        now += seconds * 1_000_000
        if seen:
            busy = devices * seconds * 10_000 * percent
            due += session.extend(seq=seq, window_us=seconds * 1_000_000, busy_us=busy, now_us=now)
        else:
            due += session.gap(window_us=seconds * 1_000_000)
    record = session.close(ended="lost", at_us=now)
    exact, at, pieces = Fraction(0), STARTED, 1
    for seconds, percent, seen in cuts:
        end = at + seconds * 1_000_000
        while at < end:
            price = next(each for each in reversed(known) if each.since_us <= at)
            until = min(end, at - at % (HOUR // 4) + HOUR // 4)
            f = curved(price.curve.points, Fraction(percent, 100)) if seen else 1
            exact += (until - at) * devices * Fraction(price.weight_ppm(at), PPM) * f
            at, pieces = until, pieces + 1
    assert abs(due - exact) <= len(record.spans) + 1 + 4 * pieces * devices
    assert due == record.charged_uhs <= session.worst_uhs_per_s * (now - STARTED) / 1_000_000 + 1
    assert_anybody_can_reckon_it_again(record, known, now)


def curved(points, utilisation):
    """f between the two points around a utilisation, exactly."""
    for (left, low), (right, high) in pairwise(points):
        if utilisation * PPM <= right:
            return Fraction(low, PPM) + Fraction(high - low, right - left) * (utilisation - Fraction(left, PPM))
    raise AssertionError(utilisation)


def assert_anybody_can_reckon_it_again(record, known, now):
    spans = record.spans or (
        Span(
            from_us=STARTED, until_us=now, estimated_us=record.estimated_us, tariff_version=record.tariff_version,
            weight_ppm=record.weight_ppm, bands=record.bands,
        ),
    )  # fmt: skip
    assert [span.until_us for span in spans] == [*[span.from_us for span in spans[1:]], now]
    assert spans[0].from_us == STARTED
    total = 0
    for span in spans:
        price = next(each for each in known if each.tariff_version == span.tariff_version)
        assert price.weight_ppm(span.from_us) == price.weight_ppm(span.until_us - 1) == span.weight_ppm
        total += total_uhs(
            [Band(*band) for band in span.bands],
            estimated_device_us=record.devices * span.estimated_us,
            weight_ppm=span.weight_ppm,
            curve=price.curve,
        )
        metered = span.until_us - span.from_us - span.estimated_us
        assert sum(device for device, _ in span.bands) == record.devices * metered
    assert total == record.charged_uhs
