"""The gateway processes of a host: each kept up, made known to the ingress where there is one, and ended in order."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from fabric.config.serving import ServingConfig
from serving.gateway.__main__ import secret_of
from serving.gateway.address import certificate_of, endpoint_of
from serving.gateway.server import split
from serving.host.haproxy import Frontend
from serving.host.ingress import Ingress

PAUSE_S: Final = 1.0
"""Before a gateway that ended is started again."""
_LOOPBACK: Final = "127.0.0.1:0"
_THREADS_MAX: Final = 4

_log = structlog.get_logger()


async def keep_gateways(serving: ServingConfig, *, listen: str, state_dir: Path, stopped: asyncio.Event) -> None:
    """Keep all that clients reach up, and let their streams finish when it is time.

    Args:
        serving: the cluster file's section.
        listen: the public address, `host:port`.
        state_dir: the fabric's.
        stopped: set when it is time.

    Raises:
        Unavailable: there is no ingress (`no_haproxy`), or it doesn't come up (`no_ingress`).
    """
    common = ["--state-dir", str(state_dir), "--gateways", str(serving.gateways), *_limits(serving)]
    each = [[*common, *_admin(serving, number)] for number in range(serving.gateways)]
    if not serving.has_ingress:
        words = ["--listen", listen, *_address(serving)]
        await asyncio.gather(*(_keep([*one, *words], stopped) for one in each))
        return
    words = ["--listen", _LOOPBACK, "--behind-ingress", "--endpoint", _endpoint(serving, listen)]
    async with _ingress(serving, listen=listen, state_dir=state_dir) as ingress:
        ending = asyncio.create_task(_drained(ingress, stopped))
        try:
            await asyncio.gather(
                *(_keep([*one, *words], stopped, ingress=ingress, number=number) for number, one in enumerate(each))
            )
        finally:
            ending.cancel()


async def _keep(
    words: Sequence[str], stopped: asyncio.Event, *, ingress: Ingress | None = None, number: int = 0
) -> None:
    """Keep one gateway up."""
    while not stopped.is_set():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "serving.gateway", *words,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env=dict(os.environ),
        )  # fmt: skip
        following = asyncio.create_task(_follow(process, ingress, number))
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait((following, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not following.done():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        code = await following
        if not stopped.is_set():
            _log.warning("gateway_ended", code=code)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), PAUSE_S)


async def _follow(process: asyncio.subprocess.Process, ingress: Ingress | None, number: int) -> int:
    """From a gateway's first word, which says where it is, to its end."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if ingress is None or not line.endswith(b"\n"):
        return await process.wait()
    await ingress.stands(number, json.loads(line)["address"])
    code = await process.wait()
    await ingress.falls(number)
    return code


async def _drained(ingress: Ingress, stopped: asyncio.Event) -> None:
    await stopped.wait()
    await ingress.drain()


def _ingress(serving: ServingConfig, *, listen: str, state_dir: Path) -> Ingress:
    admin = serving.admin_port
    front = Frontend(
        listen=listen,
        certificate=None,
        secret=secret_of(state_dir, "ingress"),
        socket=Path(),
        per_address=serving.limits.connections_per_address,
        wait_s=serving.limits.wait_s,
        threads=min(_THREADS_MAX, os.cpu_count() or 1),
        metrics="" if admin is None else f"127.0.0.1:{admin + serving.gateways}",
    )
    files = serving.tls_files
    certificate = certificate_of(
        listen,
        state_dir,
        cert=files.cert if files else None,
        key=files.key if files else None,
        is_plain=serving.tls == "plain",
    )
    return Ingress(front, place=state_dir, certificate=certificate, gateways=serving.gateways)


def _endpoint(serving: ServingConfig, listen: str) -> str:
    return serving.endpoint or endpoint_of(*split(listen), is_plain=serving.tls == "plain")


def _admin(serving: ServingConfig, number: int) -> list[str]:
    return [] if serving.admin_port is None else ["--admin", f"127.0.0.1:{serving.admin_port + number}"]


def _limits(serving: ServingConfig) -> list[str]:
    words = ["--grace-s", str(round(serving.grace_s)), "--requests-per-s", str(serving.limits.requests_per_s)]
    words += ["--per-address", str(serving.limits.connections_per_address)]
    words += [word for origin in serving.origins for word in ("--origin", origin)]
    return [*words, "--wait-s", str(serving.limits.wait_s)]


def _address(serving: ServingConfig) -> list[str]:
    """Of the public address, where gateways listen there themselves."""
    words = [] if serving.endpoint is None else ["--endpoint", serving.endpoint]
    if serving.tls == "plain":
        words.append("--plain")
    elif files := serving.tls_files:
        words += ["--tls-cert", str(files.cert), "--tls-key", str(files.key)]
    return words
