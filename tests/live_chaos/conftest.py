"""A fabric on machines that come and go, for the tests of this folder."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fabric import house
from fabric.adapters.local_cluster import TOKEN_NAME
from fabric.client import new_request_id
from fabric.sdk import connect
from fabric.wire import fabric_pb2 as pb

HERE = Path(__file__).parent
CONFIG = 'name: chaos\nray: {mode: join, address: "%s"}\nrpc: {listen: "127.0.0.1:0"}\n'
GATE = "ray::Gatehouse"


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.soak)


@dataclass
class Place:
    """The fabric, and what can be done to the machines under it."""

    found: house.Running
    machines: subprocess.Popen
    taken: Path
    """A line for each look at which devices Ray has given away: [clock, {node: devices}]."""

    def customer(self, tokens):
        """A connection that acts for a new customer with so many tokens."""
        account = f"chaos-{new_request_id()[:8]}"
        fabric = self.connect(account)
        opening = pb.OpenAccountRequest(request_id=new_request_id(), account_id=account, name="C", plan="professional")
        fabric.client.call(opening, pb.Accepted)
        fabric.top_up(tokens)
        return fabric

    def connect(self, account):
        key = house.operator_key(Path(self.found.state_dir))
        return connect(self.found.address, key, self.found.ca, account=account)

    def say(self, what, node):
        """`kill` or `add` a node."""
        print(what, node, file=self.machines.stdin, flush=True)
        assert self.machines.stdout.readline() == "done\n"

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
    config.write_text(CONFIG % address)
    found = house.up(config, state_dir=tmp_path / "state", any_port=True)
    made = Place(found, machines, taken)
    yield made
    house.down(tmp_path / "state", gate=True, now=True)
    left = made.gates()
    machines.communicate(timeout=90)
    assert left == []
    assert os.environ["RAY_AUTH_MODE"] == "token"
