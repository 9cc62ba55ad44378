"""What can be seen of payments: views, which change nothing."""

from itertools import islice

import msgspec

from fabric.gate import purchases
from fabric.gate.core import Core
from fabric.gate.payment_state import Notice, Payment, Suspense
from fabric.gate.payment_views import NoticeView, PaymentView, RefundView, SuspenseView
from fabric.gate.questions import NoticesOf, PaymentsOf, SuspenseOf

_PAGE_MAX = 100_000


def payments(core: Core, asked: PaymentsOf) -> list[PaymentView]:
    """Newest first."""
    till = core.state.till
    if asked.payment_id:
        found = till.payments.get(asked.payment_id)
        mine = found is not None and asked.account_id in (None, found.account_id)
        return [_payment(found)] if found is not None and mine else []
    if asked.unfinished:
        named = (till.payments[name] for name in reversed(core.unfinished))
    elif asked.account_id is not None:
        named = (till.payments[name] for name in reversed(till.payments_of.get(asked.account_id, [])))
    else:
        named = (till.payments[name] for name in reversed(till.payments))
    chosen = (_payment(each) for each in named if _is_wanted(each, asked))
    return list(islice(chosen, min(max(asked.limit, 0), _PAGE_MAX)))


def _is_wanted(payment: Payment, asked: PaymentsOf) -> bool:
    return (
        asked.provider in ("", payment.provider)
        and asked.account_id in (None, payment.account_id)
        and asked.from_us <= payment.asked_at_us < asked.until_us
    )


def suspense(core: Core, asked: SuspenseOf) -> list[SuspenseView]:
    """Oldest first."""
    return [_suspense(each) for each in core.state.till.suspense.values() if asked.settled or not each.settled]


def notices(core: Core, asked: NoticesOf) -> list[NoticeView]:
    """Oldest first."""
    return [_notice(each) for each in core.state.till.notices.get(asked.account_id, ())]


def _payment(payment: Payment) -> PaymentView:
    return PaymentView(
        payment_id=payment.payment_id,
        account_id=payment.account_id,
        provider=payment.provider,
        provider_ref=payment.provider_ref,
        state=payment.state.value,
        aside=payment.aside,
        auto=payment.auto,
        amount_uhs=payment.amount_uhs,
        price_microcny=payment.price_microcny,
        currency=payment.currency,
        asked_at_us=payment.asked_at_us,
        until_us=payment.until_us,
        paid_at_us=payment.paid_at_us,
        lot_id=payment.lot_id,
        refunded_microcny=payment.refunded_microcny,
        charged_back_microcny=payment.charged_back_microcny - payment.reinstated_microcny,
        refunds_due_microcny=payment.refunds_due_microcny,
        refunds=tuple(
            RefundView(
                refund_id=each.refund_id,
                amount_uhs=each.amount_uhs,
                amount_microcny=each.amount_microcny,
                is_done=each.total_microcny <= payment.refunded_microcny + payment.dropped_microcny,
                asked_at_us=each.asked_at_us,
                reason=each.reason,
            )
            for each in payment.refunds
        ),
        why=payment.why,
        buys=purchases.called(payment),
        bundle="" if payment.bundle is None else payment.bundle.name,
        subscription=payment.subscription,
    )


def _suspense(found: Suspense) -> SuspenseView:
    return msgspec.convert(msgspec.to_builtins(found), SuspenseView)


def _notice(notice: Notice) -> NoticeView:
    return NoticeView(at_us=notice.at_us, what=notice.what, about=notice.about, text=notice.text)
