"""What a gateway costs: CPU for each request and stream, time added to the first token, idle streams, fairness.

The ingress (HAProxy) before it adds what stands in its own column: CPU of its own, and time that includes the gateway's.

Beside LiteLLM's proxy, in an environment of its own that is made on demand (in the user's cache), before the same upstream
in the same run. CPU is the process' own, from /proc, so that what else the machine does changes little:
`RPS per core` is 1 s by the CPU of a request. Goals: at least 1,000 RPS per core, at most 1.3 ms added to the first token
and 10 ms of CPU for a stream of 64 chunks.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import uvloop

from fabric.system.ports import free_port
from serving.gateway.fairness import FairQueue, QueueTicket
from serving.host.haproxy import Frontend, binary, configuration
from tests.bench.yardstick import print_yardstick
from tests.serving.gateway.house import key_of

LITELLM = "litellm[proxy]==1.106.2"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Say a word. " * 8}], "max_tokens": 64}
STREAM = {**BODY, "stream": True}
IDLE = {**STREAM, "user": "idle"}
TICKS = os.sysconf("SC_CLK_TCK")
SECRET = "a-secret-of-the-benchmark"


class Target:
    """Something that answers, its process, and how to ask it."""

    def __init__(self, name, port, key, process):
        self.name, self.port, self.process = name, port, psutil.Process(process.pid)
        self.key = key

    def request(self, body):
        raw = json.dumps(body, separators=(",", ":")).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(raw)}\r\nx-fabric-call: c\r\n\r\n"
        )
        return head.encode() + raw

    def cpu_s(self):
        family = [self.process, *self.process.children(recursive=True)]
        return sum(sum(each.cpu_times()[:2]) for each in family)

    def rss_mb(self):
        return self.process.memory_info().rss / 1e6


class Connection:
    """HTTP/1.1 by hand: the one who measures must cost less than what is measured."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, target):
        return cls(*await asyncio.open_connection("127.0.0.1", target.port))

    async def whole(self, request):
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], head
        lower = head.lower()
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        await self.reader.readexactly(length)

    async def first(self, request):
        """Seconds until the first event of a stream."""
        began = time.perf_counter()
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], head
        await self.reader.readuntil(b"data: ")
        return time.perf_counter() - began

    async def rest(self):
        await self.reader.readuntil(b"[DONE]")
        await self.reader.readuntil(b"0\r\n\r\n")

    def close(self):
        self.writer.close()


async def requests(target, *, clients, seconds):
    """How many answers, the CPU they took, and the time."""
    request = target.request(BODY)
    done = 0
    began, cpu = time.perf_counter(), target.cpu_s()

    async def one():
        nonlocal done
        connection = await Connection.open(target)
        while time.perf_counter() - began < seconds:
            await connection.whole(request)
            done += 1
        connection.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return done, target.cpu_s() - cpu, time.perf_counter() - began


async def streams(target, *, clients, rounds):
    request = target.request(STREAM)
    cpu = target.cpu_s()

    async def one():
        for _ in range(rounds):
            connection = await Connection.open(target)
            await connection.first(request)
            await connection.rest()
            connection.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return 1_000 * (target.cpu_s() - cpu) / (clients * rounds)


async def first_tokens(targets, *, rounds):
    """Time to the first event, asked of each in turn on connections that stay."""
    times = {target.name: [] for target in targets}
    connections = {target.name: await Connection.open(target) for target in targets}
    for _ in range(rounds):
        for target in targets:
            times[target.name].append(1_000 * await connections[target.name].first(target.request(STREAM)))
            await connections[target.name].rest()
    for connection in connections.values():
        connection.close()
    return times


async def idle(target, *, count):
    """Memory for each idle stream, and what another request takes meanwhile."""
    before = target.rss_mb()
    held = []
    for _ in range(count):
        connection = await Connection.open(target)
        await connection.first(target.request(IDLE))
        held.append(connection)
    mb = target.rss_mb() - before
    connection = await Connection.open(target)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        await connection.whole(target.request(BODY))
        times.append(1_000 * (time.perf_counter() - began))
    for each in held:
        each.close()
    return mb, statistics.median(times)


def jain(values):
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def fairness():
    """Tokens served to ten accounts that ask for up to ten times as much as each other, first come and by turns."""
    queue, served, fifo = FairQueue(), dict.fromkeys(range(10), 0), []
    for account in range(10):
        for _ in range(40 * (account + 1)):
            fifo.append((account, 100))
            queue.put(QueueTicket(str(account), rank=1, cost=100))
    for _ in range(400):
        served[int(queue.take(0).account)] += 100
    shares = [40 * (account + 1) for account in range(10)]  # of whoever serves in the order of arrival, mixed well
    return jain(list(served.values())), jain(shares)


def start(arguments, stack, *, log=None):
    process = subprocess.Popen(arguments, stdout=log or subprocess.DEVNULL, stderr=log or subprocess.DEVNULL)
    stack.append(process)
    return process


def wait_for(port, process, within_s):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            time.sleep(0.1)
        else:
            return True
    return False


def start_ingress(port, behind_port, folder, stack, *, log):
    """HAProxy before the gateway, as the fabric configures it; its CPU is its own, without the gateway's."""
    front = Frontend(
        listen=f"127.0.0.1:{port}", certificate=None, secret=SECRET, socket=folder / "orders", connections=4_096
    )
    file = folder / "haproxy.cfg"
    file.write_text(configuration(front, [f"127.0.0.1:{behind_port}"]))
    return start([str(binary()), "-db", "-f", str(file)], stack, log=log)


def litellm_python():
    """An environment with LiteLLM's proxy, or why there is none."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "token-fabric-bench" / "litellm"
    python = place / "bin" / "python"
    if (place / "ready").exists():
        return python, ""
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    for command in (
        [uv, "venv", "-q", "--python", sys.executable, str(place)],
        [uv, "pip", "install", "-q", "--python", str(python), LITELLM],
    ):
        made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if made.returncode:
            return None, made.stderr.strip().splitlines()[-1] if made.stderr.strip() else "uv failed"
    (place / "ready").touch()
    return python, ""


def start_litellm(upstream_port, folder, stack):
    python, why = litellm_python()
    if python is None:
        return None, why
    config = {
        "model_list": [
            {
                "model_name": "tiny",
                "litellm_params": {
                    "model": "openai/tiny",
                    "api_base": f"http://127.0.0.1:{upstream_port}/v1",
                    "api_key": "x",
                },
            }
        ],
        "general_settings": {"master_key": "sk-a-long-enough-key-for-a-benchmark"},
    }
    file = Path(folder) / "litellm.json"
    file.write_text(json.dumps(config))
    port = free_port()
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    environment.pop("PYTHONPATH", None)
    log = (Path(folder) / "litellm.log").open("wb")
    process = subprocess.Popen(
        [python.parent / "litellm", "--config", str(file), "--port", str(port), "--host", "127.0.0.1"],
        env=environment, stdout=log, stderr=log, cwd=folder,
    )  # fmt: skip
    stack.append(process)
    if not wait_for(port, process, 120):
        return None, "it did not start: " + (Path(folder) / "litellm.log").read_text()[-300:]
    return Target("litellm", port, config["general_settings"]["master_key"], process), ""


async def measure(targets, *, quick):
    """Everything, and the numbers as JSON."""
    upstream, gateway, *others = targets
    found = {}
    seconds = 3 if quick else 8
    for target in (gateway, *others):
        await requests(target, clients=4, seconds=1)  # warm
        done, cpu_s, wall_s = await requests(target, clients=32, seconds=seconds)
        found[target.name] = {
            "rps": done / wall_s,
            "cpu_ms_per_request": 1_000 * cpu_s / done,
            "rps_per_core": done / cpu_s,
        }
        rounds = 2 if target is not gateway else 8
        found[target.name]["cpu_ms_per_64_chunk_stream"] = await streams(
            target, clients=16 if target is gateway else 4, rounds=rounds
        )
    times = await first_tokens(targets, rounds=15 if quick else 60)
    base = statistics.median(times[upstream.name])
    for target in (gateway, *others):
        each = times[target.name]
        found[target.name]["first_token_added_ms_p50"] = statistics.median(each) - base
        found[target.name]["first_token_ms_p99"] = statistics.quantiles(each, n=100)[98]
    found["upstream"] = {
        "first_token_ms_p50": base,
        "first_token_ms_p99": statistics.quantiles(times[upstream.name], n=100)[98],
    }
    count = 200 if quick else 1_000
    mb, other_ms = await idle(gateway, count=count)
    found["idle"] = {"streams": count, "kb_each": 1_000 * mb / count, "another_request_ms_p50": other_ms}
    turns, arrival = fairness()
    found["jain"] = {"by_turns": turns, "in_order_of_arrival": arrival}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter, and less certain")
    parser.add_argument("--without-litellm", action="store_true")
    given = parser.parse_args()
    print_yardstick()
    stack = []
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        try:
            upstream_port, gateway_port, behind_port, ingress_port = (free_port() for _ in range(4))
            upstream = start([sys.executable, "-m", "tests.bench.sse_upstream", str(upstream_port)], stack, log=log)
            command = [
                sys.executable,
                "-m",
                "tests.bench.gateway_process",
                str(gateway_port),
                f"http://127.0.0.1:{upstream_port}",
                str(behind_port),
                SECRET,
            ]
            gateway = start(command, stack, log=log)
            ready = wait_for(upstream_port, upstream, 60) and wait_for(gateway_port, gateway, 60)
            ingress = start_ingress(ingress_port, behind_port, Path(folder), stack, log=log)
            ready = ready and wait_for(ingress_port, ingress, 60)
            assert ready, (Path(folder) / "log").read_text()
            targets = [
                Target("upstream", upstream_port, "x", upstream),
                Target("gateway", gateway_port, key_of("bench"), gateway),
                Target("ingress", ingress_port, key_of("bench"), ingress),
            ]
            time.sleep(1)
            peer, why = (
                (None, "not asked for") if given.without_litellm else start_litellm(upstream_port, folder, stack)
            )
            if peer is None:
                print(f"LiteLLM is left out: {why}")
            else:
                targets.append(peer)
            found = uvloop.run(measure(targets, quick=given.quick))
        finally:
            for process in stack:
                process.kill()
                process.wait()
    show(found)


def show(found):
    ours, theirs = found["gateway"], found.get("litellm")
    print(f"{'':34}{'gateway':>10}{'litellm':>10}{'ratio':>8}   goal")
    goals = {"rps_per_core": "≥ 1000", "cpu_ms_per_64_chunk_stream": "≤ 10", "first_token_added_ms_p50": "≤ 1.3"}
    for name, value in ours.items():
        peer = f"{theirs[name]:>10.2f}{theirs[name] / value if value else 0:>8.2f}" if theirs else f"{'-':>10}{'-':>8}"
        print(f"{name:34}{value:>10.2f}{peer}   {goals.get(name, '')}")
    for name in ("ingress", "upstream", "idle", "jain"):
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in found[name].items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
