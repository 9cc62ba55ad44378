"""What is due happens at its time, whoever looks and whenever they look."""

import msgspec
import pytest

from fabric.ledger import Book, HoldState
from fabric.ledger.state import SETTLEMENT_WINDOW_US
from fabric.ledger.sweeping import REMEMBER_ENDED_US, REMEMBER_LAPSED_US


def test_an_expired_lot_is_never_authorised_swept_or_not(funded, use):
    assert funded.free("ada", now_us=99) == 100
    assert funded.free("ada", now_us=100) == 40
    assert funded.balance("ada", now_us=100).free_uhs == 40
    answer = funded.authorize("ada", hold_id="h", amount_uhs=41, use=use, now_us=100, expires_at_us=None)
    assert answer.facts["free_uhs"] == 40


def test_a_lot_is_worth_nothing_before_it_is_in_force(book, terms, use):
    book.grant("ada", lot_id="later", amount_uhs=10, terms=terms(effective=50), now_us=0)
    balance = book.balance("ada", now_us=49)
    assert (balance.free_uhs, balance.pending_uhs) == (0, 10)
    assert (
        book.authorize("ada", hold_id="h", amount_uhs=1, use=use, now_us=49, expires_at_us=None).facts["free_uhs"] == 0
    )
    assert book.authorize("ada", hold_id="h", amount_uhs=10, use=use, now_us=50, expires_at_us=None).held_uhs == 10


@pytest.mark.parametrize("late", [100, 101, 10**15])
def test_breakage_is_dated_at_expiry_and_booked_once(funded, late):
    funded.sweep(now_us=99)
    assert funded.drain() == ()
    funded.sweep(now_us=late)
    (transfer,) = funded.drain()
    assert (transfer.kind, transfer.ref, transfer.at_us) == ("expire", "short", 100)
    assert {posting.account: posting.amount for posting in transfer.postings} == {
        "cust/ada/available": -60,
        "op/op/breakage": 60,
    }
    before = msgspec.msgpack.encode(funded)
    funded.sweep(now_us=late)
    assert (funded.drain(), msgspec.msgpack.encode(funded)) == ((), before)


def test_a_hold_lapses_at_its_time_and_cannot_leak(funded, use):
    """First it is set aside, then it is given up."""
    funded.settlement_window_us = 15
    funded.authorize("ada", hold_id="h", amount_uhs=80, use=use, now_us=0, expires_at_us=30)
    funded.drain()
    funded.sweep(now_us=29)
    assert funded.holds["h"].held_uhs == 80
    funded.sweep(now_us=44)
    assert (funded.lapsed["h"].held_uhs, funded.drain()) == (80, ())
    assert funded.free("ada", now_us=44) == 20
    funded.sweep(now_us=50)
    (transfer,) = funded.drain()
    assert (transfer.kind, transfer.at_us, transfer.flags) == ("release", 45, ("lapsed",))
    assert (funded.expired["h"].state, funded.expired["h"].ended_at_us) == (HoldState.EXPIRED, 45)
    assert funded.free("ada", now_us=50) == 100


@pytest.mark.parametrize("lapses", [99, 100, 101])
def test_sweeping_late_gives_what_sweeping_in_time_would_have_given(funded, use, lapses):
    funded.settlement_window_us = 1
    lapses -= 1
    funded.authorize("ada", hold_id="h", amount_uhs=100, use=use, now_us=0, expires_at_us=lapses)
    copy = msgspec.msgpack.decode(msgspec.msgpack.encode(funded), type=Book)
    for now in range(200):
        funded.sweep(now_us=now)
    copy.sweep(now_us=199)
    assert msgspec.msgpack.encode(copy) == msgspec.msgpack.encode(funded)
    assert copy.drain() == funded.drain()
    assert copy.tokens_uhs["breakage"] == 60


def test_nothing_waits_for_the_sweeper(funded, use):
    funded.settlement_window_us = 10
    funded.authorize("ada", hold_id="h", amount_uhs=100, use=use, now_us=0, expires_at_us=20)
    answer = funded.authorize("ada", hold_id="next", amount_uhs=100, use=use, now_us=30, expires_at_us=None)
    assert answer.granted_uhs == 100


def test_the_next_deadline_skips_what_no_longer_matters(funded, use):
    assert funded.next_due_us() == 100
    funded.authorize("ada", hold_id="h", amount_uhs=60, use=use, now_us=0, expires_at_us=30)
    assert funded.next_due_us() == 30
    funded.update("h", seq=1, used_uhs=0, more_uhs=0, now_us=1, expires_at_us=20)
    assert funded.next_due_us() == 20
    funded.settle("h", seq=2, used_uhs=60, now_us=2)
    assert funded.next_due_us() is None


def test_deadlines_are_rebuilt_from_a_snapshot(funded, use):
    funded.authorize("ada", hold_id="h", amount_uhs=10, use=use, now_us=0, expires_at_us=30)
    copy = msgspec.msgpack.decode(msgspec.msgpack.encode(funded), type=Book)
    assert copy.next_due_us() == 30
    copy.sweep(now_us=30)
    assert copy.next_due_us() == 100


def test_a_validity_in_the_past_lapses_at_once_but_not_before_it_was_asked_for(funded, use):
    funded.authorize("ada", hold_id="h", amount_uhs=10, use=use, now_us=120, expires_at_us=50)
    funded.sweep(now_us=120)
    assert funded.lapsed["h"].settle_by_us == 120 + SETTLEMENT_WINDOW_US


def test_deadlines_of_ended_holds_do_not_pile_up(funded, use):
    for n in range(10_000):
        funded.authorize("ada", hold_id=f"h{n}", amount_uhs=1, use=use, now_us=0, expires_at_us=50)
        funded.close(f"h{n}", now_us=0)
    assert len(funded.deadlines.heap) < 5_000


def test_ended_holds_are_forgotten_in_time_and_lapsed_ones_much_later(funded, use):
    funded.authorize("ada", hold_id="settled", amount_uhs=1, use=use, now_us=0, expires_at_us=50)
    funded.authorize("ada", hold_id="silent", amount_uhs=1, use=use, now_us=0, expires_at_us=20)
    funded.settle("settled", seq=1, used_uhs=1, now_us=10)
    funded.sweep(now_us=10 + REMEMBER_ENDED_US)
    assert list(funded.ended) == ["settled"]
    funded.sweep(now_us=11 + REMEMBER_ENDED_US)
    assert (list(funded.ended), list(funded.lapsed)) == ([], ["silent"])
    given_up = 20 + SETTLEMENT_WINDOW_US
    funded.sweep(now_us=given_up + REMEMBER_LAPSED_US)
    assert list(funded.expired) == ["silent"]
    funded.sweep(now_us=given_up + REMEMBER_LAPSED_US + 1)
    assert list(funded.expired) == []


def test_a_lot_that_expired_under_a_hold_is_not_due_again(funded, use):
    funded.authorize("ada", hold_id="job", amount_uhs=60, use=use, now_us=0, expires_at_us=None)
    funded.sweep(now_us=100)
    copy = msgspec.msgpack.decode(msgspec.msgpack.encode(funded), type=Book)
    assert (funded.next_due_us(), copy.next_due_us()) == (None, None)


def test_what_is_let_go_at_the_very_expiry_goes_straight_to_breakage(funded, use):
    funded.authorize("ada", hold_id="h", amount_uhs=60, use=use, now_us=0, expires_at_us=None)
    funded.drain()
    funded.close("h", now_us=100)
    assert [transfer.kind for transfer in funded.drain()] == ["expire"]


def test_an_update_cannot_make_a_hold_lapse_before_it_was_said(funded, use):
    funded.authorize("ada", hold_id="h", amount_uhs=60, use=use, now_us=0, expires_at_us=150)
    funded.update("h", seq=1, used_uhs=0, more_uhs=0, now_us=120, expires_at_us=90)
    funded.sweep(now_us=121)
    assert (funded.lapsed["h"].settle_by_us, funded.tokens_uhs["breakage"]) == (120 + SETTLEMENT_WINDOW_US, 0)
