"""A job's own hold: captured, extended, refunded and closed by the gate."""

import msgspec
import pytest

from fabric.ledger import Book, Granted, Scope


def open_hold(book, use, amount, *, now=0, expires=None):
    return book.authorize("ada", hold_id="job", amount_uhs=amount, use=use, now_us=now, expires_at_us=expires)


def lots(book):
    return {name: (lot.free_uhs, lot.held_uhs, lot.captured_uhs, lot.expired_uhs) for name, lot in book.lots.items()}


def test_captures_follow_the_order_of_the_hold(funded, use):
    open_hold(funded, use, 80)
    assert funded.capture("job", amount_uhs=50, now_us=1) == 50
    assert lots(funded) == {"short": (0, 10, 50, 0), "long": (20, 20, 0, 0)}
    assert funded.capture("job", amount_uhs=20, now_us=2, flags=("estimated",)) == 20
    assert lots(funded) == {"short": (0, 0, 60, 0), "long": (20, 10, 10, 0)}
    last = funded.drain()[-1]
    assert [tuple(msgspec.to_builtins(share)) for share in last.lots] == [("short", 10), ("long", 10)]
    assert last.flags == ("estimated",)


def test_a_capture_never_exceeds_what_is_held(funded, use):
    open_hold(funded, use, 30)
    assert funded.capture("job", amount_uhs=50, now_us=1) == 30
    assert funded.capture("job", amount_uhs=50, now_us=1) == 0
    assert funded.capture("job", amount_uhs=-5, now_us=1) == 0
    assert funded.free("ada", now_us=1) == 70


@pytest.mark.parametrize(
    ("amount", "minimum", "answer"),
    [
        (30, None, Granted(30, 80, final=False)),
        (50, None, Granted(50, 100, final=False)),
        (51, 50, Granted(50, 100, final=True)),
        (51, None, "insufficient_tokens"),
        (60, 51, "insufficient_tokens"),
        (0, None, "invalid_amount"),
    ],
)
def test_a_hold_is_extended_from_what_is_free(funded, use, amount, minimum, answer):
    open_hold(funded, use, 50)
    got = funded.extend("job", amount_uhs=amount, now_us=1, minimum_uhs=minimum)
    assert (got.code if isinstance(answer, str) else got) == answer


def test_a_refund_unwinds_captures_exactly(funded, use):
    open_hold(funded, use, 50)
    funded.extend("job", amount_uhs=45, now_us=1)
    seen = [lots(funded)]
    steps = [7, 40, 3, 15, 30]
    for step in steps:
        assert funded.capture("job", amount_uhs=step, now_us=2) == step
        seen.append(lots(funded))
    for step in reversed(steps):
        assert lots(funded) == seen.pop()
        assert funded.refund("job", amount_uhs=step, now_us=3) == step
    assert lots(funded) == seen.pop()
    assert funded.refund("job", amount_uhs=1, now_us=3) == 0
    assert funded.close("job", now_us=4) == 95
    assert funded.balance("ada", now_us=4).free_uhs == 100


def test_captures_after_a_refund_burn_the_same_lots_again(funded, use):
    open_hold(funded, use, 80)
    funded.capture("job", amount_uhs=70, now_us=1)
    funded.refund("job", amount_uhs=30, now_us=1)
    assert lots(funded) == {"short": (0, 20, 40, 0), "long": (20, 20, 0, 0)}
    funded.capture("job", amount_uhs=30, now_us=1)
    assert lots(funded) == {"short": (0, 0, 60, 0), "long": (20, 10, 10, 0)}


def test_a_refund_brings_a_spent_lot_back_into_its_place(funded, use):
    open_hold(funded, use, 60)
    funded.capture("job", amount_uhs=60, now_us=1)
    assert funded.accounts["ada"].burning == ["long"]
    funded.refund("job", amount_uhs=5, now_us=1)
    assert funded.accounts["ada"].burning == ["short", "long"]
    funded.close("job", now_us=2)
    assert funded.next_due_us() == 100


def test_a_hold_without_validity_never_lapses(funded, use):
    open_hold(funded, use, 80)
    funded.sweep(now_us=10**17)
    assert funded.holds["job"].held_uhs == 80


def test_a_lot_that_expires_under_a_hold_stays_good_until_the_hold_ends(funded, use):
    open_hold(funded, use, 50)
    funded.sweep(now_us=100)
    assert lots(funded)["short"] == (0, 50, 0, 10)
    assert funded.capture("job", amount_uhs=20, now_us=150) == 20
    funded.drain()
    assert funded.close("job", now_us=160) == 30
    assert lots(funded)["short"] == (0, 0, 20, 40)
    (expired,) = funded.drain()
    assert (expired.kind, expired.at_us, expired.ref) == ("expire", 160, "job")
    assert [posting.account for posting in expired.postings] == ["cust/ada/held", "op/op/breakage"]


def test_a_hold_ends_once(funded, use):
    open_hold(funded, use, 50)
    funded.close("job", now_us=1)
    for again in (
        lambda: funded.close("job", now_us=2),
        lambda: funded.capture("job", amount_uhs=1, now_us=2),
        lambda: funded.extend("job", amount_uhs=1, now_us=2),
        lambda: funded.refund("job", amount_uhs=1, now_us=2),
    ):
        with pytest.raises(KeyError):
            again()


@pytest.fixture
def postpaid(funded):
    funded.set_credit_limit("ada", credit_limit_uhs=50)
    return funded


def test_credit_is_the_last_lot(postpaid, use):
    assert postpaid.free("ada", now_us=0, use=use) == 150
    assert open_hold(postpaid, use, 151).code == "insufficient_tokens"
    assert open_hold(postpaid, use, 120) == Granted(120, 120, final=False)
    (transfer,) = postpaid.drain()
    assert {posting.account: posting.amount for posting in transfer.postings} == {
        "cust/ada/available": -100,
        "cust/ada/debt": -20,
        "cust/ada/held": 120,
    }
    balance = postpaid.balance("ada", now_us=0)
    assert (balance.credit_held_uhs, balance.credit_free_uhs, balance.debt_uhs) == (20, 30, 0)
    assert postpaid.capture("job", amount_uhs=110, now_us=1) == 110
    assert postpaid.balance("ada", now_us=1).debt_uhs == 10
    assert postpaid.close("job", now_us=2) == 10
    balance = postpaid.balance("ada", now_us=2)
    assert (balance.credit_held_uhs, balance.credit_free_uhs, balance.debt_uhs) == (0, 40, 10)


def test_a_refund_of_debt_makes_it_held_on_credit_again(postpaid, use):
    open_hold(postpaid, use, 120)
    postpaid.capture("job", amount_uhs=115, now_us=1)
    postpaid.refund("job", amount_uhs=25, now_us=1)
    balance = postpaid.balance("ada", now_us=1)
    assert (balance.debt_uhs, balance.credit_held_uhs, balance.held_uhs) == (0, 20, 30)


def test_a_refund_of_invoiced_debt_is_a_lot_of_its_own(postpaid, use):
    open_hold(postpaid, use, 120)
    postpaid.capture("job", amount_uhs=115, now_us=1)
    postpaid.close_invoice("ada", invoice_id="inv", microcny_per_ct=1, now_us=2)
    postpaid.refund("job", amount_uhs=25, now_us=3)
    balance = postpaid.balance("ada", now_us=3)
    assert (balance.debt_uhs, balance.credit_held_uhs, balance.held_uhs) == (0, 5, 30)
    postpaid.check()
    assert postpaid.close("job", now_us=4) == 30
    lot = next(lot for lot in postpaid.balance("ada", now_us=4).lots if lot.origin == "refund")
    assert lot.free_uhs == 15


def test_capturing_a_thousand_times_keeps_the_hold_small(funded, terms, use):
    funded.grant("ada", lot_id="big", amount_uhs=10**9, terms=terms(), now_us=0)
    open_hold(funded, use, 100)
    for now in range(1000):
        funded.capture("job", amount_uhs=50, now_us=now)
        funded.extend("job", amount_uhs=50, now_us=now)
    assert len(funded.holds["job"].pieces) <= 3


def test_a_hold_survives_a_snapshot_in_the_middle(funded, use):
    open_hold(funded, use, 80)
    funded.capture("job", amount_uhs=70, now_us=1)
    copy = msgspec.msgpack.decode(msgspec.msgpack.encode(funded), type=Book)
    copy.refund("job", amount_uhs=15, now_us=2)
    copy.close("job", now_us=3)
    copy.check()
    assert lots(copy) == {"short": (5, 0, 55, 0), "long": (40, 0, 0, 0)}
    assert copy.next_due_us() == 100


def test_a_scope_holds_for_extensions_too(book, terms, use):
    book.grant("ada", lot_id="in", amount_uhs=10, terms=terms(), now_us=0)
    book.grant("ada", lot_id="out", amount_uhs=10, terms=terms(scope=Scope(accelerators=("910B",))), now_us=0)
    open_hold(book, use, 5)
    assert book.extend("job", amount_uhs=10, now_us=0, minimum_uhs=1) == Granted(5, 10, final=True)
    assert book.lots["out"].free_uhs == 10
