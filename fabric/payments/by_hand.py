"""The two ways to pay without a provider: the sandbox, which believes everybody, and the operator, who books by hand."""

from collections.abc import Callable, Mapping

from fabric.gate.payment_events import PaymentState, Said
from fabric.gate.payment_views import PaymentView, RefundView
from fabric.gate.payments import OPERATOR, SANDBOX
from fabric.payments.port import SOON_US, Forged, Started


class Sandbox:
    """Whoever asks has paid. Only where tokens cost nothing."""

    name = SANDBOX
    thanks = b""
    listed_after_us = SOON_US

    async def start(self, payment: PaymentView, *, before: PaymentView | None) -> Started:  # noqa: ARG002 - the port's
        return Started(payment.payment_id, "", _said(payment, PaymentState.PAID))

    async def confirm(self, payment: PaymentView) -> Said | None:
        return _said(payment, PaymentState.PAID)

    async def refund(self, payment: PaymentView, refund: RefundView) -> Said | None:  # noqa: ARG002 - all that is due
        return _refunded(payment)

    async def list(self, from_us: int, until_us: int) -> tuple[Said, ...]:  # noqa: ARG002 - the port's
        return ()

    async def hear(self, headers: Mapping[str, str], body: bytes) -> tuple[Said, ...]:  # noqa: ARG002 - the port's
        raise Forged("the sandbox sends no notices", code="no_notices")


class Operator:
    """A transfer, an invoice, cash: an operator books it by its reference, and pays back what is refunded."""

    name = OPERATOR
    thanks = b""
    listed_after_us = SOON_US

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us

    async def start(self, payment: PaymentView, *, before: PaymentView | None) -> Started:  # noqa: ARG002 - the port's
        return Started(payment.payment_id, "")

    async def confirm(self, payment: PaymentView) -> Said | None:
        if self._now_us() < payment.until_us:
            return None
        return _said(payment, PaymentState.EXPIRED)

    async def refund(self, payment: PaymentView, refund: RefundView) -> Said | None:  # noqa: ARG002 - who asks pays it back
        return _refunded(payment)

    async def list(self, from_us: int, until_us: int) -> tuple[Said, ...]:  # noqa: ARG002 - the port's
        return ()

    async def hear(self, headers: Mapping[str, str], body: bytes) -> tuple[Said, ...]:  # noqa: ARG002 - the port's
        raise Forged("an operator sends no notices", code="no_notices")


def _said(payment: PaymentView, state: PaymentState, *, refunded: int = 0) -> Said:
    return Said(
        provider=payment.provider,
        payment_id=payment.payment_id,
        provider_ref=payment.provider_ref or payment.payment_id,
        state=state,
        amount=payment.price_microcny if state is PaymentState.PAID else 0,
        currency=payment.currency,
        refunded=refunded,
    )


def _refunded(payment: PaymentView) -> Said:
    return _said(payment, PaymentState.PAID, refunded=payment.refunded_microcny + payment.refunds_due_microcny)
