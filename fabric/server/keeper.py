"""Keeps the gRPC door open: in the gate's own process where that is on this machine, else in this one.

A client sees one address either way. In the gate's process a call saves two hops over Ray; a gate that Ray has started
again on another machine leaves this address, and the door is then opened here, with Ray between it and the gate.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import ray
import structlog
from ray.util import client

from fabric.api.gate_client import GateClient
from fabric.api.grpc_server import RpcServer, serve
from fabric.api.limits import Limits
from fabric.api.remote_gate import RemoteGate, call
from fabric.api.service import ApiService
from fabric.api.tls import TlsFiles
from fabric.clock import SteadyClock
from fabric.config.cluster import ClusterConfig
from fabric.errors import FabricError
from fabric.server.gate_server import DoorTerms
from fabric.server.wiring import SOON_S, open_archive_of, providers_of

CLOSE_S: Final = 15.0
"""What an end waits at most for a gate that doesn't close its door."""
AGAIN_S: Final = 0.5
"""Between two tries to reach a gate that is away."""

log = structlog.get_logger()


class Doorkeeper:
    """One door. `open` it, then `close` it."""

    def __init__(
        self, actor: Any, config: ClusterConfig, *, tls: TlsFiles, revive: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Say what is to be kept open; `open` begins.

        Args:
            actor: the gate's handle.
            config: the cluster file's.
            tls: the door's certificate.
            revive: starts a gate that is gone for good, and leads `actor` to it. Any process of a Ray cluster may end any
                actor of it, so that a job can end the gate in a way that Ray doesn't mend.
        """
        self._actor = actor
        self._revive = revive
        self._config = config
        self._terms = DoorTerms(
            node_id="" if client.ray.is_connected() else ray.get_runtime_context().get_node_id(),
            host=config.rpc.host,
            port=config.rpc.port,
            tls=tls.read(),
            limits=Limits(
                requests_per_s=config.limits.requests_per_s,
                connections=config.limits.connections_per_address,
                request_bytes=config.limits.request_bytes,
                blob_bytes=config.limits.blob_bytes,
                blobs_bytes=config.limits.blobs_bytes,
                archive_bytes=config.storage.account_bytes,
                archive_values=config.storage.account_values,
            ),
            sandbox_payments=config.payments == "sandbox",
        )
        self._keeping: asyncio.Task[None] | None = None
        self._here: RpcServer | None = None

    @property
    def port(self) -> int:
        return self._terms.port

    async def open(self) -> None:
        """Open it, and keep it open from now on.

        Raises:
            Unavailable: the address is taken, or the gate is away.
        """
        port = await call(self._actor.open_door.remote(self._terms))
        if port is None:
            await self._open_here()
            return
        self._terms = replace(self._terms, port=port)
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Let calls under way end, briefly, and close it. The gate stays."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))
        if self._here is not None:
            await self._here.stop()
        else:
            with suppress(FabricError, TimeoutError):
                await asyncio.wait_for(call(self._actor.close_door.remote(self._terms)), CLOSE_S)

    async def _open_here(self) -> None:
        terms = self._terms
        door = ApiService(
            GateClient(RemoteGate(self._actor), archive=open_archive_of(self._config, answers_s=SOON_S)),
            limits=terms.limits,
            sandbox_payments=terms.sandbox_payments,
            payments=providers_of(self._config, now_us=SteadyClock().now_us),
        )
        self._here = await serve(door, tls=terms.tls, host=terms.host, port=terms.port)
        self._terms = replace(terms, port=self._here.port)

    async def _keep(self) -> None:
        """Say again and again that the door is wanted; that it can't be is tried for as long as this process lives."""
        while self._here is None:
            try:
                if not await call(self._actor.keep_door.remote(self._terms)):
                    log.warning("gate_moved", told="it is on another machine now: the door is opened here")
                    await self._open_here()
            except FabricError as error:
                log.warning("door_not_kept", code=error.code, error=error.message)
                await asyncio.sleep(AGAIN_S)
                if error.code == "gate_restarting":
                    await self._start_again()
            except Exception:
                log.exception("door_not_kept")  # tried again all the same: a door that nobody keeps any more closes
                await asyncio.sleep(AGAIN_S)

    async def _start_again(self) -> None:
        """Ray repeats what is asked of an actor that it starts again; what it gives up on is gone."""
        if self._revive is None:
            return
        try:
            await self._revive()
            log.warning("gate_revived", told="it was gone: it has been started again from its journal")
        except FabricError as error:
            log.warning("gate_not_revived", code=error.code, error=error.message)
        except Exception:
            log.exception("gate_not_revived")
