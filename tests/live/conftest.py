"""A whole fabric, as `fabric up --local` starts it, for the tests of this folder: one for all of them."""

from contextlib import contextmanager
from pathlib import Path

import pytest

from fabric import daemon
from fabric.client.client import new_request_id
from fabric.sdk import Fabric, connect
from fabric.wire import fabric_pb2 as pb
from tests.shared import shared

HERE = Path(__file__).parent
SECRET = "never-for-a-job"
FOR_OTHERS = ("FABRIC_API_KEY", "FABRIC_PG_DSN", "AWS_SECRET_ACCESS_KEY", "STRIPE_TOKEN")
"""What whoever starts the fabric has in their environment."""


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="module")
def running(request, tmp_path_factory):
    """A fabric that is up: one for this folder."""
    return shared.of(request, HERE, "fabric", lambda: up(tmp_path_factory.mktemp("house")))


@contextmanager
def up(place):
    """It was started by somebody who has secrets, in a folder that others could read."""
    place.chmod(0o755)
    with pytest.MonkeyPatch.context() as operators:
        for name in FOR_OTHERS:
            operators.setenv(name, SECRET)
        found = daemon.up(state_dir=place, any_port=True)
    try:
        yield found
    finally:
        daemon.down(place, now=True)


def act_for(found: daemon.Running, account: str) -> Fabric:
    """A connection that acts for a customer, as the operator may."""
    return connect(found.address, daemon.operator_key(Path(found.state_dir)), found.ca, account=account)


@pytest.fixture
def acme(running, request):
    """A new customer with ten tokens."""
    account = f"acme-{new_request_id()[:8]}"
    with act_for(running, account) as fabric:
        fabric.client.call(
            pb.OpenAccountRequest(request_id=new_request_id(), account_id=account, name="Acme", plan="starter"),
            pb.Accepted,
        )
        fabric.top_up("10")
        yield fabric
