"""The process behind `fabric up`: brings the cluster, the gate and the door up, and takes them down again in order.

It is Ray's driver of an embedded cluster, or joins a running one; the gate itself is a detached actor, so a door that is
started again finds it where it was.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import ray
import structlog

from fabric import house
from fabric.actor import ACTOR_NAME, GateActor
from fabric.adapters.local_cluster import LocalCluster, LocalNode
from fabric.adapters.stores import open_archive_of
from fabric.api.door import Door, Limits
from fabric.api.ray_port import RayPort
from fabric.api.rpc import RpcServer, serve
from fabric.api.tls import TlsFiles, ensure_certificate
from fabric.errors import FabricError, error_of
from fabric.gate.events import AnyEvent, CreateKey, OpenAccount
from fabric.gate.instructions import Refusal
from fabric.gate.questions import BalanceOf, KeyOf, NodesOf, PricesOf
from fabric.settings import ClusterConfig, RayLocal, Settings
from fabric.settings import TlsFiles as ConfiguredTls
from fabric.units import AccountId, KeyId
from fabric.wire.keys import format_key, hash_secret, key_id_of, make_secret, parse_key

OPERATOR: Final = AccountId("operator")
"""The operator's own account: its keys belong to it."""
LOCAL_ACCOUNT: Final = AccountId("local")
"""The customer that a one-machine fabric opens for whoever started it."""
GATE_START_S: Final = 120.0
GATE_STOP_S: Final = 20.0
CALLS_AT_ONCE: Final = 10_000

log = structlog.get_logger()


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; 0 after an orderly end."""
    parser = argparse.ArgumentParser(prog="python -m fabric.serve", description=__doc__)
    parser.add_argument("--config", type=Path, help="cluster file; the one-machine cluster if not given")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--any-port", action="store_true", help="listen at free ports, not at those in the file")
    given = parser.parse_args(argv)
    level = logging.getLevelNamesMapping()[Settings().log_level.upper()]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        with house.held(given.state_dir), ExitStack() as stack:
            config = house.load(given.config, given.state_dir, any_port=given.any_port)
            dashboard = _join_or_start_ray(config, given.state_dir, stack)
            asyncio.run(_serve(config, given.state_dir, dashboard=dashboard))
    except FabricError as error:
        log.error("start_failed", code=error.code, error=error.message)  # noqa: TRY400 - expected: no traceback
        house.tell(given.state_dir, house.Step(doing="failed", error=error.message))
        return error.exit_code
    except Exception as error:
        log.exception("start_failed")
        house.tell(given.state_dir, house.Step(doing="failed", error=f"{type(error).__name__}: {error}"))
        return 1
    return 0


def _join_or_start_ray(config: ClusterConfig, state_dir: Path, stack: ExitStack) -> str:
    """The dashboard's address."""
    if not isinstance(config.ray, RayLocal):
        house.tell(state_dir, house.Step(doing=f"joining Ray at {config.ray.address}"))
        context = ray.init(address=config.ray.address, namespace=config.ray.namespace, log_to_driver=False)
        stack.callback(ray.shutdown)
        return f"http://{context.dashboard_url}" if context.dashboard_url else ""
    nodes = [
        LocalNode(
            node_id=node.node,
            accelerator=node.accelerator,
            devices=node.devices,
            pool=node.pool.value,
            dedicated_to=node.dedicated_to or "",
        )
        for node in config.ray.nodes
    ]
    cluster = LocalCluster.start(
        nodes=nodes,
        dashboard_port=config.dashboard.port or None,
        namespace=config.ray.namespace,
        told=lambda doing: house.tell(state_dir, house.Step(doing=doing)),
    )
    stack.callback(cluster.stop)
    return cluster.dashboard_url


async def _serve(config: ClusterConfig, state_dir: Path, *, dashboard: str) -> None:
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    house.tell(state_dir, house.Step(doing="starting the gate: reading its journal"))
    actor = _gate(config)
    verifier_key: str = await asyncio.wait_for(asyncio.wrap_future(actor.ready.remote().future()), GATE_START_S)
    port = RayPort(actor, archive=open_archive_of(config))
    house.tell(state_dir, house.Step(doing="opening the door"))
    tls = _tls(config, state_dir)
    server = await serve(_door(config, port), tls=tls, host=config.rpc.host, port=config.rpc.port)
    await _settle_in(config, port, state_dir)
    nodes: Any = await port.ask(NodesOf())
    found = house.Running(
        name=config.name,
        pid=os.getpid(),
        address=server.address,
        ca=str(tls.ca or ""),
        dashboard=dashboard,
        ray_address=ray.get_runtime_context().gcs_address,
        verifier_key=verifier_key,
        state_dir=str(state_dir),
        nodes=len(nodes),
        account=LOCAL_ACCOUNT if isinstance(config.ray, RayLocal) else "",
    )
    house.announce(state_dir, found)
    log.info("up", address=found.address, nodes=found.nodes, dashboard=dashboard)
    await stopped.wait()
    await _close(server, actor, local=isinstance(config.ray, RayLocal))


def _gate(config: ClusterConfig) -> Any:
    """The one gate: started here, or found where it runs."""
    return (
        ray.remote(GateActor)
        .options(
            name=ACTOR_NAME,
            namespace=config.ray.namespace,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=CALLS_AT_ONCE,
            num_cpus=0,
        )
        .remote(config)
    )


def _door(config: ClusterConfig, port: RayPort) -> Door:
    limits = Limits(
        requests_per_s=config.limits.requests_per_s,
        request_bytes=config.limits.request_bytes,
        blob_bytes=config.limits.blob_bytes,
    )
    return Door(port, limits=limits, sandbox_payments=config.payments == "sandbox")


def _tls(config: ClusterConfig, state_dir: Path) -> TlsFiles:
    if isinstance(config.rpc.tls, ConfiguredTls):
        return TlsFiles(cert=config.rpc.tls.cert, key=config.rpc.tls.key)
    return ensure_certificate(state_dir, hosts=(config.rpc.host,))


async def _settle_in(config: ClusterConfig, port: RayPort, state_dir: Path) -> None:
    """On the first start: the operator's account and key, and a customer for whoever runs it on one machine."""
    await _ensure_account(port, OPERATOR, name="The operator")
    if isinstance(config.ray, RayLocal):
        await _ensure_account(port, LOCAL_ACCOUNT, name="You, on this machine")
    file = house.operator_key_file(state_dir)
    known = parse_key(file.read_text()) if file.exists() else None
    if known is not None and await port.ask(KeyOf(key_id=KeyId(known.key_id))) is not None:
        return
    secret, request_id = make_secret(), uuid.uuid4().hex
    key_id = KeyId(key_id_of(OPERATOR, request_id))
    await _decide(
        port,
        CreateKey(
            key_id=key_id,
            account_id=OPERATOR,
            secret_sha256=hash_secret(secret),
            name="made at the first start",
            operator=True,
            request_id=request_id,
        ),
    )
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(format_key(key_id, secret) + "\n")


async def _ensure_account(port: RayPort, account_id: AccountId, *, name: str) -> None:
    if await port.ask(BalanceOf(account_id=account_id)) is None:
        prices: Any = await port.ask(PricesOf())
        await _decide(port, OpenAccount(account_id=account_id, name=name, plan=prices.catalogue.plans[0].name))


async def _decide(port: RayPort, event: AnyEvent) -> None:
    (outcome,) = await port.decide([event])
    if isinstance(outcome, Refusal):
        raise error_of(outcome.code, outcome.http_status, outcome.message, outcome.facts)


async def _close(server: RpcServer, actor: Any, *, local: bool) -> None:
    """The door first; the gate only where its cluster goes with it."""
    await server.stop()
    if local:
        try:
            await asyncio.wait_for(asyncio.wrap_future(actor.close.remote().future()), GATE_STOP_S)
        except Exception as error:  # noqa: BLE001 - the journal has everything; the cluster ends anyway
            log.warning("gate_not_closed", error=str(error))
        ray.kill(actor, no_restart=True)


if __name__ == "__main__":
    sys.exit(main())
