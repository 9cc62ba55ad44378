"""The gate's looks for unleased use, one after the other, whoever doesn't answer meanwhile.

What holds a device is ended as soon as it is found: first what the control store tells, then what raylets do. What may have
outlived its lease is judged beside the next looks, as agents are asked for that, and one that is silent would keep them
waiting for longer than a device may be held without a lease. Both have threads of their own: the gate's others may all wait
for Ray, or for the archive.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from fabric.cluster.agents import Agents
from fabric.enforcement.reconciler import Kill, Look, Reconciler
from fabric.enforcement.unleased import Unleased
from fabric.inventory.nodes import Node
from fabric.units import NodeId

T = TypeVar("T")


class UnleasedUse:
    """One gate's."""

    def __init__(
        self,
        reconciler: Reconciler,
        *,
        agents: Agents,
        nodes: Mapping[NodeId, Node],
        begin: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
        count: Callable[[Sequence[Unleased]], None],
    ) -> None:
        """Nothing is looked at yet.

        Args:
            reconciler: what looks, and ends.
            agents: end processes, and say which are counted to a lease.
            nodes: all that are sold now.
            begin: starts what goes on beside the looks, and ends with the gate.
            count: is told what was ended.
        """
        self._reconciler, self._agents, self._nodes = reconciler, agents, nodes
        self._begin, self._count = begin, count
        self._looking, self._judging = asyncio.Lock(), asyncio.Lock()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="unleased")

    async def end(self) -> None:
        """Look once, end what holds a device, and have the rest judged, unless that is under way."""
        look = await self._devices_freed([])
        if not self._judging.locked():
            self._begin(self._judged(look, []))

    async def end_all(self) -> list[Unleased]:
        """Look once, and end whatever runs without a lease; what that was."""
        ended: list[Unleased] = []
        await self._judged(await self._devices_freed(ended), ended)
        return ended

    def close(self) -> None:
        """No look begins any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _devices_freed(self, ended: list[Unleased]) -> Look:
        """What one look has found; what held a device is ended."""
        found: list[Unleased] = []

        def first(look: Look) -> None:
            found.extend(self._reconciler.end(look, kill=kill))

        kill = self._kill(asyncio.get_running_loop())
        async with self._looking:
            look = await self._aside(partial(self._reconciler.look, list(self._nodes.values()), kill=kill, first=first))
            found += await self._aside(partial(self._reconciler.end, look, kill=kill))
        self._count(found)
        ended += found
        return look

    async def _judged(self, look: Look, ended: list[Unleased]) -> None:
        loop = asyncio.get_running_loop()

        def had(address: str, asked: Mapping[int, float]) -> list[int] | None:
            return asyncio.run_coroutine_threadsafe(self._agents.had(address, asked), loop).result()

        async with self._judging:
            claimed = await self._agents.claimed() if look.suspects else {}
            found = await self._aside(partial(self._reconciler.end_suspects, look, claimed=claimed, had=had))
        self._count(found)
        ended += found

    async def _aside(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _kill(self, loop: asyncio.AbstractEventLoop) -> Kill:
        def kill(address: str, pid: int) -> None:
            asyncio.run_coroutine_threadsafe(self._agents.kill(address, pid), loop)

        return kill
