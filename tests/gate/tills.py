"""Words of a made-up provider about Bob's payments, and the sums of what they book."""

from fabric.gate.payment_events import AskPayment, PaymentState, PaymentTold, Said, SetAutoTopUp
from fabric.gate.questions import BalanceOf, PaymentsOf
from fabric.gate.serving_events import Authorize, SettleHold
from fabric.ledger import Service, Use
from tests.gate.world import S

PRICE = 1_000_000
"""Of 7,200 s, two tokens at 0.5 CNY."""
USE = Use(service=Service.INFERENCE)
HOUR = 3_600 * S


def asks(payment_id="p1", seconds=7_200, **more):
    return AskPayment(
        **{"payment_id": payment_id, "account_id": "bob", "provider": "stripe", "amount_uhs": seconds * S, **more}
    )


def says(state="paid", payment_id="p1", amount=PRICE, **more):
    said = {"provider": "stripe", "payment_id": payment_id, "provider_ref": f"pi_{payment_id}", "amount": amount}
    return PaymentTold(said=Said(**{**said, "state": PaymentState(state), **more}))


def rule(**more):
    limits = {"threshold_uhs": 1_000 * S, "amount_uhs": 7_200 * S, "month_max_uhs": 14_400 * S}
    return SetAutoTopUp(**{"account_id": "bob", **limits, **more})


def uses(seconds, name="c"):
    """So much of Bob's is used, and nothing held any more."""
    held = Authorize(hold_id=name, account_id="bob", amount_uhs=seconds * S, use=USE, ttl_us=HOUR)
    return held, SettleHold(hold_id=name, account_id="bob", seq=1, used_uhs=seconds * S)


def view(till, payment_id="p1"):
    (found,) = till.gate.ask(PaymentsOf(payment_id=payment_id), till.now_us)
    return found


class Books:
    """Sums of all postings."""

    def __init__(self, till):
        self.till, self.sums = till, {}

    def do(self, *events):
        for event in events:
            decision = self.till.do(event)
            for transfer in decision.transfers:
                for leg in transfer.postings:
                    self.sums[leg.account, leg.asset] = self.sums.get((leg.account, leg.asset), 0) + leg.amount
        return decision.outcome

    def __getitem__(self, account):
        return self.sums.get((account, "CNY"), 0)

    def free(self):
        return self.till.gate.ask(BalanceOf(account_id="bob"), self.till.now_us).free_uhs

    def owed(self):
        return self.till.gate.state.book.accounts["bob"].charged_back_uhs
