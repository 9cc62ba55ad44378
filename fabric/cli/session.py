"""What commands share: the options they all have, and the connection."""

from typing import Annotated

import typer

from fabric.client import Client
from fabric.profile import Profile, load_profile
from fabric.sdk import Fabric

AsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON.")]
ForAccount = Annotated[str, typer.Option("--account", "-a", help="Operators: the customer to act for.")]
JobIdArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


def connected(account: str = "") -> Fabric:
    """A connection from the environment and the profile."""
    return Fabric(client(account))


def client(account: str = "") -> Client:
    """The bare client, for calls the SDK has no name for."""
    return Client(load_profile(Profile(account=account)))
