"""Payments: who says that something was paid, and that each payment is booked once.

A payment has a channel (who says so) and, in it, a reference: what it is called where it was received. A reference books
once for each account and channel, for ever, whatever request brings it. Knows neither prices nor lots.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from fabric.gate import refusals
from fabric.gate.canonical import digest
from fabric.gate.core import Core
from fabric.gate.events import BuyBundle, RecordPayment, Subscribe, TopUp
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.state import Answered

SANDBOX: Final = "sandbox"
"""The channel of payments that nobody has checked."""
OPERATOR: Final = "operator"
"""The channel of payments that an operator has booked."""
CHANNELS: Final = (SANDBOX, OPERATOR)
TAKING: Final = ("stripe", "alipay")
"""Providers that take payments by themselves, and say what became of them."""
WAYS: Final = (*CHANNELS, *TAKING)
"""Who may be the one that says that something was paid."""
REF_MAX: Final = 200

Payment = TypeVar("Payment", TopUp, BuyBundle, Subscribe, RecordPayment)
_NAMES: Final = frozenset({"request_id", "payment_ref"})
"""What a payment is called, not what it is for."""


def once(core: Core, event: Payment, book: Callable[[Core, Payment], Outcome]) -> Outcome:
    """Book what was paid; or, where its reference was booked before, give the first answer again, and a refusal if it was for
    something else.
    """
    if refusal := _unpaid(core, event):
        return refusal
    ref = normal(event.payment_ref)
    if not ref:
        return book(core, event)
    known_as = f"{event.account_id}/{event.channel}/{ref}"
    asked = digest(event, but=_NAMES)
    before = core.state.paid.get(known_as)
    if before is not None:
        return before.outcome if before.digest == asked else _booked_otherwise(event.payment_ref)
    outcome = book(core, event)
    if isinstance(outcome, Accepted):
        core.state.paid[known_as] = Answered(asked, outcome)
    return outcome


def normal(ref: str) -> str:
    """A reference, however the spaces in and around it were written."""
    return " ".join(ref.split())


def _unpaid(core: Core, event: TopUp | BuyBundle | Subscribe | RecordPayment) -> Refusal | None:
    """Why nothing can be booked for this payment, if nothing can."""
    if event.channel not in CHANNELS:
        return refusals.invalid(
            f"there is no channel of payments {event.channel!r}: choose of {', '.join(CHANNELS)}",
            code="invalid_channel",
        )
    if event.channel == SANDBOX and core.state.payments != SANDBOX:
        return refusals.not_paid()
    if event.channel == OPERATOR and not normal(event.payment_ref):
        return refusals.invalid(
            "a payment that an operator books needs a reference: say what it is called where it was received",
            code="payment_ref_missing",
        )
    if len(event.payment_ref) > REF_MAX:
        return refusals.invalid(
            f"a payment's reference has at most {REF_MAX} characters, this one {len(event.payment_ref)}: shorten it",
            code="invalid_payment_ref",
        )
    return None


def _booked_otherwise(ref: str) -> Refusal:
    return refusals.conflict(
        f"payment {ref!r} was booked before for something else: a reference books once for an account. Look it up in"
        " `fabric statement`; what was booked by mistake is taken back with `fabric ops void`",
        code="payment_ref_used",
        payment_ref=ref,
    )
