"""How tokens come in, and how debt is paid for."""

import msgspec
import pytest

from fabric.ledger import Origin, Refused, Scope
from fabric.units import INT64_MAX, UHS_PER_CT


def legs(transfer):
    return {posting.account: posting.amount for posting in transfer.postings}


@pytest.mark.parametrize(
    ("channel", "side"), [("sandbox", "cash/sandbox"), ("wechat", "cash/wechat"), ("receivable", "receivable/ada")]
)
def test_a_purchase_books_the_tokens_and_the_money(book, terms, channel, side):
    transfer = book.grant("ada", lot_id="lot", amount_uhs=10, terms=terms(price=7, channel=channel), now_us=3)
    assert (transfer.kind, transfer.ref, transfer.at_us) == ("top_up", "lot", 3)
    assert legs(transfer) == {"op/op/issued": -10, "cust/ada/available": 10, side: 7, "op/op/revenue": -7}
    assert {posting.asset for posting in transfer.postings} == {"CT", "CNY"}


def test_a_gift_has_no_money_leg(book, terms):
    transfer = book.grant("ada", lot_id="lot", amount_uhs=10, terms=terms(Origin.PROMOTION, price=7), now_us=0)
    assert transfer.kind == "grant"
    assert legs(transfer) == {"op/op/issued": -10, "cust/ada/available": 10}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"account_id": "bob"}, "unknown_account"),
        ({"lot_id": "lot"}, "lot_exists"),
        ({"lot_id": ""}, "lot_exists"),
        ({"amount_uhs": 0}, "invalid_amount"),
        ({"amount_uhs": -1}, "invalid_amount"),
        ({"amount_uhs": INT64_MAX}, "beyond_int64"),
        ({"price": -1}, "invalid_amount"),
        ({"price": INT64_MAX + 1}, "beyond_int64"),
        ({"expires": 5}, "invalid_terms"),
        ({"expires": 20, "effective": 20}, "invalid_terms"),
    ],
)
def test_a_bad_grant_is_refused_and_changes_nothing(book, terms, change, code):
    book.grant("ada", lot_id="lot", amount_uhs=1, terms=terms(), now_us=0)
    before = msgspec.msgpack.encode(book)
    life = {name: change[name] for name in ("price", "expires", "effective") if name in change}
    call = {"account_id": "ada", "lot_id": "new", "amount_uhs": 1} | {
        name: value for name, value in change.items() if name not in life
    }
    answer = book.grant(call.pop("account_id"), **call, terms=terms(**life), now_us=5)
    assert answer.code == code
    assert msgspec.msgpack.encode(book) == before


def test_all_that_int64_can_count_can_be_granted_and_burned(book, terms, use):
    book.grant("ada", lot_id="all", amount_uhs=INT64_MAX, terms=terms(), now_us=0)
    book.authorize("ada", hold_id="h", amount_uhs=INT64_MAX, use=use, now_us=0, expires_at_us=None)
    assert book.capture("h", amount_uhs=INT64_MAX, now_us=0) == INT64_MAX
    assert book.settle("h", seq=1, used_uhs=1, now_us=0).code == "beyond_int64"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(book), type=type(book)) == book


def test_credit_and_lots_together_never_hold_beyond_int64(book, terms, use):
    book.grant("ada", lot_id="all", amount_uhs=INT64_MAX, terms=terms(), now_us=0)
    assert book.set_credit_limit("ada", credit_limit_uhs=INT64_MAX) is None
    book.authorize("ada", hold_id="h", amount_uhs=INT64_MAX, use=use, now_us=0, expires_at_us=None)
    assert book.extend("h", amount_uhs=1, now_us=0).code == "beyond_int64"
    assert book.set_credit_limit("ada", credit_limit_uhs=INT64_MAX + 1).code == "invalid_amount"
    assert book.open_account("bob", now_us=0, credit_limit_uhs=-1).code == "invalid_amount"


def test_the_lots_of_a_bundle_are_linked(book, terms):
    first = book.grant("ada", lot_id="gpu", amount_uhs=9, terms=terms(Origin.BUNDLE, price=5, channel="x"), now_us=0)
    edge = terms(Origin.BUNDLE, price=2, channel="x", scope=Scope(operators=("edge",)))
    second = book.grant("ada", lot_id="edge", amount_uhs=4, terms=edge, now_us=0, linked_to=first.transfer_id)
    assert (first.linked_to, second.linked_to) == (None, first.transfer_id)
    assert book.money_microcny["revenue"] == -7


def overdrawn(book, use, used):
    """Owes what goes beyond its lots, whatever its limit is afterwards."""
    limit_uhs = book.accounts["ada"].credit_limit_uhs
    book.set_credit_limit("ada", credit_limit_uhs=used)
    book.authorize("ada", hold_id="h", amount_uhs=100, use=use, now_us=0, expires_at_us=None)
    book.settle("h", seq=1, used_uhs=used, now_us=0)
    book.set_credit_limit("ada", credit_limit_uhs=limit_uhs)


def test_debt_beyond_the_limit_is_repaid_from_the_next_lot(funded, terms, use):
    overdrawn(funded, use, 130)
    assert funded.free("ada", now_us=0) == 0
    funded.drain()
    funded.grant("ada", lot_id="next", amount_uhs=50, terms=terms(), now_us=1)
    top_up, repay = funded.drain()
    assert (top_up.kind, repay.kind) == ("top_up", "repay")
    assert legs(repay) == {"cust/ada/available": -30, "cust/ada/debt": 30}
    balance = funded.balance("ada", now_us=1)
    assert (balance.free_uhs, balance.debt_uhs, funded.accounts["ada"].excused_uhs) == (20, 0, 0)


def test_a_lot_too_small_repays_what_it_can(funded, terms, use):
    overdrawn(funded, use, 130)
    funded.grant("ada", lot_id="next", amount_uhs=10, terms=terms(expires=50), now_us=1)
    assert funded.balance("ada", now_us=1).debt_uhs == 20
    assert funded.accounts["ada"].burning == []
    assert funded.next_due_us() is None


@pytest.mark.parametrize("life", [{"scope": Scope(models=("qwen3",))}, {"effective": 5}])
def test_a_lot_that_may_not_be_spent_on_anything_now_repays_nothing(funded, terms, use, life):
    overdrawn(funded, use, 130)
    funded.grant("ada", lot_id="next", amount_uhs=50, terms=terms(**life), now_us=1)
    assert funded.balance("ada", now_us=1).debt_uhs == 30


def test_debt_within_the_limit_waits_for_the_invoice(funded, terms, use):
    funded.set_credit_limit("ada", credit_limit_uhs=50)
    overdrawn(funded, use, 130)
    funded.grant("ada", lot_id="next", amount_uhs=50, terms=terms(), now_us=1)
    assert funded.balance("ada", now_us=1).debt_uhs == 30


def test_a_lowered_limit_takes_back_nothing_and_grants_nothing(funded, use):
    funded.set_credit_limit("ada", credit_limit_uhs=50)
    overdrawn(funded, use, 130)
    assert funded.set_credit_limit("ada", credit_limit_uhs=10) is None
    balance = funded.balance("ada", now_us=0)
    assert (balance.debt_uhs, balance.credit_free_uhs, funded.free("ada", now_us=0)) == (30, 0, 0)


@pytest.mark.parametrize(
    ("debt_ct", "price", "earned", "charged"),
    [
        (2, 450_000, 900_000, 900_000),
        ("half", 30_000, 15_000, 20_000),
        ("half", 50_000, 25_000, 20_000),
        ("half", 70_000, 35_000, 40_000),
        ("half", 50_001, 25_000, 30_000),
        ("half", 3, 2, 10_000),
    ],
)
def test_an_invoice_turns_debt_into_a_receivable_rounded_half_even_to_whole_fen(
    book, use, debt_ct, price, earned, charged
):
    debt = UHS_PER_CT // 2 if debt_ct == "half" else debt_ct * UHS_PER_CT
    book.set_credit_limit("ada", credit_limit_uhs=debt)
    book.authorize("ada", hold_id="h", amount_uhs=debt, use=use, now_us=0, expires_at_us=None)
    book.capture("h", amount_uhs=debt, now_us=0)
    transfer = book.close_invoice("ada", invoice_id="2026-11", microcny_per_ct=price, now_us=1)
    assert (transfer.kind, transfer.ref) == ("invoice", "2026-11")
    assert legs(transfer) == {
        "op/op/issued": -debt,
        "cust/ada/debt": debt,
        "receivable/ada": charged,
        "op/op/revenue": -earned,
        **({"op/op/rounding": earned - charged} if earned != charged else {}),
    }
    balance = book.balance("ada", now_us=1)
    assert (balance.debt_uhs, balance.credit_free_uhs, balance.receivable_microcny) == (0, 0, charged)
    assert balance.invoiced_uhs == debt
    assert book.close_invoice("ada", invoice_id="again", microcny_per_ct=price, now_us=2) is None


def test_what_is_only_held_on_credit_is_not_invoiced(book, use):
    book.set_credit_limit("ada", credit_limit_uhs=100)
    book.authorize("ada", hold_id="h", amount_uhs=80, use=use, now_us=0, expires_at_us=None)
    assert book.close_invoice("ada", invoice_id="i", microcny_per_ct=1, now_us=1) is None
    book.capture("h", amount_uhs=30, now_us=1)
    book.close_invoice("ada", invoice_id="i", microcny_per_ct=1, now_us=1)
    assert book.free("ada", now_us=1) == 20
    book.pay("ada", amount_microcny=10_000, channel="bank", payment_ref="p", now_us=1)
    assert book.free("ada", now_us=1) == 50


def test_a_payment_settles_a_receivable_and_no_more(book, terms):
    book.grant("ada", lot_id="lot", amount_uhs=10, terms=terms(price=7, channel="receivable"), now_us=0)
    refused = book.pay("ada", amount_microcny=8, channel="bank", payment_ref="p", now_us=1)
    assert refused == Refused("invalid_amount", {"amount_microcny": 8, "receivable_microcny": 7})
    paid = book.pay("ada", amount_microcny=7, channel="bank", payment_ref="p", now_us=1)
    assert legs(paid) == {"cash/bank": 7, "receivable/ada": -7}
    assert book.balance("ada", now_us=1).receivable_microcny == 0
    for amount in (0, -1, 1):
        assert book.pay("ada", amount_microcny=amount, channel="b", payment_ref="p", now_us=2).code == "invalid_amount"


def test_a_bad_invoice_or_payment_is_refused_and_changes_nothing(funded, use):
    overdrawn(funded, use, 130)
    before = msgspec.msgpack.encode(funded)
    refusals = [
        funded.close_invoice("bob", invoice_id="i", microcny_per_ct=1, now_us=1),
        funded.close_invoice("ada", invoice_id="i", microcny_per_ct=-1, now_us=1),
        funded.close_invoice("ada", invoice_id="i", microcny_per_ct=INT64_MAX * UHS_PER_CT, now_us=1),
        funded.pay("bob", amount_microcny=1, channel="c", payment_ref="p", now_us=1),
    ]
    assert [refused.code for refused in refusals] == [
        "unknown_account",
        "invalid_amount",
        "beyond_int64",
        "unknown_account",
    ]
    assert msgspec.msgpack.encode(funded) == before


def test_a_closed_period_is_sealed_and_later_facts_belong_to_the_next(funded, use):
    overdrawn(funded, use, 30)
    first = funded.close_period("2026-11", now_us=1)
    assert sum(first.tokens_uhs.values()) == 0
    assert (first.through, first.tokens_uhs["redeemed"]) == (funded.count, 30)
    assert funded.close_period("2026-11", now_us=2).code == "period_closed"
    funded.settle("h", seq=2, used_uhs=5, now_us=2)
    funded.authorize("ada", hold_id="late", amount_uhs=9, use=use, now_us=2, expires_at_us=5)
    funded.settle("late", seq=1, used_uhs=9, now_us=9)
    second = funded.close_period("2026-12", now_us=10)
    assert funded.periods == [first, second]
    assert second.tokens_uhs["redeemed"] == 39


def test_a_period_closes_with_all_that_was_due_in_it(funded):
    assert funded.close_period("2026-11", now_us=100).tokens_uhs["breakage"] == 60
