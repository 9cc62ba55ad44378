"""Stand-ins for what surrounds an attempt: runners whose jobs end when they are told how, groups, meters, the outbox."""

import asyncio

import ray

from fabric.cluster.placement_groups import Group, Seated
from fabric.node.agent import Cut
from fabric.worker.runner import Seat
from tests.worker.leases import NODE


class Method:
    """`actor.method.remote(...)`, answered by a coroutine function."""

    def __init__(self, answer):
        self.answer = answer

    def remote(self, *arguments, **options):
        return asyncio.ensure_future(self.answer(*arguments, **options))


class Runner:
    """One runner's actor: its job ends when it is told how."""

    def __init__(self, described=None):
        self.end = asyncio.get_running_loop().create_future()
        self.orders, self.wishes, self.hangs = [], [], False
        self.described = described
        self.run, self.wait, self.stop = Method(self._run), Method(self._wait), Method(self._stop)
        self.saves, self.describe, self.save = Method(self._saves), Method(self._describe), Method(self._save)
        self.progress, self.is_clean = Method(self._progress), Method(self._is_clean)
        self.says_clean = True

    async def _is_clean(self):
        if self.hangs:
            await asyncio.Event().wait()
        return self.says_clean

    async def _run(self, order):
        self.orders.append(order)
        return await self._wait()

    async def _wait(self):
        return await asyncio.shield(self.end)

    async def _stop(self, reason, *, seconds_left, save=True):
        if self.hangs:
            await asyncio.Event().wait()
        self.wishes.append(reason)

    async def _saves(self, after):
        await asyncio.Event().wait()

    async def _progress(self):
        await asyncio.Event().wait()

    async def _save(self):
        self.wishes.append("save")

    async def _describe(self):
        return self.described


class Living:
    """What is inside of an actor that outlived the gate's process."""

    def __init__(self, described):
        self.described = described

    async def describe(self):
        return self.described


class Groups:
    """Makes a group with runners in it, and remembers what became of groups."""

    def __init__(self, runners):
        self.runners = runners
        self.built = asyncio.Event()
        self.built.set()
        self.fate, self.failures, self.error, self.end_unseated = [], 0, None, list

    async def take(self, lease, *, environment, forks=False):
        return Group(placed=None, shares=lease.shares), False

    async def seat(self, group, lease, *, runtime_env):
        if self.error is not None:
            raise self.error
        await self.built.wait()
        group.runners = seated(self.runners)

    async def dismiss(self, group):
        if self.failures:
            self.failures -= 1
            raise ray.exceptions.RaySystemError("the cluster's head is away")
        self.fate.append("dismissed")

    def keep(self, group):
        self.fate.append("kept")
        return True

    async def destroy(self, group, *, known=False):
        self.fate.append("destroyed")

    def adopt(self, group):
        self.fate.append("adopted")


class Agents:
    """Meters that tell of each lease's last window once."""

    def __init__(self):
        self.ended = []
        self.unread = [Cut(lease_id="job-1.1", seq=7, window_us=1_000, busy_us=900)]

    async def attach(self, address, watch):
        pass

    async def has_environment(self, address, folder):
        return True

    async def detach(self, address, lease_id):
        cuts, self.unread = self.unread, []
        return cuts

    async def release(self, address, lease_id):
        return await self.detach(address, lease_id), True

    async def end(self, address, lease_id, *, roots):
        self.ended.append((address, lease_id))
        return True

    async def tidy(self, address, *, folder, log_file, log_key):
        pass


class Outbox:
    def __init__(self):
        self.events = []

    def put(self, event, *, within_s=0.0):
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def seated(runners):
    return [
        Seated(actor=runner, seat=Seat(pid=100 + at, ip="10.0.0.1", port=1, devices=(str(at),)), node=NODE)
        for at, runner in enumerate(runners)
    ]
