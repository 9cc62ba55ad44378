"""What commands share: the options they all have, and the connection."""

from typing import Annotated, Final

import typer

from fabric.cli.output import tell
from fabric.client.client import Client
from fabric.client.profile import Profile, load_profile
from fabric.errors import FabricError, InvalidRequest, NotFound
from fabric.wire import fabric_pb2 as pb

AsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON.")]
ForAccount = Annotated[str, typer.Option("--account", "-a", help="Operators: the customer to act for.")]
JobIdArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or its beginning.")]
_ID_CHARS: Final = len("job-") + 20
_BEGINNING_CHARS: Final = len("job-") + 4
_LOOKED_AT: Final = 20
_SHOWN: Final = 5


def client(account: str = "") -> Client:
    """The bare client, for calls the SDK has no name for."""
    return Client(load_profile(Profile(account=account)), paced=True)


def tell_away(error: FabricError) -> None:
    """Said once where a job is followed, and the fabric does not answer for a while."""
    tell(f"waiting for the fabric: {error.message} (Ctrl-C ends this; the job goes on)")


def job_named(door: Client, given: str) -> str:
    """The whole id of the job whose id begins so; what can't be completed comes back as it is.

    Raises:
        InvalidRequest: several begin so, or it is too short to mean one (`ambiguous_job`).
        NotFound: it is no id, such as a job's name.
    """
    if not given or (given.startswith("job-") and len(given) >= _ID_CHARS):
        return given
    if not given.startswith("job-"):
        named = door.call(pb.ListJobsRequest(name=given.rstrip("*"), limit=_LOOKED_AT), pb.ListJobsReply).jobs
        raise _no_id(given, [job.job_id for job in named] if given.rstrip("*") else [])
    found = [
        job.job_id for job in door.call(pb.ListJobsRequest(beginning=given, limit=_LOOKED_AT), pb.ListJobsReply).jobs
    ]
    if len(found) > 1 or (found and len(given) < _BEGINNING_CHARS):
        raise InvalidRequest(
            f"{given} is the beginning of {_several(len(found))}, {_such_as(found)}: give more of it",
            code="ambiguous_job",
        )
    return found[0] if found else given


def _no_id(given: str, found: list[str]) -> NotFound:
    named = f". {_several(len(found))} of that name: {_such_as(found)}" if found else ""
    return NotFound(
        f"there is no job {given!r}: give a job's id, job-…, or its beginning, as `fabric jobs` shows it{named}",
        job=given,
    )


def _several(count: int) -> str:
    if count >= _LOOKED_AT:
        return f"more than {_LOOKED_AT - 1} jobs"
    return "1 job" if count == 1 else f"{count} jobs"


def _such_as(found: list[str]) -> str:
    return ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
