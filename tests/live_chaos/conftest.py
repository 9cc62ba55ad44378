"""A fabric on machines that come and go, for the tests of this folder."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fabric import daemon
from fabric.client.client import new_request_id
from fabric.cluster.local import TOKEN_NAME
from fabric.sdk import connect
from fabric.wire import fabric_pb2 as pb
from fabric.wire import format_key, hash_secret, make_secret

HERE = Path(__file__).parent
SQUATTERS = HERE.parent / "cluster" / "ray_cluster" / "squatters.py"
CONFIG = """
name: chaos
ray: {{mode: join, address: "{address}"}}
rpc: {{listen: "127.0.0.1:0"}}
"""
SERVING = """
serving:
  listen: 127.0.0.1:0
  tls: plain
  models:
    - name: byte-lm
      source: {model}
      accelerators: [H100]
      replicas: {{min: 1, max: 1}}
      max_context: 512
      rates: [{{input: 40, cached: 4, output: 400}}]
"""
GATE = "ray::Gatehouse"
NOBODY = "nobody"
"""A holder of this kind is none: what is said of it is for which placement groups the node has resources."""


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.soak)
            item.add_marker(pytest.mark.vllm)


@dataclass
class Place:
    """The fabric, and what can be done to the machines under it."""

    found: daemon.Running
    address: str
    """Of the Ray cluster."""
    machines: subprocess.Popen
    taken: Path
    """A line for each look at which devices Ray has given away outside of leases: [clock, {node: devices}, holders]; without
    an answer of Ray's, [clock, null, why]."""

    def customer(self, tokens):
        """A connection that acts for a new customer with so many tokens."""
        account = f"chaos-{new_request_id()[:8]}"
        fabric = self.connect(account)
        opening = pb.OpenAccountRequest(request_id=new_request_id(), account_id=account, name="C", plan="professional")
        fabric.client.call(opening, pb.Accepted)
        fabric.top_up(tokens, payment_ref=account)
        secret = make_secret()
        asked = pb.CreateKeyRequest(request_id=new_request_id(), secret_sha256=hash_secret(secret), name="chaos")
        key = format_key(fabric.client.call(asked, pb.CreateKeyReply).key_id, secret)
        fabric.close()
        return connect(self.found.address, key, self.found.ca)  # an operator opens no pickle of a job's

    def connect(self, account):
        key = daemon.operator_key(Path(self.found.state_dir))
        return connect(self.found.address, key, self.found.ca, account=account)

    def wait_for_model(self, within_s=300):
        """Until it answers."""
        with self.connect("") as operator:
            deadline = time.monotonic() + within_s
            while True:
                models = operator.client.call(pb.ListModelsRequest(), pb.ListModelsReply).models
                if any(model.state == "ready" for model in models):
                    return
                assert time.monotonic() < deadline, models
                time.sleep(0.5)

    def say(self, what, node):
        """`kill` or `add` a node; whether that was done."""
        print(what, node, file=self.machines.stdin, flush=True)
        answer = self.machines.stdout.readline()
        assert answer in {"done\n", "no\n"}
        return answer == "done\n"

    def stranger(self, way):
        """A program that is none of ours, on the same cluster; it takes a device in this way."""
        command = [
            sys.executable,
            str(SQUATTERS),
            self.address,
            way,
            str(self.taken.with_name(f"told-{time.monotonic_ns()}")),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def looks(self):
        """What was seen of devices that somebody holds outside of leases: (clock, {node: who}), without looks that failed."""
        lines = (json.loads(line) for line in self.taken.read_text().splitlines())
        return [
            (clock, {node: name for node, kind, name in who if kind != NOBODY})
            for clock, nodes, who in lines
            if nodes is not None
        ]

    def squatted(self):
        """How long, in seconds, somebody held devices of each node outside every lease, at the longest, and who that was."""
        longest, since, who = Counter(), {}, {}
        for clock, held in self.looks():
            since = {node: since.get(node, clock) for node in held}
            for node, began in since.items():
                if clock - began > longest[node]:
                    longest[node], who[node] = clock - began, held[node]
        return longest, who

    def left(self):
        """Which devices are taken, and for which placement groups their raylets hold some."""
        _, nodes, holders = json.loads(self.taken.read_text().splitlines()[-1])
        return nodes, holders

    def logged(self, call_id):
        """What the fabric's own logs say of a call, with the trace where there is one."""
        logs = [each for each in Path(self.found.state_dir).rglob("*.log*") if each.is_file()]
        texts = (each.read_text(errors="replace").splitlines() for each in logs)
        return [line[:4_000] for lines in texts for line in lines if call_id and call_id in line]

    def processes(self):
        """All of the cluster."""
        return psutil.Process(self.machines.pid).children(recursive=True)

    def gates(self):
        return [each.pid for each in self.processes() if _name(each).startswith(GATE)]


def _name(process):
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """With a model."""
    from training.demo import byte_lm

    model = tmp_path / "model"
    byte_lm.train(steps=20, export_to=str(model), directory=tmp_path / "run")
    with placed(tmp_path, monkeypatch, SERVING.format(model=model)) as made:
        yield made


@pytest.fixture
def bare_place(tmp_path, monkeypatch):
    """Without."""
    with placed(tmp_path, monkeypatch, "") as made:
        yield made


@contextmanager
def placed(tmp_path, monkeypatch, serving):
    taken = tmp_path / "taken"
    machines = subprocess.Popen(
        [sys.executable, str(HERE / "machines.py"), str(taken)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    address, folder = machines.stdout.readline().split()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(Path(folder) / TOKEN_NAME))
    config = tmp_path / "chaos.yaml"
    config.write_text(CONFIG.format(address=address) + serving)
    left = []
    try:
        found = daemon.up(config, state_dir=tmp_path / "state", any_port=True)
        made = Place(found, address, machines, taken)
        try:
            yield made
        finally:
            daemon.down(tmp_path / "state", gate=True, now=True)
            left = made.gates()
    finally:  # also of a fabric that has not come up
        shutil.copytree(Path(folder) / "session_latest" / "logs", tmp_path / "ray", ignore_dangling_symlinks=True)
        machines.communicate(timeout=90)
    assert left == []
    assert os.environ["RAY_AUTH_MODE"] == "token"
