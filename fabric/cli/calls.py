"""Calls of language models for people: a thousand small charges as a line for each model, or one by one."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.json_format import ParseDict

from fabric.cli.llm_packages import added, paid_for, totals_of
from fabric.cli.output import console, moment, print_records, table, tell
from fabric.client.client import Client
from fabric.units import CT_DECIMALS, format_ct
from fabric.wire import fabric_pb2 as pb

_JOBS_MAX: Final = 1_000
GATEWAY: Final = "gateway:"
"""How the holds that gateways keep for an account are called."""


def booked_uhs(record: pb.Cdr) -> int:
    """What counts of a record: of a time that was asked for what was booked in it."""
    return record.booked_uhs if record.HasField("booked_uhs") else record.charged_uhs


def print_totals(calls: Sequence[pb.Cdr]) -> None:
    """A line for each model and type of accelerator."""
    groups: dict[tuple[str, str], list[pb.Cdr]] = {}
    for call in calls:
        groups.setdefault((call.model, call.accelerator), []).append(call)
    rows = [
        (
            model,
            accelerator,
            str(len(group)),
            *(str(sum(getattr(call, kind) for call in group)) for kind in _KINDS),
            totals_of(group),
            format_ct(sum(map(booked_uhs, group)), decimals=CT_DECIMALS),
        )
        for (model, accelerator), group in sorted(groups.items())
    ]
    columns = ("model", "on", "calls", "prompt", "cached", "completion", "packages", "charged CT")
    console().print(table("calls", columns, rows, spare=("cached", "packages")))


def print_calls(calls: Sequence[pb.Cdr]) -> None:
    """Every one."""
    print_records(
        calls, as_json=False, title="calls", columns=_CALL_COLUMNS, spare=("reasoning", "key", "on", "packages")
    )


def calls_in(records: list[dict[str, Any]]) -> list[pb.Cdr]:
    """The calls among a statement's records, as the wire has them."""
    return [ParseDict(each, pb.Cdr(), ignore_unknown_fields=True) for each in records if each.get("model")]


def gathered_by_model(lines: list[dict[str, Any]], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A statement's lines, with all that gateways held, took and gave back as one line for each model, where its last is."""
    models = {each["lease_id"]: each["model"] for each in records if each.get("model")}
    counts = Counter(each["model"] for each in records if each.get("model"))
    gathered: dict[object, dict[str, Any]] = {}
    for at, line in enumerate(lines):
        model = models.get(line["ref"], "")
        if not line["ref"].startswith(GATEWAY):
            gathered[at] = line
            continue
        before = gathered.pop(("calls", model), {"amount_uhs": 0, "held_uhs": 0})
        sums = {name: before[name] + line[name] for name in ("amount_uhs", "held_uhs")}
        moved = added(before.get("packages", {}), line.get("packages", {}))
        what = {"kind": "calls" if model else "held for calls", "ref": model or "not used", "count": counts[model] or 1}
        gathered["calls", model] = {**line, **what, **sums, "packages": moved}
    return list(gathered.values())


_KINDS: Final = ("prompt_tokens", "cached_tokens", "completion_tokens")
_CALL_COLUMNS: Final[dict[str, Any]] = {
    "time": lambda cdr: moment(cdr.ended_at_us),
    "call": lambda cdr: cdr.cdr_id,
    "model": lambda cdr: cdr.model,
    "on": lambda cdr: cdr.accelerator,
    "key": lambda cdr: cdr.key_id or "–",
    "prompt": lambda cdr: str(cdr.prompt_tokens),
    "cached": lambda cdr: str(cdr.cached_tokens),
    "completion": lambda cdr: str(cdr.completion_tokens),
    "reasoning": lambda cdr: str(cdr.reasoning_tokens),
    "packages": paid_for,
    "charged CT": lambda cdr: "covered" if cdr.covered else format_ct(booked_uhs(cdr), decimals=CT_DECIMALS),
    "ended": lambda cdr: cdr.ended,
}


def say_what_is_open(door: Client, job_id: str) -> None:
    """A record is made when its lease is cleared away, a moment after its job has ended; charges come before it."""
    jobs = door.call(pb.ListJobsRequest(limit=_JOBS_MAX), pb.ListJobsReply).jobs
    still = [each for each in jobs if each.HasField("lease_id") and each.HasField("started_at_us")]
    if found := [each.job_id for each in still if job_id in ("", each.job_id)]:
        tell(f"charged already, and recorded here when they have left their devices: {', '.join(found)}")
