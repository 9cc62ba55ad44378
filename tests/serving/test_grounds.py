"""Leases of replicas, taken at a real door and a real gate: none is left behind, however its host went."""

import asyncio
import signal
import time

import pytest

from fabric.charging.rates import Rate
from fabric.client.client import new_request_id
from fabric.errors import JobFailed
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import Grant, NodeDown, NodeUp, Pool
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from serving.host.__main__ import _end
from serving.host.board import offer_of
from serving.host.leases import LeasedGround, is_of, mark_of
from serving.host.pool import Offer
from tests.doors.conftest import house as house_fixture

house = house_fixture
TRUST = "the gateways' secret"
ANY = Rate(input_uhs_per_mtok=1, cached_uhs_per_mtok=1, output_uhs_per_mtok=1, reasoning_uhs_per_mtok=1)
MODEL = Offer(name="m", source="/models/m", accelerators=("H100",), rates=(ANY,))


class SiteStandIn:
    def __init__(self):
        self.cleared = []

    def clear(self, groups):
        self.cleared += groups


@pytest.fixture
def reserved(house):
    """A door to a gate with two devices for models, none on spot nodes, and an operator who can pay."""
    house.port.seed(
        *(NodeDown(node_id=f"h{number}") for number in range(2)),
        NodeUp(node_id="reserved", accelerator="H100", devices=2, pool=Pool.RESERVED),
        NodeUp(node_id="cell", accelerator="A100", devices=1, pool=Pool.DEDICATED, dedicated_to="acme"),
        OpenAccount(account_id="operator", name="the operator", plan="starter"),
        Grant(account_id="operator", amount_uhs=10_000 * UHS_PER_CT),
    )
    return house


@pytest.fixture
def ground_of(reserved):
    made = []

    def make(trust=TRUST):
        site = SiteStandIn()
        client = reserved.client(reserved.root, account="operator")
        made.append(LeasedGround(client, site, trust=trust, state_dir=reserved.folder / "serving"))
        return made[-1], site

    yield make
    for each in made:
        each.close()


def leases(house, account="operator"):
    """Names without their marks, and states of what has not ended."""
    jobs = house.fabric(house.root, account=account).jobs("queued", "starting", "running", "stopping", "parked")
    return sorted((job.name.rpartition(" ")[0], job.state) for job in jobs)


async def has_come(ground, reserved, state):
    """A lease that is being asked for, once its job is in that state."""
    asking = asyncio.create_task(ground.lease(MODEL))
    await asyncio.to_thread(_wait_for, reserved, state)
    return asking


def _wait_for(reserved, state):
    while not any(each[1] == state for each in leases(reserved)):
        time.sleep(0.02)


async def test_a_lease_is_given_back_when_its_plot_is_closed(reserved, ground_of):
    ground, _ = ground_of()
    plot = await ground.lease(MODEL)
    assert (plot.accelerator, leases(reserved)) == ("H100", [("serve m", "running")])
    await ground.sweep()
    assert leases(reserved) == [("serve m", "running")], "its own are no others'"
    await plot.close()
    assert leases(reserved) == []


async def test_who_no_longer_waits_for_devices_has_no_job_in_the_queue(reserved, ground_of):
    ground, _ = ground_of()
    both = [await ground.lease(MODEL) for _ in range(2)]
    waiting = await has_come(ground, reserved, "queued")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert leases(reserved) == [("serve m", "running")] * 2
    for plot in both:
        await plot.close()


async def test_a_lease_that_is_cancelled_by_others_while_it_waits_is_said_to_have_ended(reserved, ground_of):
    ground, _ = ground_of()
    both = [await ground.lease(MODEL) for _ in range(2)]
    waiting = await has_come(ground, reserved, "queued")
    fabric = reserved.fabric(reserved.root, account="operator")
    (queued,) = fabric.jobs("queued")
    fabric.job(queued.job_id).cancel()
    with pytest.raises(JobFailed, match="cancelled"):
        await waiting
    for plot in both:
        await plot.close()


async def test_a_host_gives_back_what_one_before_it_was_killed_with_be_it_queued_or_running(reserved, ground_of):
    killed, _ = ground_of()
    await killed.lease(MODEL)
    await killed.lease(Offer(name="own", source="/m", accelerators=("A100",), rates=(ANY,), dedicated_to="acme"))
    reserved.port.seed(NodeDown(node_id="reserved"))
    assert leases(reserved) == [("serve m", "queued")], "as any job whose node is lost"
    ground, site = ground_of()
    await ground.sweep()
    assert (leases(reserved), leases(reserved, "acme")) == ([], [])
    assert site.cleared == ["ab"], "Serve lets go of what runs before its placement group goes"
    reserved.port.seed(NodeUp(node_id="reserved", accelerator="H100", devices=2, pool=Pool.RESERVED))
    assert leases(reserved) == [], "and nothing of it comes back with the node"
    plot = await ground.lease(MODEL)
    await ground.sweep()
    assert leases(reserved) == [("serve m", "running")]
    await plot.close()


async def test_leases_of_another_host_and_of_customers_are_left_alone(reserved, ground_of):
    other, _ = ground_of(trust="of another state directory")
    plot = await other.lease(MODEL)
    customers = reserved.fabric().lease(tokens=1, accelerators="H100:1", name="serve m")
    ground, _ = ground_of()
    await ground.sweep()
    assert len(leases(reserved)) == len(leases(reserved, "acme")) == 1
    await asyncio.to_thread(customers.close)
    await plot.close()


@pytest.mark.parametrize(
    ("engine", "source"), [("sglang", "/models/tiny"), ("http", "http://h:1"), ("vllm", "/models/tiny")]
)
async def test_what_is_offered_at_the_door_is_what_a_replica_is_started_with(reserved, ground_of, engine, source):
    rate = pb.Rate(input_uhs_per_mtok=1, cached_uhs_per_mtok=1, output_uhs_per_mtok=1, reasoning_uhs_per_mtok=1)
    asked = pb.ModelSpec(name="tiny", source=source, devices=2, engine=engine if engine != "vllm" else "")
    offered = pb.OfferModelRequest(request_id=new_request_id(), spec=asked, rates=[rate])
    reserved.client(reserved.root).call(offered, pb.Accepted)
    (model,) = reserved.client(reserved.root).call(pb.ListModelsRequest(), pb.ListModelsReply).models
    ground, _ = ground_of()
    started = ground._spec("r1", offer_of(model), "H100")
    assert (started.engine, started.folder, started.devices) == (engine, source, 2)


async def test_a_long_name_keeps_its_mark(reserved, ground_of):
    ground, _ = ground_of()
    plot = await ground.lease(Offer(name="m" * 128, source="/m", accelerators=("H100",), rates=(ANY,)))
    (job,) = reserved.fabric(reserved.root, account="operator").jobs("running")
    assert is_of(job, mark_of(TRUST))
    await plot.close()


async def test_a_host_that_is_told_to_end_outlives_the_alarm_that_ray_sets_then():
    signal.alarm(60)
    stopped = asyncio.Event()
    try:
        _end(stopped)
        assert (signal.alarm(0), stopped.is_set()) == (0, True)
    finally:
        signal.alarm(0)
