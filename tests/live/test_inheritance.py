"""What a job's processes get from the fabric that runs them: no secret, no place of the fabric's, and a folder of its own."""

import json
import os
import time
from pathlib import Path

import pytest

from fabric import daemon
from tests.live.conftest import SECRET

LOOK = """
import json, os
from pathlib import Path

def link(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""

def above():
    pid, found = os.getpid(), []
    for _ in range(3):
        found.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"))
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if pid <= 1:
            break
    return found

def seen():
    before = sorted(os.listdir("."))
    open("mine", "w").write("x")
    return {
        "cwd": os.getcwd(), "before": before, "mode": os.stat(".").st_mode & 0o777,
        "env": dict(os.environ), "commands": above()[:2], "home": os.path.expanduser("~"),
        "files": [link(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")],
        "first_env": Path("/proc/self/environ").read_bytes().decode(errors="replace"),
    }
"""


def look():
    found: dict = {}
    exec(LOOK, found)
    return json.dumps(found["seen"]())


def look_from_a_task():
    import ray

    return ray.get(ray.remote(look).options(num_cpus=0).remote())


def told(acme, kind, tmp_path):
    options = {"accelerators": "H100:1", "tokens": "0.5"}
    if kind == "function":
        return acme.submit(look, **options).result(timeout=120)
    if kind == "function forked":
        return acme.submit(look, preload="torch", **options).result(timeout=120)
    if kind == "task":
        return acme.submit(look_from_a_task, **options).result(timeout=120)
    (tmp_path / "look.py").write_text(LOOK + "\nprint(json.dumps(seen()))\n")
    python = "python" if kind == "script" else "python3.11 -u"
    job = acme.submit([*python.split(), "look.py"], working_dir=str(tmp_path), **options)
    job.wait(timeout=120)
    return "".join(job.logs()).strip().splitlines()[-1]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["function", "function forked", "task", "script", "command"])
def test_a_job_inherits_no_secret_and_no_place_of_the_fabrics(running, acme, tmp_path, kind):
    seen = json.loads(told(acme, kind, tmp_path))
    where = Path(seen["cwd"])
    assert SECRET not in json.dumps(seen)
    assert daemon.operator_key(Path(running.state_dir)) not in json.dumps(seen)
    inherited = [seen["cwd"], *seen["env"].values(), seen["first_env"], *seen["files"], *seen["commands"]]
    assert [word for word in inherited if running.state_dir in word] == []
    assert not Path(running.state_dir).is_relative_to(where.parent)
    assert seen["mode"] == 0o700
    if kind != "task":
        assert seen["before"] == ([] if "function" in kind else ["look.py"])
        assert seen["home"] not in (str(Path.home()), seen["cwd"])


def test_the_state_directory_is_its_owners_alone(running):
    assert Path(running.state_dir).stat().st_mode & 0o077 == 0
    for file in Path(running.state_dir).glob("*.key"):
        assert file.stat().st_mode & 0o077 == 0


@pytest.mark.timeout(120)
def test_what_a_job_leaves_in_its_folder_is_gone_when_it_has_ended(acme):
    def leave():
        Path("left").write_text("x")
        return os.getcwd()  # noqa: PTH109

    job = acme.submit(leave, accelerators="H100:1", tokens="0.5")
    where = Path(job.result(timeout=60))
    for _ in range(300):
        if not where.parent.parent.exists():
            break
        time.sleep(0.1)
    assert not where.parent.parent.exists()
