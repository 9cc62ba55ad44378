"""Ray says that a node will go, and when: a gang that runs there is asked to leave before, and nothing of it is lost."""

import asyncio
import os
import time

import pytest
import ray
from ray.core.generated import autoscaler_pb2

from fabric.gate.events import JobKind, LeaseFinished, LeaseOutcome, LeaseSaved, NodeDown, NodeDrain
from fabric.gate.instructions import StopLease

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

TRAINING = """
import sys, time
from pathlib import Path
import torch
from training import session
torch.manual_seed(7)
model = torch.nn.Linear(4, 2)
opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
data = torch.utils.data.TensorDataset(torch.randn(6400, 4))
with session(model=model, opt=opt) as run:
    for (x,) in run.batches(data, global_batch=8, virtual=4, epochs=5):
        run.step(model(x).square().mean())
        Path(sys.argv[1]).write_text(str(run.done))
        time.sleep(0.02)
"""


def drain(ray_id, *, within_s):
    """What a spot reclaim, the autoscaler and KubeRay say."""
    client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    deadline_ms = time.time_ns() // 1_000_000 + 1_000 * within_s
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = client.drain_node(ray_id, reason, "spot reclaim", deadline_ms)
    assert accepted, why


async def test_a_gang_on_a_node_that_ray_drains_saves_and_leaves_before_the_deadline(world, tmp_path, comes_back):
    comes_back("n1")
    world.archive.put("jobs/acme/drained", world.zipped(train__py=TRAINING))
    told = tmp_path / "done"
    payload = {
        "entrypoint": ["python", "train.py", str(told)],
        "working_dir_blob": "jobs/acme/drained",
        "preload": "torch",
    }
    lease = world.lease(
        payload, kind=JobKind.SCRIPT, shares=(("n1", 2), ("n1", 2)), accelerator="910B", job_id=f"drained-{os.getpid()}"
    )
    await world.start(lease)
    async with asyncio.timeout(120):
        while not told.exists() or int(told.read_text() or 0) < 10:  # noqa: ASYNC110  # another process tells, by a file
            await asyncio.sleep(0.05)
    drain(world.cluster._nodes["n1"].ray_id, within_s=60)
    notice = await world.wait(NodeDrain)
    assert notice.node_id == "n1"
    assert not any((notice.cordon, notice.undo))
    assert 0 < notice.grace_us < 60_000_000
    deadline_us = world.cluster._clock.now_us() + notice.grace_us
    stop = StopLease(
        lease_id=lease.lease_id, reason="drained", deadline_us=deadline_us
    )  # the gate's answer: its stories
    await world.cluster.carry_out([stop])
    finished = await world.wait(LeaseFinished, lease.lease_id, within_s=90)
    assert finished.outcome is LeaseOutcome.SAVED, finished.error
    saved = await world.wait(LeaseSaved, lease.lease_id)
    assert saved.step >= int(told.read_text()), "no step is lost"
    assert not [event for event in world.events if isinstance(event, NodeDown)], "it left before the node did"
    await world.remove(lease.lease_id)
