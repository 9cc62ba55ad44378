"""Which lot burns first."""

import itertools

import pytest

from fabric.ledger import LotShare, Origin, Scope, Service

H100_ONLY = Scope(accelerators=("H100",))
H100_TRAINING = Scope(accelerators=("H100",), services=(Service.TRAINING,))


@pytest.mark.parametrize("newest_burns_first", [False, True], ids=["granted in order", "granted in reverse"])
@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(({"priority": -1}, {"expires": 50}), id="priority before anything else"),
        pytest.param(({"expires": 50}, {"expires": 51}), id="soonest expiry"),
        pytest.param(({"expires": 10**18}, {"scope": H100_ONLY}), id="never expiring last"),
        pytest.param(({"origin": Origin.PROMOTION}, {"scope": H100_ONLY}), id="promotional before paid"),
        pytest.param(({"scope": H100_TRAINING, "price": 9}, {"scope": H100_ONLY}), id="narrower before wider"),
        pytest.param(({"scope": H100_ONLY, "price": 9}, {}), id="any scope before none"),
        pytest.param(({"price": 5, "at": 1}, {"price": 6, "at": 0}), id="cheaper before dearer"),
        pytest.param(({"at": 0}, {"at": 1}), id="older before newer"),
        pytest.param(({}, {}), id="and then the id"),
    ],
)
def test_the_burn_order_is_total(book, terms, use, pair, newest_burns_first):
    lots = [("a", *pair[:1]), ("b", *pair[1:])]
    for lot_id, facts in reversed(lots) if newest_burns_first else lots:
        at = facts.get("at", 0)
        made = terms(**{name: value for name, value in facts.items() if name != "at"})
        book.grant("ada", lot_id=lot_id, amount_uhs=10, terms=made, now_us=at)
    book.drain()
    book.authorize("ada", hold_id="h", amount_uhs=15, use=use, now_us=2, expires_at_us=None)
    (transfer,) = book.drain()
    assert transfer.lots == (LotShare("a", 10), LotShare("b", 5))


def test_cheaper_means_per_token_and_not_in_total(book, terms, use):
    book.grant("ada", lot_id="small", amount_uhs=10, terms=terms(price=50), now_us=0)
    book.grant("ada", lot_id="large", amount_uhs=100, terms=terms(price=100), now_us=0)
    book.authorize("ada", hold_id="h", amount_uhs=1, use=use, now_us=0, expires_at_us=None)
    assert book.lots["large"].held_uhs == 1


def test_grants_in_any_order_leave_the_same_burn_order(book, terms):
    lots = list(itertools.product((2, 0, 1), (None, 20, 10), (1, 0, 2)))
    for n, (priority, expires, price) in enumerate(lots):
        lot_id = f"lot{n}"
        book.grant(
            "ada", lot_id=lot_id, amount_uhs=5, terms=terms(priority=priority, expires=expires, price=price), now_us=0
        )
    order = book.accounts["ada"].burning
    assert order == sorted(order, key=lambda lot_id: book.lots[lot_id].burn_key)


@pytest.mark.parametrize(
    ("scope", "admitted"),
    [
        (Scope(), True),
        (Scope(accelerators=("H100", "A100")), True),
        (Scope(accelerators=("A100",)), False),
        (Scope(services=(Service.INFERENCE,)), False),
        (Scope(models=("qwen3",)), False),
        (Scope(operators=("other",)), False),
    ],
)
def test_a_scope_is_never_violated(book, terms, use, scope, admitted):
    book.grant("ada", lot_id="scoped", amount_uhs=10, terms=terms(scope=scope), now_us=0)
    book.grant("ada", lot_id="open", amount_uhs=1, terms=terms(priority=9), now_us=0)
    answer = book.authorize("ada", hold_id="h", amount_uhs=11, use=use, now_us=0, expires_at_us=None, minimum_uhs=1)
    assert answer.granted_uhs == (11 if admitted else 1)
    assert book.free("ada", now_us=0, use=use) == 0
    assert book.free("ada", now_us=0) == (0 if admitted else 10)


def test_a_scope_reads_as_english():
    assert Scope().text == "anything"
    assert Scope(services=(Service.INFERENCE,), accelerators=("H100", "A100"), models=("qwen3",)).text == (
        "inference on H100|A100 for qwen3"
    )
