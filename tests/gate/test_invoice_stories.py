"""Stories of invoices: numbered, in whole fen, overdue by their plan's terms, credited, paid; each step once and with its date."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.charging import dunning
from fabric.charging.catalogue import Dunning
from fabric.config.dunning_section import DunningSection
from fabric.gate import Gate, derived
from fabric.gate.account_events import CreateKey, OpenAccount, ResumeAccount, SuspendAccount
from fabric.gate.events import (
    ClosePeriod,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseStarted,
    NodeUp,
    Pool,
    RecordPayment,
    Submit,
    Tick,
    TopUp,
)
from fabric.gate.invoice_events import CreditInvoice
from fabric.gate.payment_events import PaymentState, PaymentTold, Said, SettleSuspense
from fabric.gate.questions import BalanceOf, NoticesOf
from fabric.gate.serving_events import Authorize, SettleHold
from tests.gate.tills import HOUR, USE
from tests.gate.world import CATALOGUE, CONFIGURE, DAY, T0, S, spec

TERMS = Dunning(due_days=10, remind_days=(0, 5), stop_days=7)
PLANS = tuple(msgspec.structs.replace(plan, dunning=TERMS) if plan.name == "post" else plan for plan in CATALOGUE.plans)
POSTPAID = msgspec.structs.replace(CONFIGURE, catalogue=msgspec.structs.replace(CATALOGUE, plans=PLANS))


def on(terms):
    """The prices, with these terms of the postpaid plan."""
    plans = tuple(
        msgspec.structs.replace(plan, dunning=terms) if plan.name == "post" else plan for plan in CATALOGUE.plans
    )
    return msgspec.structs.replace(CONFIGURE, catalogue=msgspec.structs.replace(CATALOGUE, plans=plans))


class Books:
    """Dan's, on credit of 2,000 s at 0.4 CNY an hour; restored after every event."""

    def __init__(self, prices=POSTPAID):
        self.gate, self.now, self.made, self.money = Gate(), T0, 0, {}
        self.asked = []
        self.do(prices)
        self.do(OpenAccount(account_id="dan", name="", plan="post"))

    def do(self, event):
        restored = Gate.restore(self.gate.snapshot())
        decision = self.gate.handle(event, self.now)
        assert restored.handle(event, self.now) == decision
        derived.assert_same(self.gate._core, restored._core)
        self.gate.check()
        self.asked += [type(each).__name__ for each in decision.instructions]
        for transfer in decision.transfers:
            for leg in transfer.postings:
                if leg.asset == "CNY":
                    self.money[leg.account] = self.money.get(leg.account, 0) + leg.amount
        return decision.outcome

    def use(self, seconds):
        self.made += 1
        name = f"h{self.made}"
        granted = self.do(Authorize(hold_id=name, account_id="dan", amount_uhs=seconds * S, use=USE, ttl_us=HOUR))
        if hasattr(granted, "code"):
            return granted
        return self.do(SettleHold(hold_id=name, account_id="dan", seq=1, used_uhs=seconds * S))

    def close(self, period):
        return self.do(ClosePeriod(period=period))

    def after(self, days):
        self.now += round(days * DAY)
        self.do(Tick())
        return self

    def pay(self, amount):
        self.made += 1
        return self.do(RecordPayment(account_id="dan", amount_microcny=amount, payment_ref=f"B{self.made}"))

    def credit(self, invoice, amount, reason="a mistake"):
        return self.do(CreditInvoice(account_id="dan", invoice_id=invoice, amount_microcny=amount, reason=reason))

    def balance(self):
        return self.gate.ask(BalanceOf(account_id="dan"), self.now)

    def heard(self):
        return [each.what for each in self.gate.ask(NoticesOf(account_id="dan"), self.now)]


@pytest.fixture
def books():
    return Books()


def test_invoices_are_of_whole_fen_numbered_and_the_difference_is_booked(books):
    books.use(700)
    books.close("one")
    books.close("empty")
    books.use(100)
    books.close("two")
    one, two = books.balance().invoices
    assert [(each.number, each.price_microcny) for each in (one, two)] == [(1, 80_000), (2, 10_000)]
    assert books.money["op/op/revenue"] == -77_778 - 11_111
    assert books.money["op/op/rounding"] == 77_778 + 11_111 - 90_000
    assert (one.issued_at_us, one.due_at_us) == (T0, T0 + 10 * DAY)


def test_what_is_invoiced_counts_against_the_limit_until_it_is_paid(books):
    books.use(1_500)
    books.close("one")
    assert books.use(600).code == "insufficient_tokens", "nothing renews by closing a period"
    books.pay(books.balance().receivable_microcny)
    assert not hasattr(books.use(600), "code")


def test_an_overdue_invoice_is_reminded_of_then_nothing_more_is_held_on_credit(books):
    books.use(700)
    books.close("one")
    assert books.after(9.9).heard() == ["invoice"]
    assert books.after(0.1).heard()[-1] == "invoice_overdue"
    assert books.after(5).heard().count("invoice_overdue") == 2
    assert not hasattr(books.use(10), "code")
    books.after(2.5)
    (invoice,) = books.balance().invoices
    assert (invoice.reminded, invoice.stopped_at_us) == (2, T0 + 17 * DAY), "dated when it fell due"
    assert books.heard()[-1] == "credit_stopped"
    assert books.use(10).code == "insufficient_tokens"
    books.pay(70_000)
    assert books.use(10).code == "insufficient_tokens", "all of it has to be paid"
    books.pay(10_000)
    assert books.heard()[-1] == "credit_restored"
    assert not hasattr(books.use(10), "code")


STRICT = Dunning(due_days=1, remind_days=(0,), stop_days=1, park_days=2, close_days=30)


@pytest.fixture
def strict():
    """With a job that runs when its account is parked, three days after the invoice."""
    books = Books(on(STRICT))
    books.do(NodeUp(node_id="n", accelerator="H100", devices=4, pool=Pool.SPOT))
    books.do(TopUp(account_id="dan", amount_uhs=900 * S, request_id="paid ahead"))
    books.use(1_000)
    books.close("one")
    books.now += 3 * DAY - 30 * S
    books.do(TopUp(account_id="dan", amount_uhs=900 * S, request_id="more"))
    books.do(Submit(job_id="j", account_id="dan", spec=spec(), request_id="j"))
    books.do(LeaseStarted(lease_id="j.1"))
    return books


def job(books):
    found = books.gate.state.jobs["j"]
    return f"{found.state} {found.reason}".strip()


def saved(books):
    """Its job has saved and is off its devices."""
    books.now += 5 * S
    books.do(LeaseFinished(lease_id="j.1", outcome=LeaseOutcome.SAVED))
    books.do(LeaseRemoved(lease_id="j.1"))


def test_an_overdue_account_is_parked_with_a_checkpoint_and_goes_on_when_it_has_paid(strict):
    assert job(strict) == "running"
    assert strict.balance().invoices[0].next_step == "park"
    strict.now += 40 * S
    strict.do(Tick())
    (invoice,) = strict.balance().invoices
    assert (invoice.parked_at_us, invoice.next_step) == (T0 + 3 * DAY, "close"), "dated when it fell due"
    assert invoice.next_at_us == T0 + 31 * DAY
    assert strict.heard()[-1] == "account_suspended"
    assert strict.asked[-1] == "StopLease", "it is asked to save, not killed"
    saved(strict)
    assert job(strict) == "parked suspended"
    assert strict.do(Submit(job_id="k", account_id="dan", spec=spec(), request_id="k")).code == "account_suspended"
    owed = strict.balance().receivable_microcny
    strict.pay(owed - 1)
    assert job(strict) == "parked suspended", "all of it has to be paid"
    strict.pay(1)
    assert strict.heard()[-1] == "account_resumed"
    assert job(strict) == "starting"
    assert strict.asked[-1] == "StartLease"
    assert strict.after(60).gate.state.accounts["dan"].standing == "open"


def test_who_is_parked_by_the_terms_of_before_a_date_has_the_whole_grace_however_late_that_is_seen(strict):
    """The date comes five seconds after its account is to be parked, and the gate looks half a minute later."""
    prices = on(msgspec.structs.replace(STRICT, park_days=20))
    begins = {"effective_from_us": T0 + 3 * DAY + 5 * S, "version": 2}
    strict.do(msgspec.structs.replace(prices, catalogue=msgspec.structs.replace(prices.catalogue, **begins)))
    strict.now += 65 * S
    strict.do(Tick())
    assert strict.heard()[-1] == "account_suspended"
    assert strict.asked[-1] == "StopLease"
    assert strict.gate.state.leases["j.1"].deadline_us == strict.now + spec().grace_us
    strict.do(Tick())
    assert strict.asked[-1] == "StopLease", "it may save"


def test_a_credit_note_opens_a_parked_account_too(strict):
    strict.after(1)
    (invoice,) = strict.balance().invoices
    strict.credit(invoice.invoice_id, invoice.unpaid_microcny)
    assert strict.gate.state.accounts["dan"].standing == "open"


def test_an_unpaid_account_is_closed_in_the_end_and_its_debt_stays(strict):
    strict.after(1)
    saved(strict)
    owed, free = strict.balance().receivable_microcny, strict.balance().free_uhs
    assert owed
    assert free
    strict.after(29)
    assert strict.gate.state.accounts["dan"].standing == "closed"
    assert strict.heard()[-1] == "account_closed"
    assert job(strict).startswith("cancelled")
    assert (strict.balance().receivable_microcny, strict.balance().free_uhs) == (owed, 0)
    assert strict.balance().invoices[0].next_step == ""
    before = strict.heard()
    assert strict.after(90).heard() == before, "once"
    strict.pay(owed)
    assert strict.gate.state.accounts["dan"].standing == "closed", "for good"


@pytest.mark.parametrize("by_hand", ["suspended before", "suspended after", "opened"])
def test_what_an_operator_says_by_hand_counts_more_than_the_plans_terms(strict, by_hand):
    suspend = SuspendAccount(account_id="dan", reason="fraud")
    if by_hand == "suspended before":
        strict.do(suspend)
    strict.after(1)
    strict.do({"opened": ResumeAccount(account_id="dan")}.get(by_hand, suspend))
    strict.do(Tick())
    expected = "open" if by_hand == "opened" else "suspended"
    assert strict.gate.state.accounts["dan"].standing == expected
    strict.pay(strict.balance().receivable_microcny)
    assert strict.gate.state.accounts["dan"].standing == expected, "paying lifts only what not paying did"


def test_the_operators_own_account_is_not_parked_or_closed(strict):
    strict.do(CreateKey(key_id="k", account_id="dan", secret_sha256="", operator=True))
    strict.after(90)
    assert strict.gate.state.accounts["dan"].standing == "open"


@given(st.lists(st.sampled_from([*dunning._ORDER, None]), max_size=3), st.permutations((0, 1, 2, 3)))
def test_steps_come_in_the_order_of_their_dates_and_each_once(missing, days):
    dates = dict(zip(dunning._ORDER, days, strict=True)) | dict.fromkeys(missing)
    terms = Dunning(
        due_days=2,
        remind_days=() if dates["remind"] is None else (dates["remind"],),
        **{f"{what}_days": dates[what] for what in ("stop", "park", "close")},
    )
    taken, reminded, done = [], 0, frozenset()
    while (step := dunning.next_step(terms, issued_at_us=T0, reminded=reminded, done=done)) is not None:
        taken.append(step)
        reminded += step.what == "remind"
        done |= {step.what} - {"remind"}
    assert [each.at_us for each in taken] == sorted(each.at_us for each in taken)
    assert len({each.what for each in taken}) == len(taken)
    assert all(each.at_us >= T0 + 2 * DAY for each in taken)
    assert "close" not in {each.what for each in taken[:-1]}, "nothing follows it"


def test_a_credit_note_names_its_invoice_and_lifts_what_it_led_to(books):
    books.use(700)
    books.close("one")
    books.after(20)
    assert books.credit("one/dan", 80_001).code == "invalid_amount"
    assert books.credit("one/dan", 5).code == "invalid_amount", "whole fen"
    assert books.credit("one/dan", 30_000, reason=" ").code == "invalid_reason"
    assert books.credit("one/ada", 30_000).code == "not_found"
    assert books.credit("one/dan", 30_000).facts["credit_note"] == 1
    assert (books.balance().receivable_microcny, books.balance().invoices[0].unpaid_microcny) == (50_000, 50_000)
    assert books.credit("one/dan", 50_000).facts["credit_note"] == 2
    assert books.balance().invoices == ()
    assert books.heard()[-2:] == ["credit_restored", "invoice_credited"]
    assert books.credit("one/dan", 10_000).code == "not_found", "nothing of it is unpaid"


def test_what_came_in_at_a_provider_pays_invoices(books):
    """A customer may pay the sum of an invoice there, which no payment was asked for."""
    books.use(700)
    books.close("one")
    books.after(20)
    for name, amount in (("x", 80_000), ("y", 90_000)):
        said = {"provider": "stripe", "provider_ref": f"pi_{name}", "payment_id": name, "amount": amount}
        books.do(PaymentTold(said=Said(state=PaymentState.PAID, **said)))
    put = {"how": "invoices", "reason": "for invoice 1"}
    assert books.do(SettleSuspense(suspense_id="stripe/y", account_id="dan", **put)).code == "invalid_settlement"
    assert books.do(SettleSuspense(suspense_id="stripe/x", account_id="eve", **put)).code == "not_found"
    assert not hasattr(books.do(SettleSuspense(suspense_id="stripe/x", account_id="dan", **put)), "code")
    assert (books.balance().invoices, books.heard()[-1]) == ((), "credit_restored")
    assert (books.money["cash/stripe"], books.money["suspense/stripe"]) == (170_000, -90_000)


def test_terms_that_are_set_later_are_for_what_is_unpaid_then(books):
    books.do(CONFIGURE)
    books.use(700)
    books.close("one")
    assert books.after(100).heard() == ["invoice"]
    books.do(POSTPAID)
    assert books.after(0).heard()[-1] == "credit_stopped"


DEEDS = st.one_of(
    st.tuples(st.just("use"), st.integers(1, 900)),
    st.tuples(st.just("close"), st.none()),
    st.tuples(st.just("after"), st.integers(0, 20)),
    st.tuples(st.just("pay"), st.integers(1, 3)),
    st.tuples(st.just("credit"), st.integers(1, 3)),
)


@settings(max_examples=60)
@given(deeds=st.lists(DEEDS, max_size=25))
def test_whatever_happens_money_agrees_and_an_overdue_account_has_no_credit(deeds):
    books = Books()
    for number, (deed, much) in enumerate(deeds):
        due = books.balance().receivable_microcny
        unpaid = books.balance().invoices
        match deed:
            case "use" | "after":
                getattr(books, deed)(much)
            case "close":
                books.close(f"p{number}")
            case "pay" if due:
                books.pay(due // much)
            case "credit" if unpaid:
                books.credit(unpaid[-1].invoice_id, unpaid[-1].unpaid_microcny // much // 10_000 * 10_000)
        now = books.balance()
        assert now.receivable_microcny == sum(each.unpaid_microcny for each in now.invoices)
        assert sum(books.money.values()) == 0
        overdue = [each for each in now.invoices if each.due_at_us + 7 * DAY <= books.now]
        account = books.gate.state.book.accounts["dan"]
        assert (account.credit_stopped_at_us is not None) == bool(overdue)
        assert all((each.stopped_at_us is not None) == (each in overdue) for each in now.invoices)
        assert [each.number for each in now.invoices] == sorted({each.number for each in now.invoices})
        if overdue:
            assert account.credit_free_uhs == 0


@pytest.mark.parametrize("steps", [(3, 2, 9), (1, 9, 2), (5, None, 4)])
def test_a_plans_steps_are_in_the_order_of_their_severity(steps):
    stop, park, close = steps
    with pytest.raises(ValueError, match="stop_days <= park_days <= close_days"):
        DunningSection(due_days=1, stop_days=stop, park_days=park, close_days=close)
    assert DunningSection(due_days=1, park_days=2).built().park_days == 2
