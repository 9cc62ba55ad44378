"""What a client may say about a hold, and what it is answered."""

import msgspec
import pytest

from fabric.ledger import Book, Granted, HoldState, Refused, Scope, Settled
from fabric.ledger.state import SETTLEMENT_WINDOW_US
from fabric.units import INT64_MAX


def authorize(book, use, amount=50, *, hold_id="h", now=0, expires=90, minimum=None):
    return book.authorize(
        "ada", hold_id=hold_id, amount_uhs=amount, use=use, now_us=now, expires_at_us=expires, minimum_uhs=minimum
    )


def bytes_of(book):
    return msgspec.msgpack.encode(book)


@pytest.mark.parametrize(
    ("amount", "minimum", "answer"),
    [
        (1, None, Granted(1, 1, final=False)),
        (100, None, Granted(100, 100, final=False)),
        (100, 100, Granted(100, 100, final=False)),
        (101, 100, Granted(100, 100, final=True)),
        (500, 1, Granted(100, 100, final=True)),
        (500, 0, Granted(100, 100, final=True)),
        (101, None, "insufficient_tokens"),
        (500, 101, "insufficient_tokens"),
        (0, None, "invalid_amount"),
        (-1, None, "invalid_amount"),
        (INT64_MAX + 1, None, "beyond_int64"),
    ],
)
def test_a_hold_never_takes_more_than_is_free(funded, use, amount, minimum, answer):
    before = bytes_of(funded)
    got = authorize(funded, use, amount, minimum=minimum)
    if isinstance(answer, str):
        assert got.code == answer
        assert bytes_of(funded) == before
    else:
        assert got == answer
        assert funded.free("ada", now_us=0) == 100 - answer.held_uhs


def test_a_refusal_says_what_is_needed_and_what_is_there(funded, terms, use):
    funded.grant("ada", lot_id="elsewhere", amount_uhs=7, terms=terms(scope=Scope(accelerators=("910B",))), now_us=0)
    assert authorize(funded, use, 130) == Refused(
        "insufficient_tokens",
        {"needed_uhs": 130, "free_uhs": 100, "free_out_of_scope_uhs": 7, "short_uhs": 30},
    )
    assert authorize(funded, use, 500, minimum=130).facts["needed_uhs"] == 130


def test_a_hold_id_is_used_once_and_for_ever(funded, use):
    authorize(funded, use)
    assert authorize(funded, use, 1).code == "hold_exists"
    funded.settle("h", seq=1, used_uhs=0, now_us=1)
    assert authorize(funded, use, 1).code == "hold_exists"
    authorize(funded, use, hold_id="lapses", expires=5)
    assert authorize(funded, use, 1, hold_id="lapses", now=6).code == "hold_exists"


def test_nobody_is_known_who_was_not_introduced(book, use):
    before = bytes_of(book)
    answers = [
        book.authorize("bob", hold_id="h", amount_uhs=1, use=use, now_us=0, expires_at_us=None),
        book.update("h", seq=1, used_uhs=1, more_uhs=1, now_us=0),
        book.settle("h", seq=1, used_uhs=1, now_us=0),
        book.release("h", seq=1, now_us=0),
        book.set_credit_limit("bob", credit_limit_uhs=1),
        book.open_account("ada", now_us=0),
    ]
    assert [answer.code for answer in answers] == [
        "unknown_account",
        "unknown_hold",
        "unknown_hold",
        "unknown_hold",
        "unknown_account",
        "account_exists",
    ]
    assert (book.balance("bob", now_us=0), book.free("bob", now_us=0)) == (None, 0)
    assert bytes_of(book) == before


def test_an_update_captures_and_extends_in_one_step(funded, use):
    authorize(funded, use, 50)
    assert funded.update("h", seq=1, used_uhs=30, more_uhs=40, now_us=1) == Granted(40, 60, final=False)
    assert funded.update("h", seq=2, used_uhs=60, more_uhs=40, now_us=2) == Granted(10, 10, final=True)
    assert funded.update("h", seq=3, used_uhs=0, more_uhs=1, now_us=2) == Granted(0, 10, final=True)
    assert funded.settle("h", seq=4, used_uhs=4, now_us=3) == Settled(4, 6)
    assert funded.free("ada", now_us=3) == 6


def test_usage_is_booked_even_when_no_more_can_be_granted_in_full(funded, use):
    authorize(funded, use, 50)
    assert funded.update("h", seq=1, used_uhs=20, more_uhs=60, now_us=1, minimum_uhs=60) == Granted(0, 30, final=True)
    assert funded.holds["h"].captured_uhs == 20


def test_a_repeated_word_gets_the_same_answer_and_changes_nothing(funded, use):
    first = authorize(funded, use)
    before = bytes_of(funded)
    assert funded.update("h", seq=0, used_uhs=9, more_uhs=9, now_us=1) == first
    assert bytes_of(funded) == before
    answer = funded.update("h", seq=5, used_uhs=10, more_uhs=10, now_us=1)
    before = bytes_of(funded)
    assert funded.update("h", seq=5, used_uhs=10, more_uhs=10, now_us=2) == answer
    assert funded.update("h", seq=4, used_uhs=10, more_uhs=10, now_us=2).code == "stale_seq"
    assert funded.settle("h", seq=5, used_uhs=10, now_us=2).code == "stale_seq"
    assert bytes_of(funded) == before
    settled = funded.settle("h", seq=9, used_uhs=10, now_us=3)
    before = bytes_of(funded)
    assert funded.settle("h", seq=9, used_uhs=10, now_us=4) == settled
    assert funded.update("h", seq=9, used_uhs=1, more_uhs=1, now_us=4).code == "stale_seq"
    assert funded.settle("h", seq=10, used_uhs=10, now_us=4).code == "hold_ended"
    assert bytes_of(funded) == before


def test_a_refused_word_does_not_use_up_its_seq(funded, use):
    authorize(funded, use)
    before = bytes_of(funded)
    assert funded.update("h", seq=1, used_uhs=-1, more_uhs=0, now_us=1).code == "invalid_amount"
    assert funded.update("h", seq=1, used_uhs=0, more_uhs=-1, now_us=1).code == "invalid_amount"
    assert funded.settle("h", seq=1, used_uhs=INT64_MAX + 1, now_us=1).code == "beyond_int64"
    assert bytes_of(funded) == before
    assert funded.update("h", seq=1, used_uhs=1, more_uhs=0, now_us=1) == Granted(0, 49, final=False)


@pytest.mark.parametrize(
    ("used", "answer", "free"),
    [
        (0, Settled(0, 50), 100),
        (50, Settled(50, 0), 50),
        (70, Settled(70, 0, over_hold=True), 30),
        (100, Settled(100, 0, over_hold=True), 0),
        (130, Settled(100, 0, over_hold=True, written_off_uhs=30), 0),
    ],
)
def test_what_was_used_is_always_booked_from_held_then_free_then_written_off(funded, use, used, answer, free):
    authorize(funded, use, 50)
    assert funded.settle("h", seq=1, used_uhs=used, now_us=1) == answer
    balance = funded.balance("ada", now_us=1)
    assert (balance.free_uhs, balance.held_uhs, balance.debt_uhs) == (free, 0, 0)
    assert funded.tokens_uhs["redeemed"] == used
    assert funded.tokens_uhs["written_off"] == -answer.written_off_uhs
    flagged = [transfer for transfer in funded.drain() if "over_hold" in transfer.flags]
    assert bool(flagged) == answer.over_hold


def test_over_hold_takes_nothing_that_is_out_of_scope(book, terms, use):
    book.grant("ada", lot_id="in", amount_uhs=10, terms=terms(), now_us=0)
    book.grant("ada", lot_id="out", amount_uhs=10, terms=terms(scope=Scope(accelerators=("910B",))), now_us=0)
    authorize(book, use, 10)
    assert book.settle("h", seq=1, used_uhs=15, now_us=0).written_off_uhs == 5
    assert book.lots["out"].free_uhs == 10


@pytest.mark.parametrize(("used", "over"), [(0, False), (50, False), (51, True), (130, True)])
def test_a_late_settlement_is_booked_and_flagged(funded, use, used, over):
    authorize(funded, use, 50, expires=20)
    funded.sweep(now_us=20)
    assert funded.free("ada", now_us=20) == 50, "what it held is set aside"
    lost = max(0, used - 100)
    answer = funded.settle("h", seq=1, used_uhs=used, now_us=30)
    assert answer == Settled(used - lost, max(0, 50 - used), over_hold=over, late=True, written_off_uhs=lost)
    assert funded.settle("h", seq=2, used_uhs=used, now_us=31).code == "hold_ended"
    booked = [transfer for transfer in funded.drain() if transfer.kind in ("capture", "write_off")]
    assert all("late" in transfer.flags for transfer in booked)
    assert funded.free("ada", now_us=31) == max(0, 100 - used)


@pytest.mark.parametrize(("used", "over"), [(0, False), (30, False), (31, True), (130, True)])
def test_what_comes_after_the_window_is_met_from_what_is_free_or_written_off(book, terms, use, used, over):
    book.grant("ada", lot_id="lot", amount_uhs=100, terms=terms(), now_us=0)
    authorize(book, use, 30, expires=20)
    book.sweep(now_us=20 + SETTLEMENT_WINDOW_US)
    assert book.free("ada", now_us=20 + SETTLEMENT_WINDOW_US) == 100
    lost = max(0, used - 100)
    answer = book.settle("h", seq=1, used_uhs=used, now_us=30 + SETTLEMENT_WINDOW_US)
    assert answer == Settled(used - lost, 0, 0, over_hold=over, late=True, written_off_uhs=lost)
    assert book.balance("ada", now_us=30 + SETTLEMENT_WINDOW_US).debt_uhs == 0


def test_use_that_credit_allows_is_owed_and_what_goes_beyond_is_written_off(book, use):
    book.set_credit_limit("ada", credit_limit_uhs=50)
    authorize(book, use, 20)
    answer = book.settle("h", seq=1, used_uhs=70, now_us=1)
    assert answer == Settled(50, 0, 50, over_hold=True, written_off_uhs=20)
    assert book.balance("ada", now_us=1).debt_uhs == 50


def test_a_late_update_without_a_new_validity_is_booked_and_grants_nothing_more(funded, use):
    authorize(funded, use, 50, expires=20)
    assert funded.update("h", seq=1, used_uhs=30, more_uhs=50, now_us=25) == Granted(0, 20, final=True)
    assert funded.settle("h", seq=2, used_uhs=30, now_us=26) == Settled(30, 0, 0, over_hold=True, late=True)
    assert funded.free("ada", now_us=26) == 40


def test_a_late_update_with_a_new_validity_opens_the_hold_again(funded, use):
    authorize(funded, use, 50, expires=20)
    answer = funded.update("h", seq=1, used_uhs=30, more_uhs=5, now_us=25, expires_at_us=40)
    assert answer == Granted(5, 25, final=False)
    assert (funded.lapsed, funded.next_due_us()) == ({}, 40)
    assert funded.settle("h", seq=2, used_uhs=25, now_us=26) == Settled(25, 0)


def test_a_hold_that_was_given_up_is_not_opened_again(book, terms, use):
    book.grant("ada", lot_id="lot", amount_uhs=100, terms=terms(), now_us=0)
    authorize(book, use, 50, expires=20)
    late = 20 + SETTLEMENT_WINDOW_US
    assert book.update("h", seq=1, used_uhs=30, more_uhs=5, now_us=late, expires_at_us=2 * late) == Granted(0, 0, True)  # noqa: FBT003
    assert (book.free("ada", now_us=late), list(book.expired)) == (70, ["h"])


def test_an_update_renews_the_validity(funded, use):
    authorize(funded, use, 50, expires=20)
    funded.update("h", seq=1, used_uhs=0, more_uhs=0, now_us=10, expires_at_us=40)
    funded.sweep(now_us=30)
    assert "h" in funded.holds
    assert funded.next_due_us() == 40
    funded.sweep(now_us=40)
    assert "h" in funded.lapsed


def test_a_snapshot_is_the_book(funded, use):
    authorize(funded, use, 70, expires=20)
    authorize(funded, use, 20, hold_id="job", expires=None)
    funded.update("h", seq=1, used_uhs=65, more_uhs=5, now_us=1)
    funded.close_period("2026-11", now_us=2)
    encoded = bytes_of(funded)
    copy = msgspec.msgpack.decode(encoded, type=Book)
    assert bytes_of(copy) == encoded
    for book in (funded, copy):
        book.drain()
        book.capture("job", amount_uhs=3, now_us=5)
        book.sweep(now_us=150)
        book.settle("h", seq=2, used_uhs=1, now_us=160)
        book.refund("job", amount_uhs=2, now_us=161)
        book.check()
    assert bytes_of(copy) == bytes_of(funded)
    assert copy.drain() == funded.drain()


def test_a_release_frees_everything(funded, use):
    authorize(funded, use, 70)
    funded.update("h", seq=1, used_uhs=5, more_uhs=0, now_us=1)
    assert funded.release("h", seq=2, now_us=1) == Settled(0, 65)
    assert funded.ended["h"].state is HoldState.RELEASED
    assert funded.free("ada", now_us=1) == 95


def test_nothing_at_all_is_not_a_partial_grant(book, use):
    assert authorize(book, use, 5, minimum=0).code == "insufficient_tokens"


def test_no_word_of_one_customer_leaves_another_without_room_in_the_totals(funded, terms, use):
    funded.open_account("bob", now_us=0)
    funded.grant("bob", lot_id="bobs", amount_uhs=50, terms=terms(), now_us=0)
    authorize(funded, use)
    refused = funded.settle("h", seq=1, used_uhs=INT64_MAX, now_us=1)
    assert refused.code == "implausible_usage"
    most_uhs = refused.facts["limit_uhs"]
    assert most_uhs < INT64_MAX // 8_000
    assert funded.update("h", seq=1, used_uhs=most_uhs + 1, more_uhs=0, now_us=1).code == "implausible_usage"
    assert isinstance(funded.update("h", seq=1, used_uhs=most_uhs, more_uhs=0, now_us=1), Granted)
    assert funded.settle("h", seq=2, used_uhs=most_uhs, now_us=1).code == "implausible_usage"
    funded.authorize("bob", hold_id="b", amount_uhs=50, use=use, now_us=1, expires_at_us=None)
    assert funded.settle("b", seq=1, used_uhs=60, now_us=1) == Settled(50, 0, over_hold=True, written_off_uhs=10)
