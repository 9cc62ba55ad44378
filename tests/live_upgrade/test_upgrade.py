"""An upgrade with a job on the fabric: the wheel of another commit has started it, this one's goes on with it.

The environment is one of its own, as a node's is: it has the old wheel, a Ray cluster and a fabric are started with it, and
then the new wheel is put in its place under everything that runs. FABRIC_UPGRADE_FROM names the commit; the one before if
nothing does.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

import pytest

from fabric.audit.verify import verify_export
from fabric.cluster.local import TOKEN_NAME
from fabric.sdk import connect
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb

pytestmark = [pytest.mark.ray, pytest.mark.soak]

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "tests" / "live_lab" / "labelled_cluster.py"
OLD = os.environ.get("FABRIC_UPGRADE_FROM", "HEAD~1")
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
WAITS_S = 180
CONFIG = """
name: lab
ray: {{mode: join, address: "${{RAY_ADDRESS}}"}}
journal: {{kind: sqlite, path: {place}/journal.db}}
archive: {{kind: directory, path: {place}/archive}}
rpc: {{listen: "127.0.0.1:0"}}
"""


def count(steps, step_s):
    for _ in range(steps):
        time.sleep(step_s)
    return steps


def wait_until(true):
    deadline = time.monotonic() + WAITS_S
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


class Operator:
    """A machine with one environment, and who works on it."""

    def __init__(self, place):
        self.place = place
        self.python = place / "env" / "bin" / "python"
        self.config = place / "lab.yaml"
        self.config.write_text(CONFIG.format(place=place))
        subprocess.run([UV, "venv", "-q", "--python", sys.executable, place / "env"], check=True)
        packages = next((place / "env" / "lib").glob("python*/site-packages"))
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def installs(self, commit):
        """The wheel of a commit; None = of this tree as it stands."""
        source = self.place / "source"
        shutil.rmtree(source, ignore_errors=True)
        if commit is None:
            shutil.copytree(
                ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "tests", ".*_cache", ".hypothesis", "dist")
            )
        else:
            archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
            with tarfile.open(fileobj=io.BytesIO(archive)) as held:
                held.extractall(source, filter="data")
        dist = self.place / "dist"
        shutil.rmtree(dist, ignore_errors=True)
        made = subprocess.run(
            [UV, "build", "-q", "--wheel", "-o", dist, source], capture_output=True, text=True, check=False
        )
        if made.returncode and "error sending request" in made.stderr:
            pytest.skip(f"the build's own packages can't be had here: {made.stderr[-200:]}")
        assert made.returncode == 0, made.stderr
        command = [
            UV,
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--reinstall",
            "--python",
            self.python,
            next(dist.glob("*.whl")),
        ]
        subprocess.run(command, check=True)

    def starts_ray(self):
        self.cluster = subprocess.Popen(
            [self.python, str(CLUSTER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self.place
        )
        self.ray_address, _, session = self.cluster.stdout.readline().split()
        self.token = Path(session) / TOKEN_NAME

    def run(self, *words):
        """A command, and what it said: its exit code, and its JSON."""
        environment = {
            **os.environ,
            "RAY_ADDRESS": self.ray_address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "XDG_CONFIG_HOME": str(self.place / "config"),
            "FABRIC_STATE_DIR": str(self.place / "state"),
        }
        command = [self.python, "-c", "from fabric.cli import main; main()", *map(str, words), "--json"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240, check=False, cwd=self.place
        )
        return done.returncode, json.loads((done.stdout if done.returncode == 0 else done.stderr) or "{}")

    def up(self):
        code, said = self.run("up", "--config", self.config)
        return (
            said if code == 0 else pytest.fail(f"{said}\n{(self.place / 'state' / 'fabric.log').read_text()[-4_000:]}")
        )

    def connect(self, up, account):
        key = (self.place / "state" / "operator.key").read_text().strip()
        return connect(up["address"], key, up["ca"], account=account)


@pytest.fixture
def operator(tmp_path):
    if UV is None:
        pytest.skip("there is no uv here")
    made = Operator(tmp_path)
    yield made
    if hasattr(made, "cluster"):
        made.run("down", "--gate", "--config", made.config)
        made.cluster.communicate(timeout=120)


def test_a_job_of_the_version_before_goes_on_is_metered_and_settles(operator):
    operator.installs(OLD)
    operator.starts_ray()
    before = operator.up()
    with operator.connect(before, "acme") as fabric:
        opening = pb.OpenAccountRequest(request_id="open", account_id="acme", name="Acme", plan="starter")
        fabric.client.call(opening, pb.Accepted)
        fabric.top_up("10")
        job = fabric.submit(count, 120, 1.0, tokens="1", accelerators="H100:1")
        wait_until(lambda: job.cost().burned_uhs > 0)
        job_id = job.id
    operator.installs(None)
    code, said = operator.run("down", "--gate", "--config", operator.config)
    assert code == 0, said
    after = operator.up()
    with operator.connect(after, "acme") as fabric:
        job = fabric.job(job_id)
        burned_uhs = job.cost().burned_uhs
        wait_until(lambda: job.cost().burned_uhs > burned_uhs or job.cost().settled)
        assert job.result(timeout=WAITS_S) == 120
        cost = wait_until(lambda: job.cost() if job.cost().settled else None)
        records = fabric.usage(job_id=job_id)
        assert sum(record.charged_uhs for record in records) == cost.burned_uhs > burned_uhs
        balance = fabric.balance()
        assert (balance.held_uhs, balance.free_uhs) == (0, 10 * UHS_PER_CT - cost.burned_uhs)
        assert job.timeline.endswith("RUNNING on 1 × H100 → SUCCEEDED"), "it was never interrupted"
        lines = fabric.client.fetch(pb.ExportRequest()).decode().splitlines()
    report = verify_export(lines, trusted_key=after["verifier_key"])
    assert report.ok, report
