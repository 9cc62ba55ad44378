"""Money through random kills: gateways, replicas and their ingress die by SIGKILL while many accounts stream, and the books
balance.

The gate, the door, the ledger's client, the meter, the outbox, the front and the gateways are the real ones; the engine is a
stand-in that notes each token it makes in a file of its own.
"""

import asyncio
import contextlib
import json
import random
import signal
import ssl
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import aiohttp
import psutil
import pytest

from fabric.client.client import new_request_id
from fabric.errors import Unavailable
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import TopUp
from fabric.wire import fabric_pb2 as pb
from serving.fabric_client import FabricClient
from serving.gateway.__main__ import secret_of
from serving.gateway.address import certificate_of
from serving.host.haproxy import Frontend
from serving.host.ingress import Ingress
from tests.doors.conftest import House as Doors
from tests.serving.gateway.house import RATE, free_socket
from tests.serving.gateway.test_fabric_directory import Process, announce

ACCOUNTS = {"rich": 10**9, "middling": 30_000, "poor": 2_500, "broke": 1}
SECONDS = 8
PATIENCE_S = 30


def port():
    with free_socket() as probe:
        return probe.getsockname()[1]


class Replica:
    """A metered stand-in as a process that can be killed, and comes back at the same address with the same outbox."""

    def __init__(self, doors, state_dir, name):
        self.name, self.port, self.state_dir = name, port(), state_dir
        self.command = [
            sys.executable, "-m", "tests.serving.metered_standin", name, str(state_dir), doors.address, str(doors.tls.ca),
            doors.root, secret_of(state_dir, "trust"), str(self.port), "0.004",
        ]  # fmt: skip
        self.start()

    def start(self):
        self.log = (self.state_dir / f"{self.name}.log").open("ab")
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)

    async def answers(self):
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.1)

    def shown(self):
        state = "ready" if self.process.poll() is None else "failed"
        return pb.Replica(
            replica_id=self.name, model="tiny", address=f"http://127.0.0.1:{self.port}", state=state, accelerator="H100",
            capacity=16,
        )  # fmt: skip

    def end(self, number):
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.log.close()
        return code

    def engine_counts(self):
        """By call: (prompt tokens, completion tokens) that the engine made."""
        counts = {}
        for line in (self.state_dir / f"{self.name}.engine").read_text().splitlines():
            call, count, what = line.split()
            prompt, made = counts.get(call, (0, 0))
            counts[call] = (int(count), made) if what == "prompt" else (prompt, int(count))
        return counts


@pytest.fixture
def doors(tmp_path):
    made = Doors(tmp_path / "state", sandbox_payments=True)
    rate = pb.Rate(
        input_uhs_per_mtok=RATE.input_uhs_per_mtok, cached_uhs_per_mtok=RATE.cached_uhs_per_mtok,
        output_uhs_per_mtok=RATE.output_uhs_per_mtok, reasoning_uhs_per_mtok=RATE.reasoning_uhs_per_mtok,
    )  # fmt: skip
    spec = pb.ModelSpec(name="tiny", source="/models/x", accelerators=["H100"])
    made.client(made.root).call(pb.OfferModelRequest(request_id=new_request_id(), spec=spec, rates=[rate]), pb.Accepted)
    for account, uhs in ACCOUNTS.items():
        made.port.seed(
            OpenAccount(account_id=account, name=account, plan="starter"), TopUp(account_id=account, amount_uhs=uhs)
        )
    yield made
    made.close()


async def customer(account, key, url, http, rng, until, seen):
    """Asks, reads, leaves in the middle, repeats: as customers do."""
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        stream = rng.random() < 0.6
        body = {
            "model": "tiny",
            "max_tokens": rng.randint(1, 120),
            "stream": stream,
            "messages": [{"role": "user", "content": "x" * rng.randint(1, 400)}],
        }
        headers = {"authorization": f"Bearer {key}"}
        if rng.random() < 0.2:
            headers["idempotency-key"] = f"{account}-{rng.random()}"
        leave_after_s = rng.random() * 0.3 if rng.random() < 0.2 else PATIENCE_S
        began = loop.time()
        try:
            async with asyncio.timeout(leave_after_s), http.post(url, json=body, headers=headers) as answer:
                raw = await answer.read()
                call = answer.headers.get("x-fabric-call")
                seen[answer.status] += 1
                if answer.status == 200:
                    whole = b"[DONE]" in raw if stream else "choices" in json.loads(raw)
                    seen["whole" if whole else "error event"] += 1
                    if whole and stream:
                        seen[account, "words"] += raw.count(b'"content":"w')
                elif answer.status in {402, 429}:
                    await asyncio.sleep(0.1)
                assert call or answer.status in {502, 503}  # the ingress' own word
        except (aiohttp.ClientError, TimeoutError):
            seen["gone" if leave_after_s < PATIENCE_S or loop.time() - began < PATIENCE_S else "hung"] += 1


class Gateways:
    """Two, which share a port, or stand behind an ingress."""

    def __init__(self, state_dir, listen, ingress):
        self.state_dir, self.ingress = state_dir, ingress
        where = ("--listen", "127.0.0.1:0", "--behind-ingress") if ingress else ("--listen", listen)
        self.arguments = (*where, "--gateways", "2", "--grace-s", "20", "--log-level", "error")
        self.processes = [None, None]

    async def start(self, place):
        self.processes[place] = Process(self.state_dir, *self.arguments)
        said = await self.processes[place].said()
        if self.ingress:
            await self.ingress.stands(place, said["address"])

    async def kill(self, place):
        self.processes[place].end(signal.SIGKILL)
        if self.ingress:
            await self.ingress.falls(place)
        await self.start(place)

    def end(self):
        return [process.end() for process in self.processes if process and process.process.poll() is None]


def ingress_at(listen, state_dir):
    front = Frontend(listen=listen, certificate=None, secret=secret_of(state_dir, "ingress"), socket=Path())
    files = certificate_of(listen, state_dir, cert=None, key=None, is_plain=False)
    return Ingress(front, place=state_dir, certificate=files, gateways=2)


async def run(doors, state_dir, seed, *, behind, seconds=SECONDS, harm=None):
    listen = f"127.0.0.1:{port()}"
    async with ingress_at(listen, state_dir) if behind else contextlib.nullcontext() as ingress:
        return await ran(doors, state_dir, seed, listen, ingress, seconds=seconds, harm=harm)


async def ran(doors, state_dir, seed, listen, ingress, *, seconds, harm):
    """What happens when customers ask and `harm` is done; by default, processes are killed."""
    rng = random.Random(seed)
    replicas = [Replica(doors, state_dir, name) for name in ("r1", "r2")]
    gateways = Gateways(state_dir, listen, ingress)
    for place in range(2):
        await gateways.start(place)
    ledger = FabricClient(doors.profile(doors.root))
    seen = Counter()

    async def report():
        while True:
            shown = [replica.shown() for replica in replicas]
            with contextlib.suppress(Unavailable):
                await ledger.report(pb.ReportServingRequest(reporter="host", replicas=shown))
            await asyncio.sleep(0.2)

    over = asyncio.Event()

    async def kill():
        while not over.is_set():
            await asyncio.sleep(rng.uniform(0.7, 1.5))
            dice = rng.random()
            if dice < 0.15 and ingress:
                for each in psutil.Process(ingress._process.pid).children():
                    each.kill()
            elif dice < 0.6:
                replica = rng.choice(replicas)
                replica.end(signal.SIGKILL)
                await asyncio.sleep(0.3)
                replica.start()
            else:
                await gateways.kill(rng.randrange(2))

    reporting = asyncio.create_task(report())
    trusted = ssl.create_default_context(cafile=str(doors.tls.ca))
    keys = {account: doors.key(account, account) for account in ACCOUNTS}
    url = f"https://{listen}/v1/chat/completions"
    try:
        connector = aiohttp.TCPConnector(limit=0, ssl=trusted, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as http:
            until = asyncio.get_running_loop().time() + seconds
            customers = [
                customer(account, keys[account], url, http, random.Random(f"{seed}/{account}/{number}"), until, seen)
                for account in ACCOUNTS
                for number in range(3)
            ]
            killing = asyncio.create_task(kill() if harm is None else harm(over, rng))
            await asyncio.gather(*customers)
            over.set()
            await killing  # whoever was killed last is back
    finally:
        reporting.cancel()
        codes = gateways.end()
        for replica in replicas:
            if replica.process.poll() is None:
                await replica.answers()
                codes.append(replica.end(signal.SIGTERM))
        await ledger.close()
    return replicas, seen, codes


@pytest.mark.parametrize(
    ("seed", "behind"),
    [(1, True), *(pytest.param(seed, seed % 2 == 1, marks=pytest.mark.soak) for seed in (2, 3, 4, 5))],
)
async def test_whoever_dies_nothing_is_overspent_nothing_leaks_and_records_are_what_the_engine_made(
    doors, tmp_path, seed, behind
):
    state_dir = tmp_path / "state"
    announce(doors, state_dir)
    replicas, seen, codes = await run(doors, state_dir, seed, behind=behind)
    logs = "\n".join(path.read_text()[-2_000:] for path in state_dir.glob("*.log"))
    assert codes == [0, 0, 0, 0], logs
    is_booked_once_and_right(doors, replicas, seen)


def is_booked_once_and_right(doors, replicas, seen):
    made = {}
    for replica in replicas:
        for call, counts in replica.engine_counts().items():
            assert call not in made, "a call ran on two replicas"
            made[call] = counts
    recorded = {}
    charged = defaultdict(int)
    for account, given in ACCOUNTS.items():
        reader = doors.client(doors.root, account=account)
        for record in reader.stream(pb.UsageRequest(), pb.Cdr):
            assert record.cdr_id not in recorded, "a call was charged twice"
            recorded[record.cdr_id] = record
            charged[account] += record.charged_uhs
        balance = reader.call(pb.BalanceRequest(), pb.BalanceReply)
        assert balance.held_uhs == 0, "a hold leaked"
        assert balance.debt_uhs == 0
        assert balance.free_uhs == given - charged[account] >= 0
    # Every call that reached the engine is recorded, and is charged no token more than the engine made. The token that was
    # made but not yet counted when a replica was killed, and the one at which the tokens ran out, are not charged.
    assert set(recorded) == set(made)
    for call, record in recorded.items():
        prompt, completion = made[call]
        assert record.prompt_tokens == prompt
        assert completion - 1 <= record.completion_tokens <= completion, call
        assert (
            record.charged_uhs
            == (prompt * RATE.input_uhs_per_mtok + record.completion_tokens * RATE.output_uhs_per_mtok) // 10**6
        )
    assert charged["broke"] == 0
    assert seen["whole"] > 0
    assert seen[402] > 0
    print(dict(seen), len(recorded), dict(charged))
