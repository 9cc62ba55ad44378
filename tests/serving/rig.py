"""One real engine for all live tests, in a process of its own; the ledger is the stand-in, in this process."""

import os
import subprocess
import sys
import threading
import time
import uuid
from functools import partial
from pathlib import Path

import httpx
import msgspec
import psutil

from fabric.charging.rates import Rate, charge_uhs
from serving.metering.slices import Terms
from serving.replica.listener import ReplicaSpec

from .ledger_standin import LedgerStandIn
from .ledger_wire import LedgerServer

IN, CACHED, OUT = 40, 4, 400
RATE = Rate(
    version=1,
    input_uhs_per_mtok=IN * 10**6,
    cached_uhs_per_mtok=CACHED * 10**6,
    output_uhs_per_mtok=OUT * 10**6,
    reasoning_uhs_per_mtok=OUT * 10**6,
)
QUICK = Terms(grant_tokens=32, idle_us=300_000, report_us=1_000_000)
"""Small slices that are given back soon: a test needn't wait."""
TRUST = "a secret of the tests"
PROCESS = Path(__file__).parent / "replica_process.py"


def _as_a_gateway(body, said):
    """A gateway says in a header which model it has looked at; by that an adapter answers."""
    model = body.get("model") if isinstance(body, dict) else None
    return {"model": model, **said} if isinstance(model, str) else said


class Rig:
    """The replica's process, its ledger, and requests as a gateway would send them."""

    def __init__(self, folder, state_dir, *, engine_args=(), terms=QUICK, adapters=()):
        self.ledger = LedgerStandIn(partial(charge_uhs, RATE), clock=lambda: time.time_ns() // 1_000)
        self.ledger.charge_of = {each.name: partial(charge_uhs, each.rate) for each in adapters}
        self.wire = LedgerServer(self.ledger)
        self.spec = ReplicaSpec(
            replica_id="r1",
            model="byte-lm",
            folder=str(folder),
            accelerator="CPU",
            rate=RATE,
            state_dir=str(state_dir),
            trust=TRUST,
            max_context=512,
            kv_bytes=64 << 20,
            on_cpu=True,
            engine_args=engine_args,
            terms=terms,
            adapters=adapters,
        )
        self.process, self.address, self.lines = None, "", []

    def start(self):
        # -W ignore: warnings of the engine's own code are not ours to mend
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", PROCESS, msgspec.json.encode(self.spec).decode(), str(self.wire.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("serving "):
                self.address = line.split()[1]
                break
        else:
            raise AssertionError("the replica did not start:\n" + "".join(self.lines[-40:]))
        self.reader = threading.Thread(target=_read, args=(self.process.stdout, self.lines), daemon=True)
        self.reader.start()
        return self

    def family(self):
        return [child for child in psutil.Process(self.process.pid).children(recursive=True) if child.is_running()]

    def stop(self):
        family = self.family()
        self.process.terminate()
        assert self.process.wait(60) == 0
        _, alive = psutil.wait_procs(family, timeout=10)
        self.reader.join(10)
        return alive

    def headers(self, account, **said):
        call_id = said.pop("call_id", None) or f"call_{uuid.uuid4().hex}"
        return {
            "x-fabric-trust": TRUST,
            "x-fabric-account": account,
            "x-fabric-key": f"key-of-{account}",
            "x-fabric-call": call_id,
            **{f"x-fabric-{name.replace('_', '-')}": value for name, value in said.items()},
        }

    def post(self, path, account, body, **said):
        said = _as_a_gateway(body, said)
        return httpx.post(self.address + path, json=body, headers=self.headers(account, **said), timeout=180)

    def events(self, path, account, body, **said):
        """The data lines of a stream, decoded; the last is "[DONE]" where the surface has it."""
        said = _as_a_gateway(body, said)
        with httpx.stream(
            "POST", self.address + path, json=body, headers=self.headers(account, **said), timeout=60
        ) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    data = line.removeprefix("data: ")
                    yield data if data == "[DONE]" else msgspec.json.decode(data)

    def account(self, *, prompt=None, completion=None, uhs=None):
        """A new account that can pay exactly for so many tokens."""
        name = f"a{uuid.uuid4().hex[:10]}"
        with self.wire.lock:
            self.ledger.top_up(name, uhs if uhs is not None else prompt * IN + completion * OUT)
        return name

    def free_again(self, account, *, within_s=20.0):
        """What the account has free when nothing of it is held any more: a slice is given back a moment after a refusal."""
        until = time.monotonic() + within_s
        while self.ledger.held(account) and time.monotonic() < until:
            time.sleep(0.05)
        return self.ledger.free[account]

    def settled(self, account, *, calls=1, within_s=15.0):
        """The account's calls when they are all settled and nothing is held any more."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            with self.wire.lock:
                found = [call for call in self.ledger.calls.values() if call.account_id == account]
                if len(found) >= calls and self.ledger.held(account) == 0:
                    self.ledger.check()
                    assert len(found) == calls
                    return sorted(found, key=lambda call: call.call_id)
            time.sleep(0.05)
        raise AssertionError(f"{account}: {found}, held {self.ledger.held(account)}")

    def counter(self, name):
        text = httpx.get(self.address + "/metrics", headers=self.headers("metrics"), timeout=30).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"vllm:{name}{{"))


def _read(stream, lines):
    with stream:
        lines.extend(stream)
