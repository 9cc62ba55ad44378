"""Charging sessions: from samples to a charging record."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.charging.burn import BurnCurve
from fabric.charging.clockwork import Terms
from fabric.charging.rating import Band, hold_for, total_uhs
from fabric.charging.sessions import ChargingSession
from fabric.units import PPM

SECOND = 1_000_000
STARTED = 1_700_000_000_000_000


def open_session(*, devices=2, weight_ppm=PPM, curve=None):
    return ChargingSession.open(
        account_id="acme",
        job_id="job-1",
        lease_id="job-1.1",
        name="train",
        service="training",
        accelerator="H100",
        devices=devices,
        terms=(Terms(since_us=0, tariff_version=7, curve=curve or BurnCurve(), weights=(weight_ppm,)),),
        started_at_us=STARTED,
    )


def sample(session, seq, *, window=SECOND, busy=None, at=None, estimated=False):
    """A sample at 80 %, which arrives when its window ends, unless said otherwise."""
    busy = session.devices * window * 8 // 10 if busy is None else busy
    at = STARTED + session.metered_us + window if at is None else STARTED + at
    return session.extend(seq=seq, window_us=window, busy_us=busy, now_us=at, estimated=estimated)


def test_a_second_at_80_percent_is_charged_a_second_of_each_device():
    assert sample(open_session(), 1) == 2 * SECOND


@pytest.mark.parametrize("seq", [0, 1, 2])
def test_a_sample_that_was_charged_before_or_is_older_adds_nothing(seq):
    session = open_session()
    sample(session, 2)
    before = msgspec.msgpack.encode(session)
    assert sample(session, seq, at=9 * SECOND) == 0
    assert msgspec.msgpack.encode(session) == before


def test_a_skipped_number_is_no_reason_to_refuse_a_sample():
    session = open_session()
    assert [sample(session, 1), sample(session, 5)] == [2 * SECOND, 2 * SECOND]


def test_a_lease_never_pays_for_more_time_than_has_passed_by_the_gates_clock():
    session = open_session()
    assert sample(session, 1, window=10 * SECOND, at=4 * SECOND) == 8 * SECOND
    assert sample(session, 2, window=10 * SECOND, at=4 * SECOND) == 0
    assert sample(session, 3, window=10 * SECOND, at=5 * SECOND) == 2 * SECOND
    assert session.metered_us == 5 * SECOND


def test_a_window_that_is_cut_keeps_its_utilisation():
    session = open_session()
    sample(session, 1, window=10 * SECOND, busy=4 * SECOND, at=5 * SECOND)
    assert session.utilisation_ppm == 200_000


def test_time_before_the_start_is_never_charged():
    assert sample(open_session(), 1, at=-1) == 0


def test_busy_time_beyond_all_devices_counts_as_all_of_them():
    session = open_session()
    sample(session, 1, busy=50 * SECOND)
    assert session.busy_us == 2 * SECOND


@pytest.mark.parametrize("window", [0, -SECOND])
def test_an_empty_window_is_charged_nothing_and_counted(window):
    session = open_session()
    assert sample(session, 1, window=window, busy=5, at=SECOND) == 0
    assert session.seq == 1


def test_time_that_nobody_metered_is_charged_as_f_one_and_marked_estimated():
    session = open_session()
    sample(session, 1, busy=0)
    assert session.gap(window_us=3 * SECOND) == 6 * SECOND
    assert (session.metered_us, session.estimated_us) == (4 * SECOND, 3 * SECOND)
    assert session.gap(window_us=0) == session.gap(window_us=-5) == 0


def test_an_estimated_sample_is_charged_as_f_one_whatever_it_says():
    session = open_session()
    assert sample(session, 1, busy=0, estimated=True) == 2 * SECOND
    assert session.estimated_us == SECOND


def test_lost_work_is_what_was_charged_since_the_last_durable_checkpoint():
    session = open_session()
    sample(session, 1)
    session.mark_durable()
    assert session.lost_uhs == 0
    sample(session, 2)
    assert session.lost_uhs == 2 * SECOND
    assert session.refund_lost(most_us=SECOND) == 2 * SECOND
    assert session.refund_lost(most_us=SECOND) == 0
    assert session.charged_uhs == 2 * SECOND


def test_without_a_checkpoint_all_of_it_is_lost():
    session = open_session()
    sample(session, 1)
    assert session.refund_lost(most_us=SECOND) == 2 * SECOND
    assert session.charged_uhs == 0


def test_of_a_longer_time_than_is_given_back_the_same_part_is_given_back():
    session = open_session()
    sample(session, 1)
    session.mark_durable()
    for seq in (2, 3, 4):
        sample(session, seq)
    assert session.refund_lost(most_us=2 * SECOND) == 4 * SECOND
    assert session.charged_uhs == 4 * SECOND


def test_what_the_hold_did_not_cover_is_the_operators_loss_and_not_refunded():
    session = open_session()
    due = sample(session, 1)
    session.absorb(due - 500_000)
    assert (session.charged_uhs, session.absorbed_uhs) == (500_000, 1_500_000)
    assert session.refund_lost(most_us=SECOND) == 500_000


def test_what_was_absorbed_before_a_checkpoint_does_not_shrink_what_is_lost_after_it():
    session = open_session()
    sample(session, 1)
    session.absorb(500_000)
    session.mark_durable()
    sample(session, 2)
    assert session.lost_uhs == 2 * SECOND


def test_nothing_is_absorbed_that_was_not_charged():
    with pytest.raises(AssertionError):
        open_session().absorb(1)


def test_the_burn_that_people_see_is_that_of_the_last_five_seconds():
    session = open_session()
    for seq in range(1, 21):
        sample(session, seq, busy=0 if seq <= 15 else None)
    assert (session.burn_uhs_per_s, session.utilisation_ppm) == (2 * SECOND, 800_000)
    assert len(session.recent) == 5


def test_one_long_window_is_all_there_is_to_see():
    session = open_session()
    sample(session, 1, window=60 * SECOND, busy=0)
    assert (session.burn_uhs_per_s, session.utilisation_ppm) == (SECOND // 2, 0)


def test_until_something_is_metered_the_burn_is_that_of_unseen_time():
    session = open_session(weight_ppm=315_000)
    assert (session.burn_uhs_per_s, session.utilisation_ppm) == (630_000, 0)


def test_the_record_says_everything():
    session = open_session()
    sample(session, 1)
    session.mark_durable()
    sample(session, 2, busy=0)
    session.gap(window_us=SECOND)
    session.absorb(250_000)
    session.refund_lost(most_us=10 * SECOND)
    cdr = session.close(ended="lost", at_us=STARTED + 3 * SECOND)
    assert msgspec.to_builtins(cdr) == {
        "cdr_id": "job-1.1",
        "account_id": "acme",
        "job_id": "job-1",
        "lease_id": "job-1.1",
        "name": "train",
        "service": "training",
        "accelerator": "H100",
        "devices": 2,
        "started_at_us": STARTED,
        "ended_at_us": STARTED + 3 * SECOND,
        "metered_us": 3 * SECOND,
        "busy_us": 1_600_000 + 1_600_000,
        "estimated_us": SECOND,
        "tariff_version": 7,
        "weight_ppm": PPM,
        "bands": ((4 * SECOND, 1_600_000),),
        "charged_uhs": 2 * SECOND,
        "refunded_uhs": 2_250_000,
        "absorbed_uhs": 250_000,
        "ended": "lost",
    }


CURVES = st.sampled_from(
    [BurnCurve(), BurnCurve(((0, 100_000), (333_333, 400_001), (800_000, PPM), (900_001, 1_100_000), (PPM, 1_250_000)))]
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["sample", "estimated", "repeat", "gap", "durable"]),
        st.integers(0, 12 * SECOND),
        st.integers(0, 30 * SECOND),
        st.integers(0, 12 * SECOND),
    ),
    max_size=25,
)


def run(session, steps):
    """Drive a session as a gate would: what was due, and the time at the end."""
    due, now_us, seq = 0, STARTED, 0
    for what, window_us, busy_us, passed_us in steps:
        now_us += passed_us
        match what:
            case "gap":
                due += session.gap(window_us=now_us - STARTED - session.metered_us)
            case "durable":
                session.mark_durable()
            case _:
                seq += what != "repeat"
                estimated = what == "estimated"
                due += session.extend(seq=seq, window_us=window_us, busy_us=busy_us, now_us=now_us, estimated=estimated)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(session), type=ChargingSession) == session
    return due, now_us


@given(steps=STEPS, curve=CURVES, devices=st.integers(1, 16), weight_ppm=st.integers(1, 2_000_000))
def test_whatever_happens_a_hold_for_the_time_that_passed_covers_it(steps, curve, devices, weight_ppm):
    session = open_session(devices=devices, weight_ppm=weight_ppm, curve=curve)
    due, now_us = run(session, steps)
    assert session.metered_us <= now_us - STARTED
    assert due <= hold_for(devices=devices, duration_us=now_us - STARTED, weight_ppm=weight_ppm, curve=curve)


@given(steps=STEPS, curve=CURVES, devices=st.integers(1, 16), weight_ppm=st.integers(1, 2_000_000))
def test_anybody_can_reckon_a_charge_again_from_its_record(steps, curve, devices, weight_ppm):
    session = open_session(devices=devices, weight_ppm=weight_ppm, curve=curve)
    due, now_us = run(session, steps)
    session.absorb(session.charged_uhs // 3)
    session.refund_lost(most_us=10 * SECOND)
    cdr = session.close(ended="lost", at_us=now_us)
    again = total_uhs(
        [Band(*band) for band in cdr.bands],
        estimated_device_us=cdr.devices * cdr.estimated_us,
        weight_ppm=cdr.weight_ppm,
        curve=curve,
    )
    assert again == due == cdr.charged_uhs + cdr.refunded_uhs + cdr.absorbed_uhs
