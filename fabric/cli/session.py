"""What commands share: the options they all have, and the connection."""

from typing import Annotated, Final

import typer

from fabric.client import Client
from fabric.errors import InvalidRequest
from fabric.profile import Profile, load_profile
from fabric.sdk import Fabric
from fabric.wire import fabric_pb2 as pb

AsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON.")]
ForAccount = Annotated[str, typer.Option("--account", "-a", help="Operators: the customer to act for.")]
JobIdArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or its beginning.")]
_ID_CHARS: Final = len("job-") + 20
_BEGINNING_CHARS: Final = len("job-") + 4
_LOOKED_AT: Final = 1_000


def connected(account: str = "") -> Fabric:
    """A connection from the environment and the profile."""
    return Fabric(client(account))


def client(account: str = "") -> Client:
    """The bare client, for calls the SDK has no name for."""
    return Client(load_profile(Profile(account=account)))


def job_named(door: Client, given: str) -> str:
    """The whole id of the job whose id begins so, among the newest; what can't be completed comes back as it is.

    Raises:
        InvalidRequest: several begin so.
    """
    if not given.startswith("job-") or not _BEGINNING_CHARS <= len(given) < _ID_CHARS:
        return given
    jobs = door.call(pb.ListJobsRequest(limit=_LOOKED_AT), pb.ListJobsReply).jobs
    found = [job.job_id for job in jobs if job.job_id.startswith(given)]
    if len(found) > 1:
        raise InvalidRequest(f"{given} is the beginning of {len(found)} jobs: give more of it", code="ambiguous_job")
    return found[0] if found else given
