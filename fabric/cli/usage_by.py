"""`fabric usage --by …`: what was charged for each key, project, member, model, job, or value of a tag; and a project's statement."""

from collections.abc import Sequence
from typing import Any, Final

from fabric.cli.calls import booked_uhs
from fabric.cli.output import console, moment, print_facts, print_json, record, table
from fabric.client.client import Client
from fabric.errors import InvalidRequest
from fabric.units import CT_DECIMALS, format_ct
from fabric.wire import fabric_pb2 as pb

TAG: Final = "tag:"
_PLAIN: Final = ("key", "model", "job", "project", "member")
NONE: Final = "–"
"""What stands for those without."""


def print_by(door: Client, records: Sequence[pb.Cdr], by: str, *, as_json: bool) -> None:
    """A line for each, dearest first. Records say whose they are; a job's count for the key that it was submitted with.

    Raises:
        InvalidRequest: nothing can be summed by that.
    """
    if by not in _PLAIN and not (by.startswith(TAG) and len(by) > len(TAG)):
        raise InvalidRequest(f"--by {by[:40]!r}: choose of {', '.join(_PLAIN)} or tag:NAME", code="invalid_by")
    sums: dict[str, list[int]] = {}
    jobs = _jobs_of(door, records, by) if by == "key" or by.startswith(TAG) else {}
    for one in records:
        found = sums.setdefault(_value(one, jobs.get(one.job_id), by), [0, 0])
        found[0] += 1
        found[1] += booked_uhs(one)
    rows = sorted(sums.items(), key=lambda each: (-each[1][1], each[0]))
    if as_json:
        print_json([{by: name, "records": count, "charged_uhs": str(uhs)} for name, (count, uhs) in rows])
        return
    lines = [(name, str(count), format_ct(uhs, decimals=CT_DECIMALS)) for name, (count, uhs) in rows]
    console().print(table(f"usage by {by}", (by, "records", "charged CT"), lines))


def print_project(door: Client, project: str, *, from_us: int, until_us: int | None, as_json: bool) -> None:
    """What a project used in a time: its part of its wallet's statement of that time, to the µHs. What several projects of a
    wallet have in common, such as purchases, holds and balances, stands in the wallet's own.
    """
    request = pb.UsageRequest(project=project, from_us=from_us or 1)
    if until_us is not None:
        request.until_us = until_us
    records = door.collect(request, pb.Cdr)
    charged_uhs = sum(map(booked_uhs, records))
    if as_json:
        said: dict[str, Any] = {"project": project, "from_us": str(from_us), "charged_uhs": str(charged_uhs)}
        print_json(said | {"records": [record(one) for one in records]})
        return
    groups: dict[tuple[str, str], list[int]] = {}
    for one in records:
        found = groups.setdefault(
            ("job", one.job_id) if one.job_id else ("calls", one.model or one.lease_id), [0, 0, 0]
        )
        found[0], found[1], found[2] = max(found[0], one.ended_at_us), found[1] + 1, found[2] + booked_uhs(one)
    rows = [
        (moment(at_us), *name, str(count), format_ct(uhs, decimals=CT_DECIMALS))
        for name, (at_us, count, uhs) in sorted(groups.items(), key=lambda each: each[1][0])
    ]
    console().print(table(f"project {project}", ("until", "what", "about", "records", "charged CT"), rows))
    print_facts({"charged": f"{format_ct(charged_uhs, decimals=CT_DECIMALS)} CT"}, title="in all")


def _jobs_of(door: Client, records: Sequence[pb.Cdr], by: str) -> dict[str, pb.Job]:
    """Of those whose records don't say it themselves."""
    named = {record.job_id for record in records if record.job_id and (not by.startswith(TAG) or not record.tags)}
    found, _ = door.jobs(pb.ListJobsRequest(), most=None) if named else ([], "")
    return {job.job_id: job for job in found if job.job_id in named}


def _value(record: pb.Cdr, job: pb.Job | None, by: str) -> str:
    if by == "project":
        return record.project or record.account_id
    if by == "member":
        return record.member or NONE
    if by == "model":
        return record.model or NONE
    if by == "job":
        return record.job_id or NONE
    if by == "key":
        return record.key_id or (job.key_id if job is not None else "") or NONE
    begin = f"{by.removeprefix(TAG)}="
    tags = record.tags or (job.tags if job is not None else ())
    return next((tag.removeprefix(begin) for tag in tags if tag.startswith(begin)), NONE)
