"""What an account's entries come to as charges: purchases, use by day, lot and job or model, what expired, and adjustments. Pure.

Each charge of use is of one lot, or of what an invoice or nothing yet has taken up of the credit, so its effective cost is exact. Its
charge period is the day (UTC) on which it was booked. All of a lot's charges together cost what was paid for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fabric.audit.records import Booked
from fabric.charging.records import Cdr
from fabric.focus.lots import PICO, Debt, Lot, Taken, half_even
from fabric.ledger.transfers import CNY, CT, Transfer
from fabric.units import UHS_PER_CT

_BOUGHT: Final = {"top_up", "bundle", "subscription", "grant"}
_USES: Final = {"capture": 1, "refund": -1}
DAY_US: Final = 86_400_000_000
USE: Final = "use"
UNUSED: Final = "unused"
PURCHASE: Final = "purchase"
ADJUSTMENT: Final = "adjustment"


class Of(NamedTuple):
    """What a charge of use is of."""

    kind: str
    """Job | Model | Hold."""
    name: str
    key_id: str = ""
    accelerator: str = ""
    whose: tuple[object, ...] = ()
    """Its tags, project and member, where they are known: charges of different ones stay apart."""


@dataclass(slots=True)
class Charge:
    """One charge. Money in 10⁻¹² CNY; amounts in µHs, or thousandths of an LLM token."""

    kind: str
    at_us: int
    asset: str = CT
    of: Of | None = None
    lot: Lot | None = None
    invoice_id: str = ""
    amount: int = 0
    effective_pico: int = 0
    billed_pico: int = 0
    unit: tuple[int, int] = (0, 1)
    """The price of the smallest part of the asset, in 10⁻¹² CNY, as a fraction."""
    record: Cdr | None = None
    """One of what it is of, for its name, tags and the like."""
    calls: int = 0
    tokens: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Prompt, cached, completion, reasoning."""
    about: str = ""


@dataclass(slots=True)
class _Part:
    """A part of a transfer that one lot, or one stretch of the debt, has paid."""

    lot: Lot | None
    taken: Taken | None
    amount: int
    cost_pico: int


@dataclass(slots=True)
class _Sums:
    """What isn't told yet: of jobs until their record is there, of all else until its day is over."""

    day: int = -1
    jobs: dict[str, dict[tuple[object, ...], Charge]] = field(default_factory=dict)
    others: dict[tuple[object, ...], Charge] = field(default_factory=dict)


class Charges:
    """Reckons them, entry by entry, all of an account's from its first on. In memory are its lots, and what isn't told yet."""

    def __init__(
        self,
        *,
        from_us: int = 0,
        until_us: int | None = None,
        list_microcny_per_ct: int = 0,
        taken: list[Taken] | None = None,
    ) -> None:
        """Say what is to be told.

        Args:
            from_us: charges that were booked then or later.
            until_us: and before then; None = all.
            list_microcny_per_ct: the price in force of the account's plan, for what nothing has priced yet.
            taken: what has taken up the account's debt (`debt.taken` of a first reading); None = this is that reading.
        """
        self._from_us, self._until_us = from_us, 2**63 if until_us is None else until_us
        self._list = (list_microcny_per_ct * PICO, UHS_PER_CT)
        self.debt = Debt(taken)
        self.lots: dict[str, Lot] = {}
        self._sums = _Sums()
        self._of_lots = {
            "expire": self._expire,
            "void": self._void,
            "repay": self._repay,
            "reinstate": self._reinstate,
        }

    def add(self, entry: Booked) -> Iterator[Charge]:
        """The charges that are whole with an entry."""
        day = entry.at_us // DAY_US
        if day != self._sums.day:
            yield from self._flush()
            self._sums.day = day
        for transfer in entry.transfers:
            for charge in self._of(transfer, entry):
                if self._from_us <= charge.at_us < self._until_us:
                    yield charge
        for record in entry.records:
            if not record.model:
                for charge in self._sums.jobs.pop(record.job_id, {}).values():
                    charge.record = record
                    yield charge

    def rest(self) -> Iterator[Charge]:
        """Those that are not whole yet, as they stand."""
        yield from self._flush()
        for charges in self._sums.jobs.values():
            yield from charges.values()
        self._sums.jobs = {}

    def is_over(self, at_us: int) -> bool:
        """Whether nothing that is booked later can be told any more, or change what is."""
        return at_us >= self._until_us and not self._sums.jobs and not self._sums.others

    def _flush(self) -> Iterator[Charge]:
        yield from self._sums.others.values()
        self._sums.others = {}

    def _of(self, transfer: Transfer, entry: Booked) -> Iterator[Charge]:
        kind = transfer.kind
        if kind in _USES:
            self._use(transfer, entry, sign=_USES[kind])
        elif kind in _BOUGHT:
            yield from self._bought(transfer)
        elif kind in self._of_lots:
            yield from self._of_lots[kind](transfer)
        elif kind == "invoice":
            owed = sum(leg.amount for leg in transfer.postings if leg.account.endswith("/debt"))
            self.debt.take_up(owed, _billed(transfer), invoice_id=transfer.ref)
        elif kind == "sale":
            price = _billed(transfer)
            sold = Charge(PURCHASE, transfer.at_us, "", effective_pico=price, billed_pico=price, amount=1)
            sold.about = transfer.ref
            yield sold
        else:
            yield from self._money(transfer)

    def _expire(self, transfer: Transfer) -> Iterator[Charge]:
        for lot, amount in self._shares(transfer):
            yield self._charge(UNUSED, transfer, lot, amount, effective_pico=lot.take(amount))

    def _reinstate(self, transfer: Transfer) -> Iterator[Charge]:
        for lot, amount in self._shares(transfer):
            yield self._charge(ADJUSTMENT, transfer, lot, 0, effective_pico=-lot.thaw(amount))
        yield from self._money(transfer)

    def _bought(self, transfer: Transfer) -> Iterator[Charge]:
        asset, price = _asset(transfer, "/available"), _billed(transfer)
        for share in transfer.lots:
            lot = Lot(
                share.lot_id,
                asset,
                transfer.kind,
                transfer.at_us,
                share.amount_uhs,
                price // PICO,
                share.amount_uhs,
                price,
            )
            self.lots[share.lot_id] = lot
            yield self._charge(PURCHASE, transfer, lot, share.amount_uhs, billed_pico=price)

    def _void(self, transfer: Transfer) -> Iterator[Charge]:
        price = -_billed(transfer)
        for lot, amount in self._shares(transfer):
            if "frozen" in transfer.flags:
                yield self._charge(ADJUSTMENT, transfer, lot, 0, effective_pico=lot.freeze(amount))
                continue
            if not price:  # nothing is paid back: it is forfeited
                yield self._charge(UNUSED, transfer, lot, amount, effective_pico=lot.take(amount))
                continue
            yield self._charge(PURCHASE, transfer, lot, -amount, billed_pico=-price)
            lot.void(amount, price // PICO)
            if not lot.left and lot.left_pico:  # what was paid back is rounded to 10⁻⁶ CNY, or less than its part
                rest, lot.left_pico = lot.left_pico, 0
                yield self._charge(ADJUSTMENT, transfer, lot, 0, effective_pico=rest)

    def _repay(self, transfer: Transfer) -> Iterator[Charge]:
        for lot, amount in self._shares(transfer):
            cost = lot.take(amount)
            if "charged_back" in transfer.flags:
                yield self._charge(ADJUSTMENT, transfer, lot, 0, effective_pico=cost)
            else:
                self.debt.take_up(amount, cost, lot_id=lot.lot_id)

    def _money(self, transfer: Transfer) -> Iterator[Charge]:
        """What is charged, or no longer, for nothing in particular."""
        if billed := _billed(transfer):
            charge = Charge(ADJUSTMENT, transfer.at_us, "", effective_pico=billed, billed_pico=billed)
            charge.about = f"{transfer.kind} {transfer.ref}"
            charge.invoice_id = transfer.ref if transfer.kind == "credit_note" else ""
            yield charge

    def _use(self, transfer: Transfer, entry: Booked, *, sign: int) -> None:
        """Sum use up: each part of it counts for the call or job that it paid."""
        asset = _asset(transfer, "/redeemed")
        amount = abs(
            sum(leg.amount for leg in transfer.postings if leg.asset == asset and leg.account.endswith("/redeemed"))
        )
        pieces = [(share.lot_id, share.amount_uhs) for share in transfer.lots]
        pieces.append(("", amount - sum(part for _, part in pieces)))
        for of, record, wanted in _shared_by(transfer, entry, asset, amount):
            first = True
            for part in self._parts(pieces, wanted, transfer, asset, sign=sign):
                self._sum(transfer.at_us, asset, of, record, part, sign=sign, counts=first)
                first = False

    def _parts(
        self, pieces: list[tuple[str, int]], wanted: int, transfer: Transfer, asset: str, *, sign: int
    ) -> Iterator[_Part]:
        """The next so much of what paid, each part with its cost."""
        while wanted and pieces:
            lot_id, there = pieces[0]
            amount = min(there, wanted)
            pieces[0] = (lot_id, there - amount)
            if pieces[0][1] <= 0:
                pieces.pop(0)
            wanted -= amount
            if not amount:
                continue
            if lot_id:
                lot = self._lot(lot_id, asset, amount, transfer)
                yield _Part(lot, None, amount, lot.take(amount) if sign > 0 else lot.give_back(amount))
                continue
            for taken, start, part in self.debt.use(amount) if sign > 0 else self.debt.give_back(amount):
                cost = half_even(self._list[0] * part, self._list[1]) if taken is None else taken.cost_of(start, part)
                yield _Part(self.lots.get(taken.lot_id) if taken else None, taken, part, cost)

    def _sum(self, at_us: int, asset: str, of: Of, record: Cdr | None, part: _Part, *, sign: int, counts: bool) -> None:
        if not self._from_us <= at_us < self._until_us:
            return
        invoice_id = part.taken.invoice_id if part.taken else ""
        lot_id = part.lot.lot_id if part.lot else ""
        sums = self._sums.jobs.setdefault(of.name, {}) if of.kind == "Job" else self._sums.others
        key = (at_us // DAY_US, of, asset, lot_id, invoice_id, part.taken is None)
        charge = sums.get(key)
        if charge is None:
            unit = (
                part.lot.unit_pico
                if part.lot
                else (part.taken.cost_pico, part.taken.amount)
                if part.taken
                else self._list
            )
            charge = sums[key] = Charge(
                USE, at_us, asset, of, part.lot, invoice_id, unit=unit if unit[0] else self._unpaid(asset)
            )
        charge.record = charge.record or record
        charge.amount += sign * part.amount
        charge.effective_pico += sign * part.cost_pico
        charge.billed_pico += 0 if part.lot else sign * part.cost_pico
        if counts and record is not None and record.model and asset == CT:
            _count(charge, record)

    def _unpaid(self, asset: str) -> tuple[int, int]:
        """By what list price tokens go that were given away."""
        return self._list if asset == CT else (0, 1)

    def _charge(
        self, kind: str, transfer: Transfer, lot: Lot, amount: int, *, effective_pico: int = 0, billed_pico: int = 0
    ) -> Charge:
        return Charge(
            kind,
            transfer.at_us,
            lot.asset,
            lot=lot,
            amount=amount,
            effective_pico=effective_pico,
            billed_pico=billed_pico,
            unit=lot.unit_pico if lot.price_microcny else self._unpaid(lot.asset),
            about=transfer.ref,
        )

    def _shares(self, transfer: Transfer) -> list[tuple[Lot, int]]:
        asset = _asset(transfer, "")
        return [(self._lot(each.lot_id, asset, each.amount_uhs, transfer), each.amount_uhs) for each in transfer.lots]

    def _lot(self, lot_id: str, asset: str, amount: int, transfer: Transfer) -> Lot:
        """A lot by its name; one that was given for a refund comes up here first, and costs nothing."""
        known = self.lots.get(lot_id)
        if known is None:
            known = self.lots[lot_id] = Lot(lot_id, asset, "refund", transfer.at_us, amount, 0, 0, 0)
        return known


def _shared_by(transfer: Transfer, entry: Booked, asset: str, amount: int) -> Iterator[tuple[Of, Cdr | None, int]]:
    """Whose use it was, and how much of it: calls in their order, and what is of none of them is the hold's own."""
    job_id = transfer.ref.rpartition("#")[0]
    if job_id:
        yield Of("Job", job_id), None, amount
        return
    for record in entry.records:
        if record.model and record.lease_id == transfer.ref and amount:
            units = sum(each.units for each in record.packages if each.asset == asset)
            part = min(amount, record.charged_uhs if asset == CT else units)
            amount -= part
            whose = (record.tags, record.project, record.member)
            yield Of("Model", record.model, record.key_id, record.accelerator, whose), record, part
    if amount:
        yield Of("Hold", transfer.ref), None, amount


def _count(charge: Charge, record: Cdr) -> None:
    more = (record.prompt_tokens, record.cached_tokens, record.completion_tokens, record.reasoning_tokens)
    prompt, cached, completion, reasoning = (old + new for old, new in zip(charge.tokens, more, strict=True))
    charge.calls, charge.tokens = charge.calls + 1, (prompt, cached, completion, reasoning)


def _billed(transfer: Transfer) -> int:
    """What the account is charged by a transfer, in 10⁻¹² CNY: what the operator earned, and what rounding added."""
    earned = (
        leg.amount for leg in transfer.postings if leg.asset == CNY and leg.account.endswith(("/revenue", "/rounding"))
    )
    return -PICO * sum(earned)


def _asset(transfer: Transfer, account: str) -> str:
    """What it is of, by a posting to such an account."""
    return next((leg.asset for leg in transfer.postings if leg.asset != CNY and leg.account.endswith(account)), CT)
