"""A gateway on a real socket, with stand-ins for the fabric behind it and for the replicas it asks."""

import asyncio
import contextlib
import json
import socket
from dataclasses import dataclass, field

import aiohttp
import msgspec
import uvicorn

from fabric.charging.rates import Rate
from fabric.errors import Unavailable
from fabric.wire import hash_secret
from fabric.wire.keys import format_key
from serving.gateway.app import Gateway, Limits
from serving.gateway.directory import Board, Entitlement, KeyFacts, ModelFacts, Replica
from serving.gateway.server import GatewayServer, bind
from serving.http_server import BoundedProtocol
from tests.serving.engine_standin import TRUST, EngineStandin

SECRET = "s" * 64
RATE = Rate(
    model="tiny",
    version=1,
    input_uhs_per_mtok=1_000_000,
    cached_uhs_per_mtok=250_000,
    output_uhs_per_mtok=2_000_000,
    reasoning_uhs_per_mtok=2_000_000,
)


def key_of(key_id: str) -> str:
    return format_key(key_id, SECRET)


class DirectoryStandin:
    """What the fabric would answer; change it while the gateway runs."""

    def __init__(self) -> None:
        self.keys: dict[str, KeyFacts] = {}
        self.models: dict[str, ModelFacts] = {}
        self.replicas: dict[str, Replica] = {}
        self.reports: list = []
        self.asked = 0
        self.away = False
        self._changed = asyncio.Event()

    def add_key(self, key_id: str, account_id: str, **facts) -> str:
        models = facts.pop("models", None)
        entitled = (
            models if models is not None else {name: Entitlement(model=name, free_uhs=10**9) for name in self.models}
        )
        self.keys[key_id] = KeyFacts(
            key_id=key_id, account_id=account_id, secret_sha256=hash_secret(SECRET), models=entitled,
            **{"free_uhs": 10**9, **facts},
        )  # fmt: skip
        return key_of(key_id)

    def revoke(self, key_id: str) -> None:
        self.keys[key_id] = msgspec.structs.replace(self.keys[key_id], revoked=True)

    def show(self, replica: Replica) -> None:
        self.replicas[replica.replica_id] = replica
        self.change()

    def change(self) -> None:
        self._changed.set()

    async def key(self, key_id: str) -> KeyFacts | None:
        self.asked += 1
        if self.away:
            raise Unavailable("away")
        return self.keys.get(key_id)

    async def boards(self):
        while True:
            self._changed.clear()
            yield Board(models=dict(self.models), replicas=tuple(self.replicas.values()))
            await self._changed.wait()
            if self.away:
                raise Unavailable("away")

    async def report(self, queues) -> None:
        self.reports.append(queues)


@dataclass
class House:
    """Everything a test needs."""

    directory: DirectoryStandin
    gateways: list[Gateway] = field(default_factory=list)
    servers: list[GatewayServer] = field(default_factory=list)
    engines: dict[str, EngineStandin] = field(default_factory=dict)
    urls: list[str] = field(default_factory=list)
    admin: str = ""
    key: str = ""
    http: aiohttp.ClientSession | None = None
    stop_engine: dict = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def engine(self) -> EngineStandin:
        return self.engines["r1"]

    @property
    def gateway(self) -> Gateway:
        return self.gateways[0]

    def post(self, path="/v1/chat/completions", body=None, *, key=None, at=0, headers=None, **given):
        given.setdefault("json", body if body is not None else CHAT)
        bearer = {"authorization": f"Bearer {self.key if key is None else key}", **(headers or {})}
        return self.http.post(self.urls[at] + path, headers=bearer, **given)

    def get(self, path, *, key=None, at=0):
        return self.http.get(
            self.urls[at] + path, headers={"authorization": f"Bearer {self.key if key is None else key}"}
        )

    async def settled(self, condition, within_s=10.0):
        """Wait until it holds: what is true in the end, however slow the machine is."""
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110 - it says so to nobody
                await asyncio.sleep(0.01)


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
STREAM = {**CHAT, "stream": True}


async def stalled_until_let_go(house, url):
    """A client that asks for very much and reads nothing, until the engine is stopped for it: its reader and writer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), limit=1_024)
    body = json.dumps({**STREAM, "max_tokens": 10**7}).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        + f"authorization: Bearer {house.key}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    )  # fmt: skip
    await house.settled(lambda: house.engine.active == 1)
    await house.settled(lambda: house.engine.active == 0, within_s=30)
    (produced,) = house.engine.produced.values()
    assert produced < 10**6, "what nobody reads is not made: buffers are bounded all the way"
    await house.settled(lambda: not house.gateway._open)
    return reader, writer


def free_socket() -> socket.socket:
    return bind("127.0.0.1:0", shared=False)


@contextlib.asynccontextmanager
async def served(app, *, certificate=None):
    """An ASGI application at an address of its own, by the protocol that a gateway is served by; yields its URL."""
    opened = free_socket()
    tls = {"ssl_certfile": certificate.cert, "ssl_keyfile": certificate.key} if certificate else {}
    config = uvicorn.Config(
        app, **tls, http=BoundedProtocol, log_config=None, access_log=False, lifespan="off", ws="none",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    task = asyncio.create_task(server.serve(sockets=[opened]))
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{opened.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await task


@contextlib.asynccontextmanager
async def house_of(
    tmp_path,
    *,
    replicas=1,
    gateways=1,
    limits=None,
    capacity=64,
    trust=TRUST,
    model="tiny",
    with_admin=False,
    server_options=None,
    **gateway_options,
):
    """A directory with a model, a key and replicas, and gateways before them."""
    directory = DirectoryStandin()
    directory.models[model] = ModelFacts(
        name=model, created_at_us=1_700_000_000_000_000, max_context=512, rates=(RATE,), state="ready", calls_tools=True
    )
    house = House(directory)
    house.key = directory.add_key("k1", "ann")
    async with contextlib.AsyncExitStack() as stack:
        house.http = await stack.enter_async_context(aiohttp.ClientSession())
        for number in range(1, replicas + 1):
            engine = house.engines[f"r{number}"] = EngineStandin()
            inner = contextlib.AsyncExitStack()
            address = await inner.enter_async_context(served(engine))
            house.stop_engine[f"r{number}"] = inner.aclose
            stack.push_async_callback(inner.aclose)
            directory.show(
                Replica(replica_id=f"r{number}", model="tiny", address=address, capacity=capacity, accelerator="H100")
            )
        for number in range(gateways):
            gateway = Gateway(
                directory, trust=trust, repeats_file=tmp_path / "repeats.sqlite",
                limits=limits or Limits(requests_per_s=100_000), gateways=gateways, name=f"g{number}", **gateway_options,
            )  # fmt: skip
            public, admin = free_socket(), free_socket() if with_admin else None
            server = GatewayServer(gateway, public, admin=admin, grace_s=5, **(server_options or {}))
            house.urls.append(f"http://127.0.0.1:{public.getsockname()[1]}")
            house.admin = f"http://127.0.0.1:{admin.getsockname()[1]}" if admin else ""
            house.gateways.append(gateway)
            house.servers.append(server)
            task = asyncio.create_task(server.serve())
            stack.push_async_callback(_ended, server, task)
            async with asyncio.timeout(10):
                while not (server.started and gateway.is_ready()):  # noqa: ASYNC110 - it says so to nobody
                    await asyncio.sleep(0.005)
        yield house


async def _ended(server, task):
    server.stop()
    await task
