"""What was booked by mistake, taken back: as far as it is unused, with its part of the price, by an entry that says why."""

from fabric.gate import refusals, subscriptions
from fabric.gate.core import Core
from fabric.gate.events import VoidLot
from fabric.gate.instructions import Accepted, Outcome
from fabric.gate.payments import TAKING
from fabric.gate.treasury import REASON_MAX
from fabric.ledger import funding
from fabric.ledger import packages as ledgers
from fabric.units import format_ct, format_llm_tokens


def void(core: Core, event: VoidLot) -> Outcome:
    """Take back what is unused of a lot that was booked by mistake, with its part of the price."""
    ledger = ledgers.with_lot(core.book, event.lot_id)
    lot = None if ledger is None else ledger.lots[event.lot_id]
    if ledger is None or lot is None or lot.account_id != event.account_id:
        return refusals.not_found("lot", event.lot_id)
    if not 0 < len(event.reason.strip()) <= REASON_MAX:
        return refusals.invalid(f"say why, in 1 to {REASON_MAX} characters: it is kept for ever", code="invalid_reason")
    amount_uhs = lot.free_uhs if event.amount_uhs is None else event.amount_uhs
    shown = format_ct if ledger is core.book else format_llm_tokens
    if not 0 < amount_uhs <= lot.free_uhs:
        return refusals.conflict(
            f"of lot {lot.lot_id} {shown(lot.free_uhs)} tokens are unused, {shown(lot.held_uhs)} held and"
            f" {shown(lot.captured_uhs)} used: only what is unused can be voided"
            + (f", not {shown(amount_uhs)}" if event.amount_uhs is not None else ""),
            code="not_unused",
            free_uhs=lot.free_uhs,
            held_uhs=lot.held_uhs,
            captured_uhs=lot.captured_uhs,
        )
    ahead = next((record.ahead for record in core.state.subscriptions if lot.lot_id in record.ahead), [lot.lot_id])
    if ahead[-1] != lot.lot_id:
        return refusals.conflict(
            f"later cycles than that of lot {lot.lot_id} are paid: void {ahead[-1]} first", code="not_the_last"
        )
    if lot.terms.channel in TAKING:
        return refusals.conflict(
            f"lot {lot.lot_id} was paid at {lot.terms.channel}: refund its payment, which takes it back and its price with it"
            " (fabric ops payments refund)",
            code="refund_instead",
        )
    price = funding.void(ledger, lot.lot_id, amount_uhs=amount_uhs, now_us=core.now_us)
    subscriptions.drop_unpaid(core, event.account_id)
    return Accepted(facts={"voided_uhs": amount_uhs, "price_microcny": price})
