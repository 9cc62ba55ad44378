"""A lease and a node as tests of one machine's side need them: what a test is about it says itself."""

from typing import Any

from fabric.gate.events import JobKind, Pool
from fabric.gate.instructions import Lease
from fabric.inventory.nodes import Node

NODE = Node(
    node_id="h1",
    ray_id="ray-h1",
    address="10.0.0.1",
    port=1,
    accelerator="H100",
    resource="GPU",
    devices=4,
    pool=Pool.SPOT,
    dedicated_to=None,
    has_type_resource=True,
)


def lease_of(job_id: str = "job-1", *, epoch: int = 1, **more: Any) -> Lease:
    """An attempt of a function of acme's."""
    facts = {"account_id": "acme", "name": "test", "kind": JobKind.FUNCTION, "accelerator": "H100", "shares": ()}
    return Lease(job_id=job_id, epoch=epoch, **{"lease_id": f"{job_id}.{epoch}", "payload": "{}", **facts, **more})
