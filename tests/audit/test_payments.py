"""Payments in the proof: what is booked by hand is in the statement, and the verifier finds the whole sound."""

import msgspec

from fabric.audit.verify import verify_export
from fabric.charging.catalogue import Mode, Plan
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import ClosePeriod, Grant, RecordPayment, Subscribe, TopUp, VoidLot
from fabric.gate.instructions import Accepted
from fabric.gate.questions import StatementOf
from fabric.gate.serving_events import Authorize, ReleaseHold, SettleHold
from tests.audit.conftest import CATALOGUE, CT, USE, opening

POSTPAID = Plan(
    name="post",
    tier_rank=0,
    price_microcny_per_ct=400_000,
    lifetime_days=30,
    mode=Mode.POSTPAID,
    credit_limit_uhs=20 * CT,
)


def at_price(microcny_per_ct):
    plan = msgspec.structs.replace(POSTPAID, price_microcny_per_ct=microcny_per_ct)
    catalogue = msgspec.structs.replace(CATALOGUE, plans=(*CATALOGUE.plans, plan))
    return msgspec.structs.replace(opening()[0], catalogue=catalogue, payments="operator")


def used(tokens, hold_id):
    more = {"hold_id": hold_id, "account_id": "cyd"}
    return (
        Authorize(amount_uhs=tokens * CT, use=USE, ttl_us=60_000_000, **more),
        SettleHold(seq=1, used_uhs=tokens * CT, **more),
    )


async def test_an_old_word_of_a_hold_that_was_released_is_no_use_of_it(log):
    """It is answered as before, and moves nothing: an honest fabric was found to hide a use."""
    hold = {"hold_id": "gone", "account_id": "acme"}
    answers = await log.write(
        [
            Authorize(amount_uhs=5 * CT, use=USE, ttl_us=60_000_000, **hold),
            ReleaseHold(seq=1, **hold),
            SettleHold(seq=1, used_uhs=CT, **hold),
        ]
    )
    assert all(isinstance(answer, Accepted) for answer in answers)
    report = verify_export(await log.export(), trusted_key=log.auditor.verifier_key)
    assert report.ok, report


async def test_what_an_operator_books_by_hand_is_in_the_statement_and_verified(log):
    paid = {"channel": "operator", "account_id": "acme"}
    answers = await log.write(
        [
            at_price(400_000),
            OpenAccount(account_id="cyd", name="Cyd", plan="post"),
            *used(5, "h1"),
            at_price(800_000),
            *used(2, "h2"),
            ClosePeriod(period="2023-11"),
            RecordPayment(account_id="cyd", amount_microcny=3_000_000, payment_ref="BANK-1", request_id="one"),
            RecordPayment(account_id="cyd", amount_microcny=3_000_000, payment_ref="BANK-1", request_id="two"),
            RecordPayment(account_id="cyd", amount_microcny=600_000, payment_ref="BANK-2"),
            TopUp(amount_uhs=100 * CT, payment_ref="INV-1", **paid),
            Grant(account_id="acme", amount_uhs=3 * CT),
        ]
    )
    assert all(isinstance(answer, Accepted) for answer in answers)
    lots = list(log.writer.core.state.book.lots)
    mistakes = [VoidLot(account_id="acme", lot_id=lot, reason="a mistake", request_id=lot) for lot in lots[-2:]]
    refused = [
        TopUp(account_id="acme", amount_uhs=CT, payment_ref="INV-2"),
        TopUp(amount_uhs=101 * CT, payment_ref="INV-1", request_id="again", **paid),
        Subscribe(account_id="acme", subscription="none", payment_ref="INV-3"),
    ]
    outcomes = await log.write([*mistakes, *refused])
    assert [isinstance(outcome, Accepted) for outcome in outcomes] == [True, True, False, False, False]
    for account in (None, "cyd", "acme"):
        report = verify_export(await log.export(account), trusted_key=log.auditor.verifier_key)
        assert report.ok, report
    statement = await log.statement(StatementOf(account_id="cyd", from_us=0, until_us=None))
    money = [(line.kind, line.cny_microcny, line.paid_microcny) for line in statement.lines if line.held_uhs == 0]
    assert money == [("invoice", 3_600_000, 0), ("payment", 0, 3_000_000), ("payment", 0, 600_000)]
    of_acme = await log.statement(StatementOf(account_id="acme", from_us=0, until_us=None))
    voided = [(line.amount_uhs, line.cny_microcny) for line in of_acme.lines if line.kind == "void"]
    assert voided == [(-100 * CT, -50_000_000), (-3 * CT, 0)]
