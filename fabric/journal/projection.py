"""The projection: what entries of the journal come to for reading, by account and time. Pure: entries in, rows out.

Charging records, the lines of statements with the balances after each, which entries are an account's, which of these are
about which job, and what became of jobs. Rows of an entry follow from it and from what was there before (balances, jobs), so
the same entries give the same rows however they are cut into batches, and what isn't kept yet is projected by whoever reads.

What an older or newer entry says beside this is passed over. A change of what rows say is another `FORMAT`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from fabric.audit.records import Balances
from fabric.audit.statements import after, moves_of
from fabric.charging.records import Cdr
from fabric.charging.served import Served
from fabric.errors import JournalCorrupt
from fabric.journal.store import Entry
from fabric.ledger.transfers import Transfer

FORMAT: Final = 1
"""Of the rows: kept ones of another format are thrown away, and made anew."""


class OwnEntry(NamedTuple):
    """That an entry is an account's, and when it was written: what decides in which period it is."""

    account_id: str
    at_us: int
    seq: int


class KeptLine(NamedTuple):
    """A line of an account's statement, and its balances after it."""

    account_id: str
    seq: int
    n: int
    """Counts the entry's lines of the account from 0."""
    free_uhs: int
    held_uhs: int
    debt_uhs: int
    line: bytes
    """`fabric.audit.records.Line` in JSON."""

    @property
    def balances(self) -> Balances:
        return balances_after(self.free_uhs, self.held_uhs, self.debt_uhs, self.line)


class _Left(msgspec.Struct, frozen=True):
    left: dict[str, tuple[int, int]] = {}


def balances_after(free_uhs: int, held_uhs: int, debt_uhs: int, line: bytes) -> Balances:
    """What an account has after a line that is kept."""
    packages = _left.decode(line).left if _HAS_LEFT in line else {}
    return Balances(free_uhs=free_uhs, held_uhs=held_uhs, debt_uhs=debt_uhs, packages=packages)


class KeptRecord(NamedTuple):
    """A charging record."""

    account_id: str
    seq: int
    n: int
    """Counts the entry's records from 0."""
    ended_at_us: int
    job_id: str
    charged_uhs: int
    record: bytes
    """`fabric.charging.records.Cdr` in JSON."""


class About(NamedTuple):
    """That an account's entry is about a job."""

    job_id: str
    account_id: str
    seq: int


class JobHistory(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the journal has of a job: what was asked for, and what came of it. Where it is just now, the gate knows."""

    job_id: str
    account_id: str
    submitted_at_us: int
    name: str = ""
    kind: str = ""
    service: str = ""
    tags: tuple[str, ...] = ()
    key_id: str = ""
    limit_uhs: int = 0
    started_at_us: int | None = None
    """When its first attempt began."""
    attempts: int = 0
    """Those that began."""
    outcome: str = ""
    """What the last attempt that ended told: succeeded | failed | saved | lost | interrupted | no_room; "" = none has."""
    error: str = ""
    exit_code: int | None = None
    cancelled_at_us: int | None = None
    """When its owner had it cancelled."""
    ended_at_us: int | None = None
    """When the last attempt ended that was charged."""
    charged_uhs: int = 0
    """By all its records."""
    refunded_uhs: int = 0


class _Spec(msgspec.Struct, frozen=True):
    name: str = ""
    kind: str = ""
    service: str = ""
    tags: tuple[str, ...] = ()
    limit_uhs: int = 0


class _Told(msgspec.Struct, frozen=True):
    """Of an event what is projected."""

    event: str = ""
    job_id: str = ""
    account_id: str | None = None
    key_id: str | None = None
    lease_id: str = ""
    spec: _Spec | None = None
    limit_uhs: int | None = None
    outcome: str = ""
    error: str = ""
    exit_code: int | None = None
    plan: str = ""


class _Answer(msgspec.Struct, frozen=True):
    outcome: str = ""


class Told(msgspec.Struct, frozen=True):
    """Of a leaf what is projected."""

    seq: int
    at_us: int
    event: _Told | None = None
    outcome: _Answer | None = None
    transfers: tuple[Transfer, ...] = ()
    records: tuple[Cdr, ...] = ()


class Rows:
    """What some entries come to, in their order."""

    def __init__(self) -> None:
        self.entries: list[OwnEntry] = []
        self.lines: list[KeptLine] = []
        self.records: list[KeptRecord] = []
        self.about: list[About] = []
        self.jobs: dict[str, JobHistory] = {}
        """As they stand after them: those that were touched."""
        self.plans: dict[str, str] = {}
        """Accounts that were opened, and on which plan."""
        self.served: dict[tuple[str, str], Served] = {}
        """What calls by model and plan have come to: those that were touched."""


class Known(NamedTuple):
    """What was there before some entries, as far as they touch it."""

    balances: Mapping[str, Balances] = {}
    """None = an account that has had nothing."""
    jobs: Mapping[str, JobHistory] = {}
    """Of what they name, those that are jobs."""
    plans: Mapping[str, str] = {}
    served: Mapping[tuple[str, str], Served] = {}


NOTHING: Final = Known()
_decoder: Final = msgspec.json.Decoder(Told)
_left: Final = msgspec.json.Decoder(_Left)
_HAS_LEFT: Final = b'"left":{"'
_encode: Final = msgspec.json.Encoder().encode


def told_by(entry: Entry) -> Told:
    """What an entry says that is projected.

    Raises:
        JournalCorrupt: this version can't read it.
    """
    try:
        return _decoder.decode(entry.leaf)
    except ValueError as error:
        raise JournalCorrupt(f"entry {entry.seq} can't be read by this version: {error}", seq=entry.seq) from error


def accounts_of(entries: Iterable[Entry]) -> set[str]:
    """Whose balances must be known before these are projected."""
    return set(chain.from_iterable(entry.accounts for entry in entries))


def names_of(told: Iterable[Told]) -> set[str]:
    """What they name that may be a job: those that are one must be known."""
    return {name for each in told for name in (*_jobs_named(each), *_refs(each), *_lease_job(each))}


def is_about(told: Told, job_id: str) -> bool:
    """Whether an entry is about a job: it names it, moves tokens for it, or closes a record of it."""
    return job_id in _jobs_named(told) or job_id in _refs(told)


def project(entries: Iterable[tuple[Entry, Told]], known: Known = NOTHING) -> Rows:
    """The rows of consecutive entries, each with what it says."""
    rows = Rows()
    standing = dict(known.balances)
    for entry, told in entries:
        for account_id in entry.accounts:
            rows.entries.append(OwnEntry(account_id, told.at_us, entry.seq))
            for n, (line, moved) in enumerate(moves_of(told.transfers, account_id, seq=entry.seq)):
                now = standing[account_id] = after(standing.get(account_id, Balances()), moved)
                place = (account_id, entry.seq, n)
                line = replace(line, left=now.packages) if now.packages else line  # noqa: PLW2901
                rows.lines.append(KeptLine(*place, now.free_uhs, now.held_uhs, now.debt_uhs, _encode(line)))
        for n, record in enumerate(told.records):
            place = (record.account_id, entry.seq, n)
            rows.records.append(
                KeptRecord(*place, record.ended_at_us, record.job_id, record.charged_uhs, _encode(record))
            )
        _count(rows, told, known)
        for job in _changed(told, lambda job_id: rows.jobs.get(job_id) or known.jobs.get(job_id)):
            rows.jobs[job.job_id] = job
        about = _jobs_named(told) | {name: None for name in _refs(told) if name in rows.jobs or name in known.jobs}
        rows.about += [About(name, account_id, entry.seq) for account_id in entry.accounts for name in about]
    return rows


def _count(rows: Rows, told: Told, known: Known) -> None:
    """Calls, by model and the plan of whoever made them."""
    event = told.event
    if event is not None and event.event == "open_account" and event.account_id and _is_accepted(told):
        rows.plans[event.account_id] = event.plan
    for record in told.records:
        if record.model:
            plan = rows.plans.get(record.account_id) or known.plans.get(record.account_id, "")
            before = rows.served.get((record.model, plan)) or known.served.get((record.model, plan), Served())
            rows.served[record.model, plan] = before.with_call(record)


def _is_accepted(told: Told) -> bool:
    return told.outcome is not None and told.outcome.outcome == "accepted"


def _jobs_named(told: Told) -> dict[str, None]:
    """Jobs by their own name."""
    named = {record.job_id: None for record in told.records if record.job_id}
    if told.event is not None and told.event.job_id:
        named[told.event.job_id] = None
    return named


def _refs(told: Told) -> dict[str, None]:
    """What tokens were moved for: a job, or something else."""
    return dict.fromkeys(transfer.ref.rpartition("#")[0] or transfer.ref for transfer in told.transfers)


def _lease_job(told: Told) -> tuple[str, ...]:
    job_id = _job_of(told.event.lease_id) if told.event is not None else ""
    return (job_id,) if job_id else ()


def _job_of(lease_id: str) -> str:
    """Leases are called after their jobs."""
    return lease_id.rpartition(".")[0]


def _number(lease_id: str) -> int:
    """Which of its job's attempts it is, from 1. A late word from an earlier one changes nothing."""
    number = lease_id.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0


def _changed(told: Told, known: Callable[[str], JobHistory | None]) -> Iterator[JobHistory]:
    """Jobs as they stand after an entry, each time that it changes one."""
    event = told.event
    if event is not None and _is_accepted(told):
        job = (
            _submitted(event, told.at_us) if event.event == "submit" else known(event.job_id or _job_of(event.lease_id))
        )
        if job is not None:
            yield _after(job, event, told.at_us)
    for record in told.records:
        if record.job_id and (job := known(record.job_id)) is not None:
            yield replace(
                job,
                tags=record.tags or job.tags,
                charged_uhs=job.charged_uhs + record.charged_uhs,
                refunded_uhs=job.refunded_uhs + record.refunded_uhs,
                ended_at_us=max(job.ended_at_us or 0, record.ended_at_us),
            )


def _submitted(event: _Told, at_us: int) -> JobHistory:
    spec = event.spec or _Spec()
    return JobHistory(
        job_id=event.job_id,
        account_id=event.account_id or "",
        submitted_at_us=at_us,
        name=spec.name,
        kind=spec.kind,
        service=spec.service,
        tags=spec.tags,
        key_id=event.key_id or "",
        limit_uhs=spec.limit_uhs,
    )


def _after(job: JobHistory, event: _Told, at_us: int) -> JobHistory:
    match event.event:
        case "lease_started" if _number(event.lease_id) > job.attempts:
            return replace(job, attempts=_number(event.lease_id), started_at_us=job.started_at_us or at_us)
        case "lease_finished" if _number(event.lease_id) >= job.attempts:
            return replace(job, outcome=event.outcome, error=event.error, exit_code=event.exit_code)
        case "raise_limit":
            return replace(job, limit_uhs=event.limit_uhs or job.limit_uhs)
        case "cancel":
            return replace(job, cancelled_at_us=job.cancelled_at_us or at_us)
    return job
