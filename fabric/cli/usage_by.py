"""`fabric usage --by …`: what was charged for each key, project, member, model, job, or value of a tag."""

from collections.abc import Mapping, Sequence
from typing import Final

from fabric.cli.calls import booked_uhs
from fabric.cli.output import console, print_json, table
from fabric.client.client import Client
from fabric.errors import InvalidRequest
from fabric.units import CT_DECIMALS, format_ct
from fabric.wire import fabric_pb2 as pb

TAG: Final = "tag:"
_WHOSE: Final = ("project", "member")
_PLAIN: Final = ("key", "model", "job", *_WHOSE)
NONE: Final = "–"
"""What stands for those without."""


def print_by(door: Client, records: Sequence[pb.Cdr], by: str, *, as_json: bool) -> None:
    """A line for each, dearest first. A job's records count for the key and the tags that it was submitted with.

    Raises:
        InvalidRequest: nothing can be summed by that.
    """
    if by not in _PLAIN and not (by.startswith(TAG) and len(by) > len(TAG)):
        raise InvalidRequest(f"--by {by[:40]!r}: choose of {', '.join(_PLAIN)} or tag:NAME", code="invalid_by")
    sums: dict[str, list[int]] = {}
    jobs = _jobs_of(door, records, by) if by in ("key", *_WHOSE) or by.startswith(TAG) else {}
    keys = {key.key_id: key for key in door.call(pb.ListKeysRequest(), pb.ListKeysReply).keys} if by in _WHOSE else {}
    for record in records:
        job = jobs.get(record.job_id)
        value = _whose(record, job, keys, by) if by in _WHOSE else _value(record, job, by)
        found = sums.setdefault(value, [0, 0])
        found[0] += 1
        found[1] += booked_uhs(record)
    rows = sorted(sums.items(), key=lambda each: (-each[1][1], each[0]))
    if as_json:
        print_json([{by: name, "records": count, "charged_uhs": str(uhs)} for name, (count, uhs) in rows])
        return
    lines = [(name, str(count), format_ct(uhs, decimals=CT_DECIMALS)) for name, (count, uhs) in rows]
    console().print(table(f"usage by {by}", (by, "records", "charged CT"), lines))


def _jobs_of(door: Client, records: Sequence[pb.Cdr], by: str) -> dict[str, pb.Job]:
    """Of those whose records don't say it themselves."""
    named = {record.job_id for record in records if record.job_id and (not by.startswith(TAG) or not record.tags)}
    found, _ = door.jobs(pb.ListJobsRequest(), most=None) if named else ([], "")
    return {job.job_id: job for job in found if job.job_id in named}


def _whose(record: pb.Cdr, job: pb.Job | None, keys: Mapping[str, pb.Key], by: str) -> str:
    """The project or member of the key that a job was submitted, or a call came, with."""
    known = job if job is not None else keys.get(record.key_id)
    if by == "member":
        return (known.member if known is not None else "") or NONE
    return known.project if known is not None else record.account_id


def _value(record: pb.Cdr, job: pb.Job | None, by: str) -> str:
    if by == "model":
        return record.model or NONE
    if by == "job":
        return record.job_id or NONE
    if by == "key":
        return record.key_id or (job.key_id if job is not None else "") or NONE
    begin = f"{by.removeprefix(TAG)}="
    tags = record.tags or (job.tags if job is not None else ())
    return next((tag.removeprefix(begin) for tag in tags if tag.startswith(begin)), NONE)
