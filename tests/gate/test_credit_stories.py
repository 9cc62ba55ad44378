"""Stories of accounts on credit: what they may use, what a close makes of it, and what a payment gives back."""

from fractions import Fraction

import msgspec
import pytest

from fabric.charging.catalogue import Mode
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import AnyEvent, ClosePeriod, HoldMode, NodeDown, RecordPayment, TopUp
from fabric.gate.questions import BalanceOf
from fabric.gate.serving_events import SettleHold
from tests.gate.conftest import finished, metered, removed, saved, started, submit
from tests.gate.test_money_stories import hold, moved
from tests.gate.world import CATALOGUE, CONFIGURE, S


def paid(account, amount_microcny):
    ref = f"BANK-{amount_microcny}"
    return RecordPayment(account_id=account, amount_microcny=amount_microcny, payment_ref=ref)


def use_on_credit(story, seconds, hold_id="h"):
    """Cyd, who has 500 of credit and no tokens, uses so much of it."""
    if "cyd" not in story.gate.state.accounts:
        story.must(OpenAccount(account_id="cyd", name="Cyd", plan="post", credit_limit_uhs=500 * S))
    story.must(hold(seconds, hold_id, account="cyd"))
    story.must(SettleHold(hold_id=hold_id, account_id="cyd", seq=1, used_uhs=seconds * S))


def at_price(microcny_per_ct):
    """The postpaid plan at another price from now on."""
    plan = msgspec.structs.replace(CATALOGUE.plan("post"), price_microcny_per_ct=microcny_per_ct)
    catalogue = msgspec.structs.replace(CATALOGUE, plans=(*CATALOGUE.plans[:2], plan))
    return msgspec.structs.replace(CONFIGURE, catalogue=catalogue)


def test_what_was_used_on_credit_is_invoiced_at_the_close_and_free_when_it_is_paid(story):
    story.must(OpenAccount(account_id="cyd", name="Cyd", plan="post", credit_limit_uhs=500 * S))
    story.play(
        (0, submit(account="cyd", limit=400 * S), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (300, metered(300), []),
        (300, finished("succeeded"), ["remove j.1"]),
        (300, removed(), []),
    )
    assert (story.gate.state.book.accounts["cyd"].debt_uhs, story.free("cyd")) == (300 * S, 200 * S)
    decision = story.do(ClosePeriod(period="2023-11"))
    earned, price = 300 * 400_000 // 3_600, 30_000
    assert moved(decision) == [
        (
            "invoice",
            {
                ("op/op/issued", "CT"): -300 * S,
                ("cust/cyd/debt", "CT"): 300 * S,
                ("receivable/cyd", "CNY"): price,
                ("op/op/revenue", "CNY"): -earned,
                ("op/op/rounding", "CNY"): earned - price,
            },
        )
    ]
    assert story.free("cyd") == 200 * S
    assert story.do(ClosePeriod(period="2023-11")).outcome.code == "period_closed"
    decision = story.do(RecordPayment(account_id="cyd", amount_microcny=price, payment_ref="BANK-1"))
    assert moved(decision) == [("payment", {("cash/operator", "CNY"): price, ("receivable/cyd", "CNY"): -price})]
    assert decision.outcome.facts == {"paid_microcny": price, "receivable_microcny": 0, "invoiced_uhs": 0}
    assert story.free("cyd") == 500 * S


def test_a_payment_lets_a_job_go_on_that_had_used_up_its_credit_and_a_close_does_not(story):
    story.must(OpenAccount(account_id="cyd", name="Cyd", plan="post", credit_limit_uhs=600 * S))
    story.play(
        (0, submit(account="cyd", limit=900 * S, hold=HoldMode.ROLLING), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (595, metered(595), ["stop j.1 out_of_tokens by 600"]),
        (595, finished("saved"), ["remove j.1"]),
        (595, removed(), [], "parked out_of_tokens"),
        (600, ClosePeriod(period="p"), [], "parked out_of_tokens"),
        (601, paid("cyd", 595 * 400_000 // 3_600), ["start j.2 epoch 2 on h1:1"], "starting"),
    )


def test_a_close_forgives_nothing_however_often_it_comes(story):
    """Ten months on one credit limit: what is used in all is never more than the limit and what was paid."""
    story.must(OpenAccount(account_id="cyd", name="Cyd", plan="post", credit_limit_uhs=500 * S))
    used = 0
    for month in range(10):
        left = story.free("cyd")
        if left:
            story.must(hold(left // S, f"h{month}", account="cyd"))
            story.must(SettleHold(hold_id=f"h{month}", account_id="cyd", seq=1, used_uhs=left))
            used += left
        story.must(ClosePeriod(period=f"m{month}"))
    assert (used, story.free("cyd")) == (500 * S, 0)


def test_part_of_an_invoice_paid_is_that_part_of_the_credit_again(story):
    use_on_credit(story, 360)
    story.must(ClosePeriod(period="p"))
    owed = story.gate.state.book.accounts["cyd"].receivable_microcny
    assert owed == 40_000
    story.must(paid("cyd", 10_000))
    assert story.free("cyd") == (500 - 270) * S
    assert story.do(paid("cyd", 30_001)).outcome.code == "invalid_amount"
    assert "0.03 CNY to pay" in story.do(paid("cyd", 30_001)).outcome.message
    story.must(paid("cyd", 30_000))
    assert story.free("cyd") == 500 * S


def test_a_payment_of_invoices_books_once_by_its_reference(story):
    use_on_credit(story, 360)
    story.must(ClosePeriod(period="p"))
    event = RecordPayment(account_id="cyd", amount_microcny=10_000, payment_ref="BANK-7", request_id="one")
    first = story.must(event)
    again = story.do(msgspec.structs.replace(event, request_id="two"))
    assert (again.outcome, again.transfers) == (first, ())
    other = msgspec.structs.replace(event, amount_microcny=20_000, request_id="three")
    assert story.do(other).outcome.code == "payment_ref_used"
    top_it_up = TopUp(account_id="cyd", amount_uhs=S, payment_ref="BANK-7", channel="operator")
    assert story.do(top_it_up).outcome.code == "payment_ref_used"
    assert (
        story.do(msgspec.structs.replace(event, payment_ref=" ", request_id="4")).outcome.code == "payment_ref_missing"
    )


def test_what_was_used_is_invoiced_at_the_price_of_its_time(story):
    """300 at 0.40, then 100 at 1.20, of which the last 50 are taken back before the close."""
    use_on_credit(story, 300)
    story.must(at_price(1_200_000))
    story.must(at_price(1_200_000))
    use_on_credit(story, 100, "later")
    story.must(at_price(900_000))
    assert story.gate.state.book.accounts["cyd"].debt_uhs == 400 * S
    story.must(ClosePeriod(period="p"))
    account = story.gate.state.book.accounts["cyd"]
    exact = Fraction(300 * 400_000 + 100 * 1_200_000, 3_600)
    assert account.receivable_microcny == round(exact / 10_000) * 10_000
    assert (account.priced, account.debt_uhs) == ([], 0)
    twin = Gate.restore(story.gate.snapshot())
    assert twin.snapshot() == story.gate.snapshot()


def test_a_refund_takes_back_what_was_used_last_at_its_own_price(story):
    story.must(OpenAccount(account_id="cyd", name="Cyd", plan="post", credit_limit_uhs=900 * S))
    story.play(
        (0, submit(account="cyd", limit=400 * S), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (100, metered(100), []),
        (100, saved(), []),
        (100, at_price(1_200_000), []),
        (150, metered(50, seq=2), []),
        (150, NodeDown(node_id="h1"), ["remove j.1"]),
        (151, removed(), []),
    )
    assert story.gate.state.book.accounts["cyd"].debt_uhs == 100 * S
    story.must(ClosePeriod(period="p"))
    assert (
        story.gate.state.book.accounts["cyd"].receivable_microcny
        == round(Fraction(100 * 400_000, 3_600) / 10_000) * 10_000
    )


@pytest.mark.parametrize(("given", "limit"), [(None, 2_000), (0, 0), (1, 1), (700, 700)])
def test_an_account_has_the_credit_it_was_opened_with(story, given, limit):
    given = None if given is None else given * S
    story.must(OpenAccount(account_id="cyd", name="", plan="post", credit_limit_uhs=given))
    assert story.gate.ask(BalanceOf(account_id="cyd"), story.now_us).credit_limit_uhs == limit * S


def test_a_prepaid_plan_is_never_opened_with_credit(story):
    refusal = story.do(OpenAccount(account_id="cyd", name="", plan="starter", credit_limit_uhs=18_000 * S)).outcome
    assert (refusal.code, refusal.http_status) == ("prepaid_plan", 400)
    assert "leave the credit of 5 tokens out" in refusal.message
    assert "(post)" in refusal.message
    story.must(OpenAccount(account_id="cyd", name="", plan="starter", credit_limit_uhs=0))
    assert story.do(submit("j", "cyd", limit=S)).outcome.code == "insufficient_tokens"


def test_a_plan_does_not_become_prepaid_under_accounts_with_credit(story):
    prepaid = msgspec.structs.replace(CATALOGUE.plan("post"), mode=Mode.PREPAID, credit_limit_uhs=0)
    changed = msgspec.structs.replace(
        CONFIGURE, catalogue=msgspec.structs.replace(CATALOGUE, plans=(*CATALOGUE.plans[:2], prepaid))
    )
    story.must(changed)
    story.must(CONFIGURE)
    story.must(OpenAccount(account_id="cyd", name="", plan="post"))
    refusal = story.do(changed).outcome
    assert (refusal.code, refusal.facts["missing"]) == ("invalid_config", "post")


def test_an_older_journals_accounts_open_as_they_did():
    """There 0 meant the plan's limit, and a prepaid plan took credit."""
    for plan, said, limit in (("post", 0, 2_000), ("post", 7, 7), ("starter", 0, 0), ("starter", 9, 9)):
        older = f'{{"event":"open_account","account_id":"a","name":"a","plan":"{plan}","credit_limit_uhs":{said * S}}}'
        gate = Gate()
        gate.handle(CONFIGURE, 0)
        gate.handle(msgspec.json.decode(older, type=AnyEvent), 0)
        assert gate.ask(BalanceOf(account_id="a"), 0).credit_limit_uhs == limit * S
