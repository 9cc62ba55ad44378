"""What a lab has before the fabric comes: a Ray cluster, PostgreSQL and an S3 store, each known by its address alone."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import psutil
import pytest

from fabric.cluster.local import TOKEN_NAME
from fabric.sdk import connect
from fabric.wire import fabric_pb2 as pb
from tests.shared import shared

HERE = Path(__file__).parent
PASSWORD = "pg-very-secret"
SECRET_KEY = "s3-very-secret"
CONFIG = """
name: lab
ray: {{mode: join, address: "${{RAY_ADDRESS}}"}}
journal: {{kind: postgres, dsn: "${{FABRIC_PG_DSN}}"}}
archive:
  kind: s3
  bucket: lab
  prefix: {prefix}
  region: us-east-1
  endpoint: {endpoint}
  credentials: {{access_key_id: "${{AWS_ACCESS_KEY_ID}}", secret_access_key: "${{AWS_SECRET_ACCESS_KEY}}"}}
rpc: {{listen: "127.0.0.1:0"}}
"""


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.postgres)


@dataclass
class Lab:
    """The lab, and `fabric` as its operator types it: secrets are in that environment and nowhere else."""

    place: Path
    cluster: subprocess.Popen
    ray_address: str
    dashboard: str
    session: str
    """Where Ray keeps its logs."""
    endpoint: str
    dsn: str
    up_as: dict = field(default_factory=dict)

    @property
    def ray_token(self):
        return Path(self.session) / TOKEN_NAME

    def config(self, *, prefix="archive"):
        file = self.place / f"{prefix}.yaml"
        file.write_text(CONFIG.format(prefix=prefix, endpoint=self.endpoint))
        return file

    def run(self, *words, code=0):
        """A command, which has to end with `code`: its JSON."""
        environment = {
            **os.environ,
            "RAY_ADDRESS": self.ray_address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.ray_token),
            "FABRIC_PG_DSN": self.dsn,
            "AWS_ACCESS_KEY_ID": "AKIALAB",
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "XDG_CONFIG_HOME": str(self.place / "config"),
            "FABRIC_STATE_DIR": str(self.place / "state"),
        }
        command = [sys.executable, "-c", "from fabric.cli import main; main()", *map(str, words), "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stdout + done.stderr + self.log()
        return json.loads(done.stdout if code == 0 else done.stderr)

    def up(self):
        self.up_as = self.run("up", "--config", self.config())
        return self.up_as

    def connect(self, account):
        """As the operator, acting for a customer."""
        key = (self.place / "state" / "operator.key").read_text().strip()
        return connect(self.up_as["address"], key, self.up_as["ca"], account=account)

    def customer(self, account):
        """A new one, with ten tokens."""
        fabric = self.connect(account)
        opening = pb.OpenAccountRequest(request_id=f"open-{account}", account_id=account, name=account, plan="starter")
        fabric.client.call(opening, pb.Accepted)
        fabric.top_up("10")
        return fabric

    def gates(self):
        """The pids of the gates that run on the cluster."""
        found = psutil.Process(self.cluster.pid).children(recursive=True)
        return [process.pid for process in found if process.name().startswith("ray::Gatehouse")]

    def log(self):
        file = self.place / "state" / "fabric.log"
        return file.read_text() if file.exists() else ""


@contextmanager
def labelled_cluster():
    process = subprocess.Popen(
        [sys.executable, str(HERE / "labelled_cluster.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    address, dashboard, session = process.stdout.readline().split()
    try:
        yield {"cluster": process, "ray_address": address, "dashboard": dashboard, "session": session}
    finally:
        process.communicate(timeout=60)


@pytest.fixture(scope="session")
def bucket(moto_url):
    """The lab's bucket, as an administrator sees it."""
    own = {"aws_access_key_id": "admin", "aws_secret_access_key": "admin", "region_name": "us-east-1"}
    made = boto3.resource("s3", endpoint_url=moto_url, **own).Bucket("lab")
    made.create()
    return made


@pytest.fixture
def lab(request, moto_url, bucket, postgres_server, tmp_path_factory):
    """A lab where the fabric is up: one for this folder."""
    dsn = postgres_server.dsn.replace("fabric@", f"fabric:{PASSWORD}@")
    return shared.of(request, HERE, "lab", lambda: opened(tmp_path_factory.mktemp("lab"), endpoint=moto_url, dsn=dsn))


@contextmanager
def opened(place, **known):
    with labelled_cluster() as ray_cluster:
        made = Lab(place=place, **ray_cluster, **known)
        made.up()
        yield made
        made.run("down", "--gate")
        assert made.gates() == []
