"""What of a replica anybody on the cluster can read or call: nothing, without its secret. And what a restart of it knows."""

import cloudpickle
import msgspec
import pytest

from fabric.charging.rates import Rate
from fabric.errors import PermissionDenied
from fabric.system.guarded import Admitted
from serving.host import serve_site
from serving.host.serve_site import ServeSite
from serving.replica import actor
from serving.replica.actor import Door, Opened, ReplicaActor
from serving.replica.listener import ReplicaSpec
from serving.replica.lora import Adapter
from tests.cluster.shells import Handle

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


# -- a restart in place ------------------------------------------------------------------------------------------------


class Meters:
    """A listener with its engine, as far as a replica's actor sees them."""

    opened = ()

    def __init__(self, spec):
        self.spec, self.adapters, self.wanted = spec, self, list(spec.adapters)

    @classmethod
    async def open(cls, spec, ledger, *, fetch):
        cls.opened = (*cls.opened, spec)
        return cls(spec)

    def want(self, adapters):
        self.wanted = list(adapters)

    def reprice(self, rate):
        self.spec = msgspec.structs.replace(self.spec, rate=rate)

    async def close(self, *, drain_s):
        return True


LAW, CODE = (Adapter(name=name, source=f"/{name}", version="1", rate=SPEC.rate) for name in ("law", "code"))
DEARER = msgspec.structs.replace(SPEC.rate, version=2, output_uhs_per_mtok=7)


@pytest.fixture
async def made(monkeypatch, tmp_path):
    """Makes the inside of a replica's actor, as Serve does at a start and at each restart: of the same words."""
    monkeypatch.setattr(actor, "Listener", Meters)
    monkeypatch.setattr(Meters, "opened", ())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    spec = msgspec.structs.replace(SPEC, folder=str(tmp_path / "model"), state_dir=str(tmp_path / "state"))
    began = []

    async def make(**other):
        began.append(
            Opened(msgspec.structs.replace(spec, **other), Door(address="localhost:1", api_key=KEY, ca_pem=""))
        )
        await began[-1]._opening
        return began[-1]

    yield make
    for each in began:
        await each.close(0.0)


async def told(inside, *adapters):
    await inside.adapt(msgspec.json.encode(adapters))


async def test_a_replica_that_is_restarted_in_place_has_what_it_was_told_meanwhile(made):
    first = await made()
    assert Meters.opened[0].adapters == ()
    await told(first, LAW)
    await told(first, LAW, CODE)
    await first.reprice(msgspec.json.encode(DEARER))
    await first.end()
    again = await made()
    assert (Meters.opened[1].adapters, Meters.opened[1].rate) == ((LAW, CODE), DEARER)
    await told(again)
    await made()
    assert (Meters.opened[2].adapters, Meters.opened[2].rate) == ((), DEARER)


async def test_a_server_is_handed_to_the_engine_by_its_url_and_a_folder_as_it_was_found(made, tmp_path):
    await made()
    await made(engine="http", folder="http://10.0.0.7:8000")
    assert [each.folder for each in Meters.opened] == [str(tmp_path / "model"), "http://10.0.0.7:8000"]


async def test_a_replica_that_was_stopped_leaves_nothing_of_what_it_was_told(made, tmp_path):
    inside = await made()
    await told(inside, LAW)
    await inside.close(0.0)
    assert not list((tmp_path / "state").glob("*.told"))


@pytest.mark.parametrize("found", [b"", b"{", b'{"rate": 3}', b"\xff"])
async def test_what_cannot_be_read_of_it_is_as_if_nothing_had_been_told(made, tmp_path, found):
    await told(await made(), LAW)
    (file,) = (tmp_path / "state").glob("*.told")
    file.write_bytes(found)
    await made()
    assert Meters.opened[1].adapters == ()


async def test_a_disk_that_is_full_keeps_no_adapter_from_being_loaded(made, tmp_path):
    inside = await made()
    (tmp_path / "state" / "m-1.told.new").mkdir()
    await told(inside, LAW)
    assert inside._listener.wanted == [LAW]
