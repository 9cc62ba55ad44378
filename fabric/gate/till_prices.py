"""A new payment: what it costs, and where it is kept."""

from typing import Final

from fabric.charging import plans
from fabric.gate.core import Core
from fabric.gate.payment_events import OPEN, UNPAID
from fabric.gate.payment_state import Payment
from fabric.gate.payments import TAKING
from fabric.units import AccountId

FEN_MICROCNY: Final = 10_000
"""What providers count in: a hundredth of a yuan."""
UNPAID_KEPT: Final = 100
"""Of one account's payments that came to nothing; one that is paid after all is the operator's to book."""


def price_at(core: Core, account_id: AccountId, amount_uhs: int, *, provider: str) -> int:
    """What so many tokens cost the account now, in 10⁻⁶ CNY; whole fen where a provider takes it, rounded up."""
    return payable(plans.price_of(core.plan_of(account_id), amount_uhs=amount_uhs), provider=provider)


def payable(price: int, *, provider: str) -> int:
    """A price as it can be paid: whole fen where a provider takes it, rounded up."""
    return -(-price // FEN_MICROCNY) * FEN_MICROCNY if provider in TAKING else price


def begin(core: Core, payment: Payment) -> Payment:
    """Keep a new payment, and let go of the oldest of its account that came to nothing."""
    till = core.state.till
    till.payments[payment.payment_id] = payment
    own = till.payments_of.setdefault(payment.account_id, [])
    own.append(payment.payment_id)
    over = [name for name in own if till.payments[name].state in UNPAID - OPEN and not till.payments[name].aside]
    for name in over[: len(over) - UNPAID_KEPT] if len(over) > UNPAID_KEPT else ():
        own.remove(name)
        del till.payments[name]
    core.note_payment(payment)
    return payment
