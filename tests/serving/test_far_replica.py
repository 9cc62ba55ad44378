"""A replica on another machine than the gateways: its own certificate, its fingerprint on the board, and nobody in between.

The engine is a stand-in, the machine is this one by its address on the network; listener, fingerprint, board, door, gateway
and the connection are the real ones.
"""

import asyncio
import contextlib
import ssl

import aiohttp
import pytest

from fabric.charging.rates import charge_uhs
from fabric.errors import Unavailable
from fabric.wire import fabric_pb2 as pb
from serving.fabric_client import FabricClient
from serving.gateway.app import Gateway, Limits
from serving.gateway.fabric_directory import FabricDirectory
from serving.host.board import DoorBoard
from serving.host.pool import Offer, Replica
from serving.metering.book import Metering
from serving.metering.call_log import CallLog
from serving.metering.meter import Meter
from serving.replica import actor as replicas
from serving.replica.listener import Listener, ReplicaSpec
from serving.replica.standing import Standing
from tests.serving.engine_standin import TRUST, EngineStandin
from tests.serving.gateway.house import CHAT, RATE, served
from tests.serving.gateway.test_fabric_directory import doors

__all__ = ["doors"]


class RunningStandIn:
    """A stand-in where the listener expects an engine."""

    def __init__(self):
        self.app = EngineStandin()

    async def close(self):
        return True


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.setattr(replicas.ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    return ReplicaSpec(
        replica_id="far", model="tiny", folder="/m", accelerator="H100", rate=RATE, state_dir=str(tmp_path), trust=TRUST
    )


@contextlib.asynccontextmanager
async def listening(spec, tmp_path):
    book = Metering(name="s", model="tiny", accelerator="H100", charge=lambda usage: charge_uhs(RATE, usage))
    listener = Listener(spec, RunningStandIn(), Meter(book, CallLog(tmp_path / "o"), None))
    await listener._listen()
    try:
        yield listener
    finally:
        listener.meter.outbox.close()
        await listener.close(drain_s=0)


def test_beside_its_gateways_a_replica_listens_on_loopback_and_elsewhere_with_tls(spec):
    assert replicas._reachable(spec, "127.0.0.2") == spec
    assert replicas._reachable(spec, "") == spec
    far = replicas._reachable(spec, "10.9.9.9")
    assert (far.host, far.tls is not None) == ("127.0.0.2", True)


async def test_a_gateway_asks_a_replica_on_another_machine_over_its_own_certificate_alone(doors, spec, tmp_path):
    far = replicas._reachable(spec, "10.9.9.9")
    ledger = FabricClient(doors.profile(doors.root))
    async with listening(far, tmp_path) as listener:
        assert listener.address.startswith("https://127.0.0.2:")
        pinned = Standing(address=listener.address, tls_sha256=replicas._fingerprint(far.tls), capacity=4)
        shown = Replica("far", Offer(name="tiny", source="/m"), "v", state="ready", accelerator="H100", standing=pinned)
        board = DoorBoard(ledger, reporter="host")
        gateway = Gateway(
            FabricDirectory(ledger, name="g", endpoint="http://x/v1"), trust=TRUST,
            repeats_file=tmp_path / "repeats", limits=Limits(wait_s=5),
        )  # fmt: skip
        async with gateway.running(), served(gateway) as url, aiohttp.ClientSession() as http:
            headers = {"authorization": f"Bearer {doors.acme}"}

            async def ask():
                await board.say([shown], [])
                async with http.post(url + "/v1/chat/completions", json=CHAT, headers=headers) as answer:
                    return answer.status, await answer.json()

            async with asyncio.timeout(30):
                while not gateway.pools.of("tiny", "acme")[0].replicas:
                    await board.say([shown], [])
                    await asyncio.sleep(0.05)
            assert (await ask())[0] == 200
            # Somebody in between, with any other certificate: not a byte of the request, and not the secret.
            shown.standing = Standing(address=listener.address, tls_sha256="ab" * 32, capacity=4)
            async with asyncio.timeout(30):
                while next(iter(gateway.pools.of("tiny", "acme")[0].replicas)).tls_sha256 != "ab" * 32:
                    await board.say([shown], [])
                    await asyncio.sleep(0.05)
            before = len(listener.engine.app.requests)
            status, said = await ask()
            assert (status, said["error"]["code"]) in {(503, "no_room"), (503, "replicas_unreachable")}
            assert len(listener.engine.app.requests) == before
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            async with (
                aiohttp.ClientSession() as stranger,
                stranger.get(listener.address, ssl=ssl.create_default_context()),
            ):
                pass
    await ledger.close()


async def test_a_replica_that_only_starts_is_no_unsafe_one(doors, capsys):
    ledger = FabricClient(doors.profile(doors.root))
    directory = FabricDirectory(ledger, name="g", endpoint="http://x/v1")
    for address, warned in [("", False), ("http://10.0.0.1:1", True), ("https://10.0.0.1:1", True)]:
        directory._warned.clear()
        replica = pb.Replica(replica_id="r", model="tiny", state="starting", address=address)
        from serving.gateway.fabric_directory import _replica

        assert not directory._may_be_asked(_replica(replica))
        assert bool(directory._warned) is warned
    await ledger.close()


class LeaseStandIn:
    def __init__(self, **said):
        self.said = said
        self.job = self

    def info(self):
        if "error" in self.said:
            raise Unavailable(self.said["error"])
        return pb.Job(**self.said)


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ({"state": "running", "lease_id": "l1"}, False),
        ({"state": "stopping", "lease_id": "l1"}, False),
        ({"state": "queued"}, True),
        ({"state": "starting", "lease_id": "l2"}, True),
        ({"state": "running", "lease_id": "l2"}, True),
        ({"state": "parked"}, True),
        ({"state": "cancelled"}, True),
        ({"error": "away"}, False),
    ],
)
async def test_a_lease_that_went_elsewhere_is_lost_to_what_stood_in_it(said, lost):
    from serving.host.leases import LeasedPlot

    plot = LeasedPlot(LeaseStandIn(**said), {"lease_id": "l1"}, accelerator="H100", closed=lambda _: None)
    assert await plot.is_lost() is lost
