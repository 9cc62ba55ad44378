"""Rules about payments that are asked for: what comes of each, what goes back of it, and that it is booked once."""

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from fabric.gate.events import Tick
from fabric.gate.instructions import Accepted, Refusal
from fabric.gate.payment_events import AskPayment, PaymentState, PaymentTold, RefundPayment, Said
from tests.gate.driver import Driver, accounts, picks
from tests.gate.world import S


class PaymentRules(Driver):
    """The operator takes them, whatever else is the way to pay."""

    def __init__(self):
        super().__init__()
        self.asked, self.paid_for = [], {}

    @rule(
        account=accounts,
        wanted=st.sampled_from(
            [
                {"amount_uhs": -S},
                {"amount_uhs": 7 * S},
                {"amount_uhs": 700 * S},
                {"bundle": "edge"},
                {"subscription": "weekly"},
                {"subscription": "daily"},
            ]
        ),
    )
    def ask_payment(self, account, wanted):
        self.do(Tick())
        name = self.name("y")
        outcome = self.ask(
            AskPayment(payment_id=name, account_id=account, provider="operator", **{"amount_uhs": 0, **wanted})
        )
        if wanted.get("amount_uhs", 0) < 0:
            assert outcome.code == "invalid_amount"
        elif isinstance(outcome, Accepted):
            assert not self.decisions[-1].transfers, "nothing is booked before it is paid"
            self.asked.append((name, account, outcome.facts["price_microcny"]))
        else:
            assert outcome.code in ("too_many_payments", "account_full", "paid_ahead")

    @precondition(lambda self: self.asked)
    @rule(
        pick=picks,
        state=st.sampled_from(["pending", "declined", "expired", "paid", "paid"]),
        off=st.sampled_from([0, 0, 0, 1]),
        back=st.sampled_from([0, 0, 2, 3]),
        gone=st.sampled_from([0, 0, 1, 2]),
        again=st.sampled_from([0, 0, 1]),
    )
    def say_of_payment(self, *, pick, state, off, back, gone, again):
        """What an operator says of one, in totals: a share of its price refunded, charged back, come again."""
        self.do(Tick())
        name, account, price = self.asked[-1 - pick % len(self.asked)]
        refunded = price // back if back else 0
        charged = (price - refunded) // gone if gone else 0
        said = Said(
            provider="operator",
            payment_id=name,
            provider_ref=f"REF {name}",
            state=PaymentState(state),
            amount=price + off,
            refunded=refunded,
            charged_back=charged,
            reinstated=charged * again,
        )
        outcome = self.ask(PaymentTold(said=said))
        kinds = {"top_up", "bundle", "subscription"}
        bought = any(transfer.kind in kinds for transfer in self.decisions[-1].transfers)
        if state == "paid" and off:
            assert isinstance(outcome, Refusal)
        else:
            assert isinstance(outcome, Accepted)
            payment = self.state.till.payments[name]
            first = state == "paid" and name not in self.paid_for and not payment.aside
            assert not payment.aside or payment.subscription, "only a cycle can be one too many"
            assert bought == first
            if first:
                self.paid_for[name] = account

    @precondition(lambda self: self.asked)
    @rule(pick=picks, seconds=st.sampled_from([None, 1, 400, 5_000]))
    def refund_payment(self, pick, seconds):
        self.do(Tick())
        name, account, _ = self.asked[-1 - pick % len(self.asked)]
        amount = None if seconds is None else seconds * S
        payment = self.state.till.payments[name]
        free = sum(self.book.lots[part.lot_id].free_uhs for part in payment.parts) if payment.lot_id else 0
        outcome = self.ask(RefundPayment(payment_id=name, account_id=account, amount_uhs=amount, reason="asked for"))
        if isinstance(outcome, Accepted):
            assert 0 < outcome.facts["amount_uhs"] <= free
            assert name in self.paid_for
        else:
            assert outcome.code in ("not_paid", "not_unused", "too_little", "invalid_reason")

    @invariant()
    def what_is_paid_back_was_paid(self):
        for name in self.paid_for:
            payment = self.state.till.payments[name]
            gone = payment.charged_back_microcny - payment.reinstated_microcny
            assert 0 <= gone <= payment.price_microcny
            assert 0 <= payment.refunded_microcny <= payment.price_microcny
