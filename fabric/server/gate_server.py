"""The gate with its doors in the same process, so that a client's call is one hop from the decision.

A door is opened by whoever runs `fabric up` on the gate's machine, and stays open for as long as somebody keeps it: the
keeper's call lasts, and is said again at once when it ends. Killed and started again by Ray, the gate opens the same
door at the same address as soon as the keeper's call is repeated, which Ray does by itself. A door that nobody keeps
closes after a while, so that none is left behind by a keeper that was killed.

The limits that keep clients from overwhelming the gate are the door's own (`fabric.api`): rates, sizes, streams.
"""

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any, Final

import ray
import structlog

from fabric import quiet  # noqa: F401  # comes before whatever imports gRPC
from fabric.api.gate_client import GateClient
from fabric.api.grpc_server import RpcServer, serve
from fabric.api.limits import Limits
from fabric.api.service import ApiService
from fabric.api.tls import TlsPems
from fabric.clock import SteadyClock
from fabric.config.cluster import ClusterConfig
from fabric.server.actor import GateActor
from fabric.server.notices import Notices
from fabric.server.wiring import SOON_S, open_archive_of, providers_of
from fabric.system.guarded import Guarded

KEEP_S: Final = 20.0
"""How long a keeper's call lasts."""
UNKEPT_S: Final = 60.0
"""How long a door stays open that nobody keeps."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorTerms:
    """A door as its keeper wants it."""

    node_id: str
    """Ray's id of the node whose address it is at."""
    host: str
    port: int
    """0 = any free one: what `open_door` answers is the one to keep."""
    tls: TlsPems = field(repr=False)
    limits: Limits
    sandbox_payments: bool


class Gatehouse(GateActor):
    """What runs inside the Ray actor: the gate, and the doors that stand open."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._doors: dict[tuple[str, int], _Open] = {}
        self._opening = asyncio.Lock()
        self._coming_up: asyncio.Task[None] | None = None
        self._notices = Notices(
            self._config, size=lambda: self._writer.head.size, metrics=lambda: self._cluster.metrics
        )

    async def open_door(self, terms: DoorTerms) -> int | None:
        """The port of a door on these terms, opened if it isn't; None if the gate runs on another node.

        Raises:
            Unavailable: the address is taken.
        """
        if ray.get_runtime_context().get_node_id() != terms.node_id:
            return None
        async with self._opening:
            known = self._doors.get((terms.host, terms.port))
            if known is not None and known.terms == terms:
                return terms.port
            if known is not None:
                await self._close(known)
            return await self._open(terms)

    async def keep_door(self, terms: DoorTerms) -> bool:
        """Keep it open for a while, and open it first after a restart; whether it can be. A gate that was started again
        comes up with it, whether or not a client calls: there are jobs to be watched.
        """
        if await self.open_door(terms) is None:
            return False
        door = self._doors[terms.host, terms.port]
        self._coming_up = asyncio.create_task(self._come_up())
        await door.kept_for(KEEP_S)
        return True

    async def close_door(self, terms: DoorTerms) -> None:
        """Let calls under way end, briefly, then close it. The gate stays."""
        async with self._opening:
            if (door := self._doors.get((terms.host, terms.port))) is not None:
                await self._close(door)

    async def replayed(self) -> tuple[int, int]:
        """How many entries of its journal it has decided again, and of how many. Answers at once."""
        return self._writer.progress.decided, self._writer.progress.entries

    async def differences(self, config: ClusterConfig) -> list[str]:
        """What of a cluster file is not what this gate was started with; of what a gate can't change while it runs."""
        sections = ("name", "journal", "archive", "metering", "stripe", "alipay", "witnesses", "notices")
        return [name for name in sections if getattr(self._config, name) != getattr(config, name)]

    async def close(self) -> None:
        """Close all doors, then the gate."""
        async with self._opening:
            for door in list(self._doors.values()):
                await self._close(door)
        await super().close()
        await self._notices.close()

    async def _start(self) -> None:
        await super()._start()
        self._chores += self._notices.begin()

    async def _come_up(self) -> None:
        try:
            await self.ready()
        except Exception as error:  # noqa: BLE001 - callers hear of it themselves, and the next keeper's call tries again
            log.warning("gate_not_up", error=f"{type(error).__name__}: {error}")

    async def _open(self, terms: DoorTerms) -> int:
        port = GateClient(self, archive=open_archive_of(self._config, answers_s=SOON_S))
        inside = ApiService(
            port,
            limits=terms.limits,
            sandbox_payments=terms.sandbox_payments,
            payments=providers_of(self._config, now_us=SteadyClock().now_us),
            batched=False,
            notices=self._notices.desk,
        )
        server = await serve(inside, tls=terms.tls, host=terms.host, port=terms.port)
        door = self._doors[terms.host, server.port] = _Open(replace(terms, port=server.port), server)
        door.watch = asyncio.create_task(self._close_when_unkept(door))
        return server.port

    async def _close(self, door: "_Open") -> None:
        self._doors.pop((door.terms.host, door.terms.port), None)
        await door.close()

    async def _close_when_unkept(self, door: "_Open") -> None:
        while door.unkept_s() < UNKEPT_S:
            if await door.closes_within(KEEP_S):
                return
        log.warning("door_unkept", host=door.terms.host, port=door.terms.port)
        del self._doors[door.terms.host, door.terms.port]
        await door.close()


class GatehouseActor(Guarded):
    """What Ray runs."""

    INSIDE = Gatehouse


class _Open:
    """A door that stands open, and who keeps it."""

    def __init__(self, terms: DoorTerms, server: RpcServer) -> None:
        self.terms = terms
        self.watch: asyncio.Task[None] | None = None
        """Closes it when nobody keeps it."""
        self._server = server
        self._closed = asyncio.Event()
        self._keepers = 0
        self._kept_at = time.monotonic()

    async def kept_for(self, seconds: float) -> None:
        """Count a keeper for so long, or until the door is closed."""
        self._keepers += 1
        try:
            await self.closes_within(seconds)
        finally:
            self._keepers -= 1
            self._kept_at = time.monotonic()

    async def closes_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._closed.wait()
        except TimeoutError:
            return False

    def unkept_s(self) -> float:
        """For how long nobody has kept it."""
        return 0.0 if self._keepers else time.monotonic() - self._kept_at

    async def close(self) -> None:
        await self._server.stop()
        self._closed.set()
