"""What was used in a time, as it was booked in that time: the sum of its rows is what the statement of the same time charges.

A record is closed when its lease has ended, and its charge was booked while that ran. So a record of a time says how much of
its charge was booked in it; what was booked and has no record yet, or never will (a customer's own holds), is a row of its own.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from fabric.audit.records import Booked
from fabric.charging.records import Cdr
from fabric.ledger.transfers import CT, Transfer

_USED: Final = "/redeemed"
RUNNING: Final = "running"
"""How what is charged already and has no record has ended."""


class Used(NamedTuple):
    """A row of usage."""

    record: Cdr
    booked_uhs: int
    """What of it was booked in the time that was asked for."""


def own(account_id: str, seq: int, at_us: int, transfers: Iterable[Transfer], records: Iterable[Cdr]) -> Booked:
    """What of an entry is about one account."""
    return Booked(
        seq=seq,
        at_us=at_us,
        transfers=tuple(each for each in transfers if each.account_id == account_id),
        records=tuple(each for each in records if each.account_id == account_id),
    )


def used_uhs(transfer: Transfer) -> int:
    """The compute tokens that a transfer charges the account for use; what the operator bears is not charged."""
    if transfer.kind == "write_off":
        return 0
    return sum(leg.amount for leg in transfer.postings if leg.asset == CT and leg.account.endswith(_USED))


@dataclass(slots=True)
class _Open:
    """What is booked and has no record yet."""

    is_job: bool
    since_us: int
    until_us: int = 0
    booked_uhs: int = 0


class Usage:
    """Reckons it, entry by entry. In memory there is a sum for each lease that runs, and for each hold without a record."""

    def __init__(self, account_id: str, *, job_id: str | None = None) -> None:
        """With a job only what is about that."""
        self._account_id, self._job_id = account_id, job_id
        self._open: dict[str, _Open] = {}
        """By the job or, of what has none, the hold."""

    def add(self, entry: Booked) -> Iterator[Used]:
        """The rows that an entry closes."""
        for transfer in entry.transfers:
            if amount := used_uhs(transfer):
                job_id = transfer.ref.rpartition("#")[0]
                known = self._open.setdefault(job_id or transfer.ref, _Open(bool(job_id), transfer.at_us))
                known.until_us = transfer.at_us
                known.booked_uhs += amount
        for record in entry.records:
            booked_uhs = self._take(record)
            if self._job_id in (None, record.job_id):
                yield Used(record, booked_uhs)

    def rest(self) -> Iterator[Used]:
        """The rows of what has no record in the time."""
        for name, known in self._open.items():
            if known.booked_uhs and self._job_id in (None, name):
                yield Used(self._row(name, known), known.booked_uhs)

    def _take(self, record: Cdr) -> int:
        """What was booked of a record: all that its lease had booked, or of a hold's that of the call."""
        name = record.lease_id if record.model else record.job_id
        known = self._open.get(name)
        if known is None:
            return 0
        booked_uhs = min(known.booked_uhs, record.charged_uhs) if record.model else known.booked_uhs
        known.booked_uhs -= booked_uhs
        if not known.booked_uhs:
            del self._open[name]
        return booked_uhs

    def _row(self, name: str, known: _Open) -> Cdr:
        return Cdr(
            cdr_id=f"{name}/{RUNNING}",
            account_id=self._account_id,
            job_id=name if known.is_job else "",
            lease_id="" if known.is_job else name,
            name="",
            service="",
            accelerator="",
            devices=0,
            started_at_us=known.since_us,
            ended_at_us=known.until_us,
            metered_us=0,
            busy_us=0,
            estimated_us=0,
            tariff_version=0,
            weight_ppm=0,
            charged_uhs=known.booked_uhs,
            ended=RUNNING,
        )
