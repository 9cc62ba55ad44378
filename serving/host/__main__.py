"""`python -m serving.host`: the process that hosts replicas and gateways of a fabric. `fabric up` starts and watches it.

It is a Ray driver. It runs the pool over leases that it takes through the door like any client, as the operator, and
starts the gateway processes and their ingress. On SIGTERM they let their streams end, then replicas are drained and leases
given back.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from fabric import daemon, logs
from fabric.client.client import Client
from fabric.client.profile import Profile
from fabric.config.cluster import load_cluster
from fabric.config.serving import ServingConfig
from fabric.errors import FabricError, InvalidConfig
from fabric.gate.key_scopes import KeyScope
from fabric.server.wiring import open_archive_of
from serving.fabric_client import FabricClient
from serving.gateway.__main__ import secret_of
from serving.host.board import DoorBoard
from serving.host.gateways import keep_gateways
from serving.host.leases import LeasedGround, mark_of
from serving.host.pool import Pool
from serving.host.serve_site import ServeSite
from serving.replica.actor import Door

OPERATOR: Final = "operator"

_log = structlog.get_logger()


def main(argv: Sequence[str] | None = None) -> int:
    """Host until SIGTERM; 0 after an orderly end."""
    given = _parser().parse_args(argv)
    logs.begin()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    try:
        asyncio.run(_host(given))
    except FabricError as error:
        _log.error("ended", code=error.code, error=error.message)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving.host", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True, help="of the fabric that is up")
    parser.add_argument("--listen", default="127.0.0.1:7480", help="host:port of the gateways")
    parser.add_argument("--config", type=Path, help="the cluster file; what comes with the package if not given")
    return parser


async def _host(given: argparse.Namespace) -> None:
    state_dir = given.state_dir.absolute()
    found = daemon.running(state_dir) or daemon.state_dir.last_running(state_dir)
    if found is None:
        raise InvalidConfig(f"no fabric was ever up in {state_dir}: `fabric up` first", code="no_fabric")
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _end, stopped)
    key = daemon.role_key(state_dir, KeyScope.HOST)
    ledger = FabricClient(Profile(address=found.address, api_key=key, ca=found.ca))
    client = Client(Profile(address=found.address, api_key=key, ca=found.ca, account=OPERATOR))
    ca_pem = await asyncio.to_thread(Path(found.ca).read_text) if found.ca else ""
    door = Door(address=found.address, api_key=daemon.role_key(state_dir, KeyScope.REPLICA), ca_pem=ca_pem)
    environment = {**os.environ, "FABRIC_STATE_DIR": str(state_dir)}
    config = await asyncio.to_thread(load_cluster, given.config, environ=environment)
    trust = secret_of(state_dir, "trust")
    site = ServeSite(door, ray_address=found.ray_address, archive=open_archive_of(config), mark=mark_of(trust))
    ground = LeasedGround(client, site, trust=trust, state_dir=state_dir / "serving")
    pool = Pool(ground, DoorBoard(ledger, reporter="host"))
    running = [
        asyncio.create_task(pool.run()),
        asyncio.create_task(
            keep_gateways(
                located(config.serving, given.listen), listen=given.listen, state_dir=state_dir, stopped=stopped
            )
        ),
    ]
    try:
        await running[1]  # until it is time, or there can be no endpoint
    finally:
        running[0].cancel()
        await asyncio.wait(running)
        await pool.close()
        await asyncio.to_thread(site.close)
        await ledger.close()
        await asyncio.to_thread(ground.close)


def _end(stopped: asyncio.Event) -> None:
    """It is time. Ray, once it is joined, hears of SIGTERM first: it takes it for a crash, and sets an alarm that kills the
    process three seconds later, long before replicas are drained and leases given back.
    """
    signal.alarm(0)
    stopped.set()


def located(serving: ServingConfig | None, listen: str) -> ServingConfig:
    """What the file says, where the address is the file's. Elsewhere it is beside another fabric of the same file, which
    has its ports for metrics.
    """
    serving = serving or ServingConfig()
    is_moved = serving.port != 0 and serving.listen != listen
    return serving.model_copy(update={"admin_port": None}) if is_moved else serving


if __name__ == "__main__":
    sys.exit(main())
