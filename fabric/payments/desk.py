"""The desk: between the gate, which decides what a payment is, and the providers, which take the money.

Every step is written down by the gate before the next one, and every step can be taken again: whoever is killed between
two of them finds at `carry_on` what is to be done. What a provider says is answered only after the gate has it durably.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import structlog
from msgspec.structs import replace

from fabric.errors import FabricError, NotFound, error_of
from fabric.gate.events import AnyEvent
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.payment_events import AskPayment, PaymentStarted, PaymentState, PaymentTold, ReconcilePayments, Said
from fabric.gate.payment_views import PaymentView
from fabric.gate.payments import TAKING
from fabric.gate.questions import PaymentsOf
from fabric.gate.reconciling import LISTED_MAX
from fabric.payments.port import HOUR_US, Takers
from fabric.units import AccountId

CARRY_ON_S: Final = 5.0
"""Between two looks at what is unfinished."""
FRESH_US: Final = 5_000_000
"""What was asked so short a time ago is being started by whoever asked."""
DAY_US: Final = 24 * HOUR_US
ASKED_BEFORE_US: Final = 31 * DAY_US
"""Nothing is asked so long before it is paid."""
PAYMENTS_MAX: Final = 100_000
_HALF: Final = LISTED_MAX // 2
FRESH_LOOKS: Final = 12
"""A payment is asked about at every look in its first minutes, then ever more rarely."""

Decide = Callable[[Sequence[AnyEvent]], Awaitable[list[Outcome]]]
Ask = Callable[[Any], Awaitable[Any]]

log = structlog.get_logger()


class PaymentDesk:
    """One for each door; several do no harm beside each other."""

    def __init__(self, decide: Decide, ask: Ask, takers: Takers, *, now_us: Callable[[], int]) -> None:
        """Take what it needs.

        Args:
            decide: hands events to the gate, and answers when they are durable.
            ask: asks the gate.
            takers: the providers of this fabric, the one that customers pay at first.
            now_us: what time it is.
        """
        self._decide, self._ask = decide, ask
        self._providers = {taker.name: taker for taker in takers}
        self._now_us = now_us
        self.chosen = takers[0].name
        self._look_at_us: dict[str, int] = {}
        self._reconciled_us = 0
        """Until when all days are, as far as this desk knows: doing one again changes nothing."""

    # -- what customers and operators want -------------------------------------------------------------------------------

    async def pay(self, event: AskPayment) -> tuple[PaymentView, str]:
        """Ask for a payment and start it; the payment, and where it is paid ("" = nowhere)."""
        await self._must(event)
        return await self.link(event.account_id, event.payment_id)

    async def link(self, account_id: AccountId | None, payment_id: str) -> tuple[PaymentView, str]:
        """A payment, and where it is paid while that is possible.

        Raises:
            NotFound: the account has none of that name.
            Unavailable: its provider doesn't answer; it is asked again by itself.
        """
        payment = await self.payment(account_id, payment_id)
        if payment.state not in (PaymentState.ASKED, PaymentState.PENDING) or payment.aside:
            return payment, ""
        url = await self._start(payment)
        return await self.payment(account_id, payment_id), url

    async def payment(self, account_id: AccountId | None, payment_id: str) -> PaymentView:
        """One payment of an account; None = of anybody."""
        found: list[PaymentView] = await self._ask(PaymentsOf(account_id=account_id, payment_id=payment_id))
        if not found:
            raise NotFound(f"there is no payment {payment_id!r}", payment=payment_id)
        return found[0]

    async def hear(self, provider: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """A provider's notice: verified, then booked; what it is answered with once that is durable.

        Raises:
            NotFound: there is no such provider here.
            Forged: it isn't the provider's.
            Unavailable: the gate, or the provider that has to be asked, is away: it is sent again.
        """
        taker = self._providers.get(provider)
        if taker is None:
            raise NotFound(f"no payments of {provider[:40]!r} are taken here", provider=provider[:40])
        await self._tell(await taker.hear(headers, body))
        return taker.thanks

    async def reconcile(self, from_us: int, until_us: int) -> dict[str, int]:
        """Compare what its provider took in that time with what is booked here; what was found."""
        listed = {
            said.payment_id or said.provider_ref: said
            for said in await self._providers[self.chosen].list(from_us - DAY_US, until_us + HOUR_US)
        }
        asked = PaymentsOf(
            provider=self.chosen, from_us=from_us - ASKED_BEFORE_US, until_us=until_us, limit=PAYMENTS_MAX
        )
        ours: list[PaymentView] = await self._ask(asked)
        paid = sorted((each.paid_at_us, each.payment_id) for each in ours if each.paid_at_us is not None)
        for each in ours:
            if each.payment_id in listed:
                listed[each.payment_id] = _as_of_now(listed[each.payment_id], each, until_us=until_us)
        mine = [(at_us, name) for at_us, name in paid if from_us <= at_us < until_us]
        others = [listed[name] for name in sorted(set(listed) - {name for _, name in mine})]
        found: Counter[str] = Counter()
        for start in range(0, max(len(mine), len(others), 1), _HALF):
            part, rest = mine[start : start + _HALF], others[start : start + _HALF]
            ends_us = mine[start + _HALF][0] if len(mine) > start + _HALF else until_us
            event = ReconcilePayments(
                provider=self.chosen,
                from_us=from_us if not start else part[0][0] if part else until_us - 1,
                until_us=ends_us,
                listed=(*(listed[name] for _, name in part if name in listed), *rest),
            )
            facts = (await self._must(event)).facts
            found.update({name: count for name, count in facts.items() if isinstance(count, int)})
        return dict(found)

    async def reconcile_daily(self) -> None:
        """Reconcile the newest day of which its provider's list is whole, if that wasn't done."""
        until_us = (self._now_us() - self._providers[self.chosen].listed_after_us) // DAY_US * DAY_US
        if self.chosen in TAKING and until_us > self._reconciled_us:
            found = await self.reconcile(until_us - DAY_US, until_us)
            self._reconciled_us = until_us
            log.info("payments_reconciled", provider=self.chosen, **found)

    # -- what is unfinished ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry on for as long as it lives, whatever fails."""
        while True:
            try:
                await self.carry_on()
                await self.reconcile_daily()
            except FabricError as error:
                log.warning("payments_not_looked_at", code=error.code, error=error.message)
            except Exception:
                log.exception("payments_not_looked_at")
            await asyncio.sleep(CARRY_ON_S)

    async def carry_on(self, *, at_once: bool = False) -> None:
        """Start what was asked, ask what became of what was started, and pay back what is to be refunded."""
        unfinished: list[PaymentView] = await self._ask(PaymentsOf(unfinished=True))
        self._look_at_us = {each.payment_id: self._look_at_us.get(each.payment_id, 0) for each in unfinished}
        for payment in unfinished:
            if at_once or self._is_due(payment):
                try:
                    await self._carry_on(payment)
                except FabricError as error:
                    log.warning(
                        "payment_not_finished", payment=payment.payment_id, code=error.code, error=error.message
                    )

    def _is_due(self, payment: PaymentView) -> bool:
        now_us = self._now_us()
        age_us = now_us - payment.asked_at_us
        if age_us < FRESH_US or now_us < self._look_at_us[payment.payment_id]:
            return False
        self._look_at_us[payment.payment_id] = now_us + age_us // FRESH_LOOKS
        return True

    async def _carry_on(self, payment: PaymentView) -> None:
        taker = self._providers.get(payment.provider)
        if taker is None:
            return
        if payment.refunds_due_microcny:
            for refund in payment.refunds:
                if not refund.is_done and refund.amount_microcny:
                    await self._tell([said] if (said := await taker.refund(payment, refund)) is not None else [])
        elif payment.state == PaymentState.ASKED:
            await self._start(payment)
        elif (said := await taker.confirm(payment)) is not None:
            await self._tell([said])

    async def _start(self, payment: PaymentView) -> str:
        taker = self._providers.get(payment.provider)
        if taker is None:
            return ""
        before = await self._paid_before(payment) if payment.auto else None
        started = await taker.start(payment, before=before)
        if started.ref != payment.provider_ref:
            await self._must(PaymentStarted(payment_id=payment.payment_id, provider_ref=started.ref))
        if started.said is not None:
            await self._tell([started.said])
        return started.url

    async def _paid_before(self, payment: PaymentView) -> PaymentView | None:
        own: list[PaymentView] = await self._ask(
            PaymentsOf(account_id=AccountId(payment.account_id), provider=payment.provider)
        )
        return next((each for each in own if each.paid_at_us is not None and each.state == PaymentState.PAID), None)

    async def _tell(self, said: Sequence[Said]) -> None:
        if said:
            for outcome in await self._decide([PaymentTold(said=each) for each in said]):
                _check(outcome)

    async def _must(self, event: AnyEvent) -> Accepted:
        (outcome,) = await self._decide([event])
        return _check(outcome)


def _as_of_now(said: Said, payment: PaymentView, *, until_us: int) -> Said:
    """What a list says, with the refunds that were asked for after its time: they can't be in it."""
    later = [each for each in payment.refunds if each.is_done and each.asked_at_us >= until_us]
    by_then = payment.refunded_microcny - sum(each.amount_microcny for each in later)
    return replace(said, refunded=payment.refunded_microcny) if later and said.refunded == by_then else said


def _check(outcome: Outcome) -> Accepted:
    if isinstance(outcome, Refusal):
        raise error_of(outcome.code, outcome.http_status, outcome.message, outcome.facts)
    return outcome
