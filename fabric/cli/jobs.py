"""Commands about jobs."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from fabric.cli import submission, top
from fabric.cli.files import drafted
from fabric.cli.job_columns import (
    JOB_COLUMNS,
    idle,
    per_second,
    progress,
    ran,
    saved,
    timers,
    utilisation,
    where,
    why,
)
from fabric.cli.log_lines import LogLines
from fabric.cli.moments import Since, Until, parse_moment
from fabric.cli.output import (
    duration,
    optional,
    print_facts,
    print_json,
    print_records,
    record,
    say,
    say_lines,
    tell,
    time_of,
)
from fabric.cli.session import AsJson, ForAccount, JobIdArgument, client, job_named, tell_away
from fabric.client.client import new_request_id
from fabric.errors import InvalidRequest, PermissionDenied
from fabric.log_text import LogText
from fabric.units import format_ct, parse_ct
from fabric.wire import fabric_pb2 as pb


def register(app: typer.Typer) -> None:
    for name, command in (
        ("quote", submission.quote),
        ("submit", submission.submit),
        ("run", submission.run),
        ("jobs", jobs),
        ("job", job),
        ("why", why_it_waits),
        ("logs", logs),
        ("result", result),
        ("artifact", artifact),
        ("cancel", cancel),
        ("pause", pause),
        ("resume", resume),
        ("raise-limit", raise_limit),
        ("top", top.top),
    ):
        app.command(name, rich_help_panel="Jobs")(command)


def jobs(
    *,
    state: Annotated[list[str] | None, typer.Option(help="Only these; repeat for more.")] = None,
    name: Annotated[str, typer.Option(help="Only those of this name, or 'train*' for what begins so.")] = "",
    tag: Annotated[
        list[str] | None, typer.Option(help="Only those with this tag; repeat for those that have all.")
    ] = None,
    since: Since = "",
    until: Until = "",
    request_id: Annotated[str, typer.Option(help="Only the one that was submitted with it.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 50,
    every: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    after: Annotated[str, typer.Option(metavar="JOB", help="The page that begins after this job.")] = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first.

    For example: fabric jobs --state running --state parked --name 'train*' --tag exp7 --since 7d
    """
    door = client(account)
    wanted = pb.ListJobsRequest(
        states=state or [],
        name=name,
        tags=tag or [],
        from_us=parse_moment(since) or 0,
        until_us=parse_moment(until),
        after=job_named(door, after),
        of_request=request_id,
    )
    found, following = door.jobs(wanted, most=None if every else limit)
    print_records(found, as_json=as_json, title="jobs", columns=JOB_COLUMNS, spare=("submitted", "limit CT", "why"))
    if following:
        tell(f"there are more: fabric jobs --after {following} shows the next {limit}, --all shows all")


def why_it_waits(job_id: JobIdArgument, *, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Say why a job is where it is: what it waits for, where it stands, what would let it start, what was evicted for whom."""
    door = client(account)
    found = door.call(pb.WhyRequest(job_id=job_named(door, job_id)), pb.WhyReply)
    if as_json:
        print_json({"sentence": found.sentence, **json.loads(found.facts_json)})
    else:
        say(found.sentence)


def job(job_id: JobIdArgument, *, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Everything about one job."""
    door = client(account)
    found = door.call(pb.GetJobRequest(job_id=job_named(door, job_id)), pb.Job)
    if as_json:
        print_json(record(found))
        return
    facts = {
        "job": found.job_id,
        "name": found.name,
        "tags": " ".join(found.tags) or "–",
        "state": found.state + (f": {said}" if (said := why(found)) else ""),
        "on": where(found),
        "burned": f"{format_ct(found.burned_uhs, decimals=8)} of {format_ct(found.limit_uhs)} CT",
        "held": f"{format_ct(found.held_uhs)} CT",
        "burns": f"{per_second(found.burn_uhs_per_s)} CT/s, {utilisation(found)} utilised",
        "runway": duration(optional(found, "runway_us")),
        "idle": idle(found) or "–",
        "nodes": ", ".join(found.nodes) or "–",
        "attempts": str(found.attempts),
        "so far": found.timeline,
        "progress": progress(found),
        "time goes into": timers(found) or "–",
        **({"warning": found.warning} if found.warning else {}),
        "last saved": saved(found),
        "submitted": time_of(found.submitted_at_us),
        "started": time_of(optional(found, "started_at_us")),
        "ended": time_of(optional(found, "ended_at_us")),
        "ran": ran(found) or "–",
        "exit code": str(found.exit_code) if found.HasField("exit_code") else "–",
        "settled": "yes" if found.settled else "not yet",
        "error": found.error or "–",
    }
    print_facts(facts)


def logs(
    job_id: JobIdArgument,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Control characters as they are, of another key's job too; not for operators.")
    ] = False,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """What a job has written, in all its attempts; the lines of a gang say which rank wrote them.

    Control characters of a job that was submitted with this key do what they do; others' are written out.
    With --json, an object a line for each piece as it comes: attempt, rank, offset and text.
    For example: fabric logs job-9829cded --follow
    """
    door = client(account)
    job_id = job_named(door, job_id)
    pieces = door.logs(job_id, follow=follow, on_away=tell_away if follow else None)
    if as_json:
        _print_pieces(pieces)
        return
    from fabric.cli import sdk_jobs  # noqa: PLC0415  # it takes a while to import

    found = door.call(pb.GetJobRequest(job_id=job_id), pb.Job)
    lines = LogLines(headed=sys.stdout.isatty(), raw=sdk_jobs.is_own(found, door.profile, trust=raw))
    for chunk in pieces:
        sys.stdout.writelines(lines.take(attempt=chunk.attempt, rank=chunk.rank, data=chunk.data))
        sys.stdout.flush()
    sys.stdout.writelines(lines.rest())


def _print_pieces(pieces: Iterable[pb.LogChunk]) -> None:
    """An object a line. A character that comes in two pieces is told with its last byte."""
    texts = LogText()
    for piece in pieces:
        text = texts.take(attempt=piece.attempt, rank=piece.rank, data=piece.data)
        print_json(record(piece) | {"data": text}, indent=None)
    for attempt, rank, text in texts.rest():
        print_json({"rank": rank, "attempt": attempt, "offset": None, "data": text}, indent=None)


def result(
    job_id: JobIdArgument,
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it there as the job packed it.")] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Open what another key's job pickled: it runs its code.")
    ] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait for the job.")] = None,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Wait for a job and show what it returned.

    Plain values, arrays and tensors are data. Anything else is a pickle, which runs code where it is opened: that is done
    with the key that submitted the job, or with --trust; otherwise, and for an operator, it is told what it is.
    For example: fabric result job-9829cded --timeout 60
    """
    from fabric.cli import sdk_jobs  # noqa: PLC0415

    with sdk_jobs.connected(account) as fabric:
        job_id = job_named(fabric.client, job_id)
        waited = fabric.job(job_id)
        if output is not None:
            waited.wait(timeout)
            with drafted(output) as out:
                fabric.client.fetch_into(pb.ResultRequest(job_id=job_id), out)
            print_json({"job_id": job_id, "file": str(output)}) if as_json else say(str(output))
            return
        try:
            text = sdk_jobs.shown(waited.result(timeout, trust=trust), most=None)
        except TimeoutError as error:
            raise InvalidRequest(f"{error}: give it more --timeout", code="timeout") from None
        except PermissionDenied as error:
            if error.code != "result_not_opened":
                raise
            if as_json:
                print_json({"job_id": job_id, "opened": False, **error.facts})
                return
            say(error.message)
            print_facts(
                {"type": str(error.facts["type"]), "bytes": str(error.facts["bytes"]), "text": str(error.facts["text"])}
            )
            return
        print_json({"job_id": job_id, "result": text}) if as_json else say_lines(text)


def artifact(
    job_id: JobIdArgument,
    *,
    name: Annotated[str, typer.Option(help="Under which it was published.")] = "model",
    to: Annotated[
        Path | None, typer.Option(help="A file, or a folder to unpack a model into; by default NAME.tar.")
    ] = None,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Fetch what a job published, such as the model that it trained.

    For example: fabric artifact job-1f2e --to my-model/
    """
    from fabric.parcels import unpacked  # noqa: PLC0415  # only needed here

    door, place = client(account), to or Path(f"{name}.tar")
    wanted = pb.ArtifactRequest(job_id=job_named(door, job_id), name=name)
    if place.suffix:
        with drafted(place) as out:
            door.fetch_into(wanted, out)
    else:
        unpacked(door.fetch(wanted), place)
    print_json({"job_id": wanted.job_id, "name": name, "path": str(place)}) if as_json else say(str(place))


def cancel(
    job_id: JobIdArgument,
    *,
    save: Annotated[bool, typer.Option("--save", help="Let it write a checkpoint first.")] = False,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """End a job; what it burned is charged."""
    door = client(account)
    job_id = job_named(door, job_id)
    door.call(pb.CancelRequest(request_id=new_request_id(), job_id=job_id, save=save), pb.Accepted)
    _done(job_id, "will end", as_json=as_json)


def pause(job_id: JobIdArgument, *, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Ask a job to checkpoint, and park it."""
    door = client(account)
    job_id = job_named(door, job_id)
    door.call(pb.PauseRequest(request_id=new_request_id(), job_id=job_id), pb.Accepted)
    _done(job_id, "will be parked", as_json=as_json)


def resume(job_id: JobIdArgument, *, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Let a parked job go on."""
    door = client(account)
    job_id = job_named(door, job_id)
    door.call(pb.ResumeRequest(request_id=new_request_id(), job_id=job_id), pb.Accepted)
    _done(job_id, "will go on", as_json=as_json)


def raise_limit(
    job_id: JobIdArgument,
    tokens: Annotated[str, typer.Argument(help="The most it may burn altogether.")],
    *,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Give a job a new limit; one that was parked at its limit goes on.

    For example, up to 3 tokens, what it has burned already included: fabric raise-limit job-9829cded 3
    """
    limit_uhs = parse_ct(tokens)
    door = client(account)
    job_id = job_named(door, job_id)
    request = pb.RaiseLimitRequest(request_id=new_request_id(), job_id=job_id, limit_uhs=limit_uhs)
    door.call(request, pb.Accepted)
    _done(job_id, f"may now burn {tokens} CT", as_json=as_json)


def _done(job_id: str, what: str, *, as_json: bool) -> None:
    print_json({"job_id": job_id, "accepted": True}) if as_json else say(f"{job_id} {what}")
