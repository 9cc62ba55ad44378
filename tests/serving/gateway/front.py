"""HAProxy before a house's gateways, for a test."""

import asyncio
import contextlib
from pathlib import Path

import aiohttp

from fabric.system.ports import free_port
from serving.gateway.server import GatewayServer
from serving.host.haproxy import Frontend
from serving.host.ingress import Ingress
from tests.serving.gateway.house import CHAT, free_socket

OURS = "a-secret-of-the-ingress"


@contextlib.asynccontextmanager
async def fronted(house, place, *, certificate=None, standing=True, look_s=30.0, **said):
    """An ingress before the house's gateways, each of which hears nobody else; yields it, and where clients come in."""
    port = free_port()
    front = Frontend(listen=f"127.0.0.1:{port}", certificate=None, secret=OURS, socket=Path(), **said)
    files = (certificate.cert, certificate.key) if certificate else None
    async with contextlib.AsyncExitStack() as stack:
        ingress = Ingress(front, place=place, certificate=files, gateways=len(house.gateways), look_s=look_s)
        await stack.enter_async_context(ingress)
        for number, gateway in enumerate(house.gateways):
            public = free_socket()
            address = f"127.0.0.1:{public.getsockname()[1]}"
            server = GatewayServer(gateway, public, grace_s=5, ingress_secret=OURS)
            inner = server._servers[0][0]
            task = asyncio.create_task(inner.serve(sockets=[public]))
            house.urls.append(f"http://{address}")
            stack.push_async_callback(_ended, inner, task)
            if standing:
                await ingress.stands(number, address)
        yield ingress, f"{'https' if certificate else 'http'}://127.0.0.1:{port}"


async def _ended(server, task):
    server.should_exit = True
    await task


def post(house, url, body=CHAT, *, key=None, headers=None, **more):
    bearer = {"authorization": f"Bearer {key or house.key}", **(headers or {})}
    return house.http.post(url + "/v1/chat/completions", json=body, headers=bearer, **more)


async def is_served(house, url, **more):
    """Whether a request gets its answer."""
    with contextlib.suppress(aiohttp.ClientError):
        async with post(house, url, **more) as answer:
            return answer.status == 200
    return False


async def until(met):
    """Wait until it holds, however slow the machine is."""
    async with asyncio.timeout(60):
        while not await met():  # noqa: ASYNC110 - it says so to nobody
            await asyncio.sleep(0.03)


async def worker_pid(ingress):
    said = await ingress.ask("show info")
    return int(next(line for line in said.splitlines() if line.startswith("Pid:")).split()[1])
