"""A small cluster to plan on, written as tables."""

import pytest

from fabric.placement import Evict, Node, Placed, PlacementState, Planner, Policy, Request

MINUTE = 60_000_000
HOUR = 60 * MINUTE


class Story:
    """A planner with a clock, driven by short lines and answering in short lines: `a@n0:8` is placed, `a>b` gives way."""

    def __init__(self, *nodes, **policy):
        self.planner = Planner(PlacementState(policy=Policy(**policy)))
        self.now = 1_000 * HOUR
        for node in nodes:
            self.node(node)

    def node(self, line):
        """`n0 H100 8 spot` or `e0 H100 8 dedicated acme`."""
        node_id, accelerator, devices, pool, *owner = line.split()
        node = Node(node_id, accelerator, int(devices), pool, owner[0] if owner else None)
        return self.planner.add_node(node, now_us=self.now)

    def request(self, job_id, devices=1, *, account="bolt", tier=2, each=None, kinds=(), **facts):
        facts.setdefault("submitted_at_us", self.now)
        return Request(
            job_id=job_id,
            account_id=account,
            devices=devices,
            devices_per_node=each,
            accelerators=kinds,
            tier_rank=tier,
            **facts,
        )

    def queue(self, job_id, devices=1, **facts):
        self.planner.enqueue(self.request(job_id, devices, **facts), now_us=self.now)

    def submit(self, job_id, devices=1, **facts):
        self.queue(job_id, devices, **facts)
        return self.plan()

    def release(self, *job_ids):
        for job_id in job_ids:
            assert self.planner.release(job_id, now_us=self.now)
        return self.plan()

    def wait(self, us):
        self.now += us
        return self.plan()

    def plan(self):
        steps = self.planner.plan(now_us=self.now)
        self.planner.check_invariants()
        return [_line(step) for step in steps]


def _line(step):
    if isinstance(step, Evict):
        return f"{step.job_id}>{step.for_job_id}"
    assert isinstance(step, Placed)
    return f"{step.job_id}@" + "+".join(f"{node_id}:{devices}" for node_id, devices in step.shares)


@pytest.fixture
def story():
    return Story
