"""What of a replica anybody on the cluster can read or call: nothing, without its secret."""

import cloudpickle
import pytest

from fabric.adapters.guarded import Admitted
from fabric.charging.rates import Rate
from fabric.errors import PermissionDenied
from serving import serve_site
from serving.listener import ReplicaSpec
from serving.replica import Door, ReplicaActor
from serving.serve_site import ServeSite
from tests.adapters.shells import Handle

KEY, TRUST, PASSWORD = "fk_replica_key", "gateways-trust", "bucket-password"
SPEC = ReplicaSpec(
    replica_id="m-1",
    model="m",
    folder="/nowhere",
    accelerator="H100",
    rate=Rate(input_uhs_per_mtok=1, cached_uhs_per_mtok=1, output_uhs_per_mtok=1, reasoning_uhs_per_mtok=1),
    state_dir="/nowhere",
    trust=TRUST,
)
OPTIONS = {"num_cpus": 0, "runtime_env": {"env_vars": {}}}


class Answer:
    def result(self, timeout_s):
        return b""


class Site:
    """Takes what Serve is given."""

    def run(self, app, **_):
        self.deployment = app._bound_deployment
        return self

    @property
    def call(self):
        return self

    def remote(self, secret, *_):
        self.secret = secret
        return Answer()


class Shell(ReplicaActor.func_or_class):
    """As Serve runs it; Serve awaits its end, Python doesn't."""

    def __del__(self):
        pass


@pytest.fixture
def kept(monkeypatch):
    """What Serve keeps of a replica."""
    site = Site()
    monkeypatch.setattr(serve_site.serve, "run", site.run)
    door = Door(address="d:1", api_key=KEY, ca_pem="")
    opened = ServeSite(door, ray_address="r", archive={"secret": PASSWORD})
    opened._joined = True
    opened.start(SPEC, OPTIONS, env={})
    return site


def test_what_serve_keeps_of_a_replica_tells_none_of_its_secrets(kept):
    told = cloudpickle.dumps(kept.deployment)
    for secret in (KEY, TRUST, PASSWORD):
        assert secret.encode() not in told
    assert kept.secret not in told


@pytest.mark.parametrize("method", ["open", "look", "reprice", "close"])
async def test_a_replica_does_nothing_for_who_does_not_know_its_secret(kept, method):
    shell = Shell(*kept.deployment.init_args)
    with pytest.raises(PermissionDenied, match="API key"):
        await Admitted(Handle(shell), b"x" * 32).send(method)
    assert not hasattr(shell, method)
    await shell.check_health()
