"""Charges cost exactly what was paid: lot by lot, whatever happened to it, and in all."""

from collections import Counter
from itertools import pairwise

from fabric.focus.charges import ADJUSTMENT, PURCHASE, UNUSED, USE, Charges
from fabric.focus.lots import PICO
from tests.audit.histories import T0, history
from tests.audit.test_usage import stated_uhs

LIST = 400_000


def charges_of(entries, *, from_us=0, until_us=None):
    """As they are told, after a first reading that finds what takes up the debt."""
    first = Charges(list_microcny_per_ct=LIST)
    for entry in entries:
        list(first.add(entry))
    reckoned = Charges(from_us=from_us, until_us=until_us, list_microcny_per_ct=LIST, taken=first.debt.taken)
    found = [charge for entry in entries for charge in reckoned.add(entry)]
    return [*found, *reckoned.rest()], reckoned


def test_the_effective_cost_of_all_that_a_lot_paid_and_what_expired_of_it_is_its_price():
    seen = Counter()
    for seed in range(120):
        found = history(seed)
        for account in ("ada", "cyd"):
            charges, reckoned = charges_of(found.of(account))
            book = found.gate.state.book
            for lot in reckoned.lots.values():
                mine = [charge for charge in charges if charge.lot is lot]
                paid = sum(charge.billed_pico for charge in mine)
                spent = sum(charge.effective_pico for charge in mine)
                assert abs(paid - spent - lot.left_pico) <= PICO, "to 10⁻⁶ CNY"
                assert lot.left_pico == 0 or lot.left > 0
                kept = book.lots.get(lot.lot_id)
                if kept is not None:
                    assert lot.left == kept.free_uhs + kept.held_uhs
                    assert lot.price_microcny in {paid // PICO, kept.terms.price_microcny}
                seen["spent"] += bool(spent and not lot.left)
                seen["unused"] += any(charge.kind == UNUSED and charge.effective_pico for charge in mine)
            billed = sum(charge.billed_pico for charge in charges)
            left = sum(lot.left_pico for lot in reckoned.lots.values())
            assert sum(charge.effective_pico for charge in charges) + left == billed, "nothing is lost or doubled"
            used = sum(charge.amount for charge in charges if charge.kind == USE and charge.asset == "CT")
            assert used == stated_uhs(found.of(account), account), "all use is in it"
            for charge in charges:
                seen[charge.kind] += 1
                seen["of an invoice"] += bool(charge.invoice_id)
    assert min(seen[kind] for kind in (USE, UNUSED, PURCHASE, "spent", "unused", "of an invoice")) > 10, seen
    assert seen[ADJUSTMENT], "of what a taken back lot was paid back beside its part"


def test_an_invoices_charges_add_up_to_it():
    seen = 0
    for seed in range(120):
        found = history(seed)
        charges, _ = charges_of(found.of("cyd"))
        priced = {
            transfer.ref: -sum(
                leg.amount for leg in transfer.postings if leg.account.startswith("op/") and leg.asset == "CNY"
            )
            for _, _, transfers, _ in found.entries
            for transfer in transfers
            if transfer.kind == "invoice" and transfer.account_id == "cyd"
        }
        for invoice_id, price in priced.items():
            mine = [charge for charge in charges if charge.invoice_id == invoice_id]
            assert sum(charge.billed_pico for charge in mine) == price * PICO
            seen += 1
    assert seen > 20


def test_charges_of_consecutive_times_are_those_of_the_whole():
    for seed in range(60):
        found = history(seed)
        entries = found.of("ada")
        edges = [0, T0 + 5 * 86_400_000_000, T0 + 20 * 86_400_000_000, None]
        whole, _ = charges_of(entries)
        parts = [
            charge
            for since, until in pairwise(edges)
            for charge in charges_of(entries, from_us=since, until_us=until)[0]
        ]
        for name in ("amount", "effective_pico", "billed_pico"):
            assert sum(getattr(each, name) for each in parts) == sum(getattr(each, name) for each in whole)
