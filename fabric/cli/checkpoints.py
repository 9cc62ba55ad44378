"""`fabric checkpoints`: what a job has saved, and what can be done with it."""

from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from fabric.cli.output import print_json, print_records, record, say, tell
from fabric.cli.sending import Sending
from fabric.cli.session import AsJson, ForAccount, JobIdArgument, client, job_named
from fabric.client.client import new_request_id
from fabric.units import parse_ct
from fabric.wire import fabric_pb2 as pb


class _ListsByDefault(typer.core.TyperGroup):
    """A job's id where a command is expected: its checkpoints are listed."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        words = ["ls", *args] if args and args[0].startswith("job-") else args
        return super().resolve_command(ctx, words)


app = typer.Typer(
    cls=_ListsByDefault,
    help="What a job has saved: look (`fabric checkpoints JOB`), fetch one, ask for one, go back to one, go on from one.",
    no_args_is_help=True,
)
Step = Annotated[int, typer.Option(help="Which one: see `fabric checkpoints ls`.")]
_COLUMNS = {
    "step": lambda found: str(found.step),
    "bytes": lambda found: f"{found.bytes:,}",
    "attempt": lambda found: str(found.attempt),
    "ranks": lambda found: str(found.world),
    "shards": lambda found: str(found.shards),
    "from": lambda found: found.origin or "the job",
}


@app.command("ls")
def list_(job_id: JobIdArgument, *, account: ForAccount = "", as_json: AsJson = False) -> None:
    """What there is, newest first: the first is what it resumes from."""
    door = client(account)
    request = pb.ListCheckpointsRequest(job_id=job_named(door, job_id))
    found = door.call(request, pb.ListCheckpointsReply).checkpoints
    print_records(found, as_json=as_json, title="checkpoints", columns=_COLUMNS, spare=("shards", "from"))


@app.command()
def get(
    job_id: JobIdArgument,
    step: Annotated[int | None, typer.Argument(help="Which one; the newest if not given.")] = None,
    *,
    to: Annotated[Path, typer.Option(help="A new folder.")],
    force: Annotated[
        bool, typer.Option("--force", help="Write over files of the same names, and what a run has saved there.")
    ] = False,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Fetch a checkpoint to this machine, each byte compared. Called again, it goes on where it was.

    A command's folder is that folder again. The state of a training session goes on by session(directory=DIR), and
    `python -m training.export DIR MODEL` writes its model as safetensors.

    For example: fabric checkpoints get JOB 140 --to run
    """
    from fabric.sdk.checkpoint_files import fetch_checkpoint  # noqa: PLC0415  # stores, which other commands don't need

    door = client(account)
    found = fetch_checkpoint(door, job_named(door, job_id), to, step=step, force=force, told=Sending("fetching"))
    if as_json:
        print_json({"step": found.step, "bytes": found.bytes, "path": str(found.path), "is_folder": found.is_folder})
        return
    say(f"step {found.step} in {found.path}: {found.bytes:,} bytes, each as it was saved")
    if not found.is_folder:
        tell(
            f"a run's folder: session(directory={str(to)!r}) goes on from it, python -m training.export {to} MODEL writes safetensors"
        )


@app.command()
def now(job_id: JobIdArgument, *, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Ask a job that runs for a checkpoint; it goes on."""
    door = client(account)
    job_id = job_named(door, job_id)
    door.call(pb.SaveNowRequest(request_id=new_request_id(), job_id=job_id), pb.Accepted)
    print_json({"job_id": job_id, "accepted": True}) if as_json else say(f"{job_id} will save at its next step")


@app.command()
def rollback(job_id: JobIdArgument, *, step: Step, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Let a paused job resume from an older checkpoint; those after it are void.

    For example: fabric pause JOB; fabric checkpoints rollback JOB --step 140; fabric resume JOB
    """
    door = client(account)
    job_id = job_named(door, job_id)
    request = pb.RollBackRequest(request_id=new_request_id(), job_id=job_id, step=step)
    found = door.call(request, pb.Checkpoint)
    print_json(record(found)) if as_json else say(f"{job_id} resumes from step {found.step}")


@app.command()
def rm(
    job_id: JobIdArgument,
    *,
    keep: Annotated[
        int, typer.Option(min=0, help="How many of the newest ones stay; 0 only if the job has ended.")
    ] = 1,
    everything: Annotated[
        bool, typer.Option("--all", help="Its logs, its result and what it published, too, if the job has ended.")
    ] = False,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Delete what a job that is parked, or has ended, doesn't need any more: it counts against what the account may keep.

    For example: fabric checkpoints rm JOB --keep 0
    """
    door = client(account)
    job_id = job_named(door, job_id)
    request = pb.DeleteCheckpointsRequest(
        request_id=new_request_id(), job_id=job_id, keep=0 if everything else keep, everything=everything
    )
    found = door.call(request, pb.DeleteCheckpointsReply)
    said = f"{found.deleted_bytes:,} bytes deleted, {found.left} checkpoints left"
    print_json({"job_id": job_id, **record(found)}) if as_json else say(said)


@app.command()
def fork(
    job_id: JobIdArgument,
    *,
    step: Annotated[int | None, typer.Option(help="Which one; the newest if not given.")] = None,
    tokens: Annotated[
        str, typer.Option("--tokens", "-t", help="The most the new job may burn; as before if not given.")
    ] = "",
    name: Annotated[str, typer.Option(help="What people see.")] = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """A new job of the same code that begins where this one was, whether that has ended or not."""
    door = client(account)
    request = pb.ForkRequest(
        request_id=new_request_id(),
        job_id=job_named(door, job_id),
        step=step,
        limit_uhs=parse_ct(tokens) if tokens else 0,
        name=name,
    )
    made = door.call(request, pb.SubmitReply)
    print_json({"job_id": made.job_id}) if as_json else say(made.job_id)
