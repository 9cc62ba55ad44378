"""`pip install token-fabric` alone: what it brings, what runs with it, and what says that it needs more."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from fabric import extras, versions
from fabric.wire import fabric_pb2 as pb

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
UV = shutil.which("uv", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PACKAGES_MAX = 15
BYTES_MAX = 30 * 10**6
HEAVY = (
    "ray",
    "torch",
    "vllm",
    "pydantic",
    "boto3",
    "grpc",
    "cryptography",
    "structlog",
    "stamina",
    "aiohttp",
    "numpy",
)
PURE = """
import sys, typing, asyncio, subprocess, selectors, socket, ssl, pathlib, tempfile, zipfile, tarfile, ctypes.util, multiprocessing
import uuid, logging.handlers, concurrent.futures, concurrent.futures.thread, urllib.request, argparse, shutil, importlib.metadata
import google.protobuf.json_format, google.protobuf.internal.builder, google.protobuf.message_factory
import h2.connection, h2.config, h2.events, msgspec, cloudpickle, typer, typer.core, rich.console, rich.live, rich.table
import platform, os, signal, zoneinfo, http.client, pickletools, inspect, dis
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "crypt", "nis", "spwd"):
    sys.modules[name] = None
for name in ("fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "setsid", "killpg", "getpgid", "fchmod", "chown", "umask",
             "register_at_fork", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "sched_getaffinity", "sysconf", "getloadavg", "WNOHANG"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGHUP", "SIGQUIT", "SIGSTOP", "SIGPIPE", "pthread_sigmask",
             "setitimer", "alarm", "pause"):
    if hasattr(signal, name):
        delattr(signal, name)
sys.platform = "win32"
for name in {heavy!r}:
    sys.modules[name] = None
import fabric, fabric.sdk, fabric.cli, fabric.context, fabric.parcels, fabric.transport.http2
print(fabric.submit.__name__, fabric.cli.app.info.name)
"""


def interpreter(version):
    """A Python of that version on this machine, or None."""
    if version == ".".join(map(str, sys.version_info[:2])):
        return sys.executable
    if UV is None:
        return None
    asked = [UV, "python", "find", "--no-project", "--no-python-downloads", version]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return found.stdout.strip()
    kept = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
    return str(kept[-1]) if kept else None


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """The folder of what a release gives out, made from its source archive as an index's users would."""
    place = tmp_path_factory.mktemp("dist")
    if UV is None:
        pytest.skip("there is no uv here")
    command = [sys.executable, ROOT / ".ci" / "wheels.py", place]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode and ("error sending request" in made.stderr or "No solution" in made.stderr):
        pytest.skip(f"the build's own packages can't be had here: {made.stderr[-200:]}")
    assert made.returncode == 0, made.stderr
    assert [file.suffix for file in sorted(place.iterdir())] == [".whl", ".gz", ".whl"]
    return place


@pytest.fixture(scope="session")
def wheel(release):
    return next(release.glob("token_fabric-*.whl"))


@pytest.fixture(scope="session", params=PYTHONS)
def alone(request, wheel, tmp_path_factory):
    """The bin folder of a fresh environment with the client and nothing else."""
    return installed(request.param, wheel, tmp_path_factory)


@pytest.fixture(scope="session")
def alone_here(wheel, tmp_path_factory):
    """The same with the Python of these tests."""
    return installed(".".join(map(str, sys.version_info[:2])), wheel, tmp_path_factory)


def installed(version, wheel, tmp_path_factory):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    place = tmp_path_factory.mktemp(f"py{version}") / "env"
    subprocess.run([UV, "venv", "-q", "--python", python, place], check=True)
    command = [UV, "pip", "install", "-q", "--compile-bytecode", "--python", place / "bin" / "python", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode and "error sending request" in done.stderr:
        pytest.skip(f"no index can be reached: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    return place / "bin"


def run(place, *words, house=None, **more):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FABRIC_", "PYTHON"))}
    env |= {"XDG_CONFIG_HOME": str(place / "config"), "LANG": "C.UTF-8"}
    if house is not None:
        env |= {"FABRIC_ADDRESS": house.address, "FABRIC_API_KEY": house.acme, "FABRIC_CA": str(house.tls.ca)}
    command = [str(place / words[0]), *map(str, words[1:])]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120, **more)
    return done.returncode, done.stdout, done.stderr


def test_a_client_alone_brings_few_packages_and_takes_little_room(alone):
    (packages,) = alone.parent.glob("lib/*/site-packages")
    brought = sorted(each.name for each in packages.glob("*.dist-info") if not each.name.startswith("token_fabric"))
    assert len(brought) <= PACKAGES_MAX, brought
    size = sum(file.stat().st_size for file in packages.rglob("*") if file.is_file())
    assert size <= BYTES_MAX, f"{size:,} bytes"
    assert not [name for name in HEAVY if (packages / name).exists()]


def files_of(wheel):
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_the_wheels_of_a_release_share_no_file_and_are_all_that_the_source_has(release, wheel, tmp_path):
    (archive,) = release.glob("*.tar.gz")
    subprocess.run([UV, "build", "-q", "--wheel", "-o", tmp_path, archive], check=True)
    (whole,) = tmp_path.glob("*.whl")
    client, cluster = files_of(wheel), files_of(next(release.glob("token_fabric_cluster-*.whl")))
    assert client.isdisjoint(cluster)
    assert client | cluster == files_of(whole)


def test_a_room_that_a_client_is_without_is_missing_and_a_module_of_one_that_is_there_is_our_mistake(
    alone_here, tmp_path
):
    rooms = [room.replace("/", ".") for room in PROJECT["tool"]["fabric"]["cluster-wheel"]]
    code = f"from fabric import extras; print(*(extras.is_ours(room + '.it') for room in {rooms}), extras.is_ours('fabric.cli.it'))"
    _, out, err = run(alone_here, "python", "-c", code, cwd=tmp_path)
    assert out.split() == ["False"] * len(rooms) + ["True"], err
    assert all(extras.is_ours(room) for room in rooms if room != "serving")
    missed = [extras.missing(room, by="it").facts["extra"] for room in rooms]
    assert missed == ["cluster"] * len(rooms)


def test_a_client_alone_says_its_version_and_helps(alone):
    code, out, err = run(alone, "fabric", "--version")
    told = (
        f"token-fabric {PROJECT['project']['version']} (rules {versions.RULES}, snapshots of format {versions.FORMAT})"
    )
    assert (code, out.strip(), err) == (0, told, "")
    code, out, err = run(alone, "fabric", "--help")
    assert (code, err) == (0, "")
    assert "submit" in out


def test_a_client_alone_submits_and_reads_what_it_gets(alone, house, tmp_path):
    (tmp_path / "train.py").write_text("print('hello')\n")
    code, out, err = run(alone, "fabric", "submit", "train.py", "-t", "1", "--json", house=house, cwd=tmp_path)
    assert code == 0, err
    job = json.loads(out)["job_id"]
    for words in (("jobs",), ("job", job), ("logs", job), ("result", job), ("balance",), ("plans",), ("keys", "ls")):
        code, out, err = run(alone, "fabric", *words, "--json", house=house)
        assert (code, err) == (0, ""), words
        assert out


def test_a_program_with_a_client_alone_submits_and_waits(alone, house, tmp_path):
    (tmp_path / "train.py").write_text("print('hello')\n")
    program = "import fabric.context, fabric.parcels; fabric.connect(); job = fabric.submit('train.py', tokens='1'); print(job.wait(30), job.result())"
    code, out, err = run(alone, "python", "-c", program, house=house, cwd=tmp_path)
    assert (code, out.strip()) == (0, "succeeded None"), err


BY_VALUE = """
import fabric, sys
fabric.connect()
def twice(x):
    return 2 * x
try:
    print(fabric.submit(twice, 21, tokens="1").result(30))
except fabric.errors.InvalidRequest as error:
    print(error.code, error)
"""


def test_a_function_of_another_python_is_refused_at_submit_with_both_versions(alone, house):
    here, there = ".".join(map(str, sys.version_info[:2])), alone.parents[1].name[2:6]
    _, out, err = run(alone, "python", "-c", BY_VALUE, house=house)
    if there == here:
        assert out.strip() == "42", err
        return
    assert out.startswith("other_python "), err
    assert f"Python {there}" in out
    assert f"use Python {here}" in out
    assert not house.client().call(pb.ListJobsRequest(), pb.ListJobsReply).jobs


def test_a_function_without_code_of_its_own_is_sent_from_any_python(alone, house):
    program = (
        "import fabric, operator; fabric.connect(); print(fabric.submit(operator.add, 40, 2, tokens='1').result(30))"
    )
    code, out, err = run(alone, "python", "-c", program, house=house)
    assert (code, out.strip()) == (0, "42"), err


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("doctor",), "cluster"),
        (("up",), "cluster"),
        (("down",), "cluster"),
        (("simulate", "README.md"), "cluster"),
        (("ops", "prices", "check", "README.md"), "cluster"),
        (("calibrate", "serving", "m"), "cluster"),
        (("audit", "verify", "README.md"), "audit"),
    ],
)
def test_a_client_alone_says_what_a_command_needs(alone_here, house, words, extra):
    code, out, err = run(alone_here, "fabric", *words, house=house, cwd=ROOT)
    assert (code, out) == (2, "")
    assert f"token-fabric[{extra}]" in err
    assert err.count("\n") == 1
    code, out, err = run(alone_here, "fabric", *words, "--json", house=house, cwd=ROOT)
    assert json.loads(err)["error"]["code"] == "needs_extra"


def test_a_lease_without_ray_is_refused_before_tokens_are_held(alone_here, house):
    program = "import fabric; fabric.connect(); fabric.lease(tokens=1)"
    code, _, err = run(alone_here, "python", "-c", program, house=house)
    assert code == 1
    assert "token-fabric[cluster]" in err
    assert len(house.client().call(pb.ListJobsRequest(), pb.ListJobsReply).jobs) == 0


@pytest.mark.parametrize("extra", ["cluster", "cpu", "gpu", "train"])
def test_what_is_the_products_is_in_its_extras(extra):
    extras = PROJECT["project"]["optional-dependencies"]
    whole = " ".join(extras[extra] + (extras["cluster"] if "token-fabric[cluster]" in extras[extra] else []))
    wanted = {"cluster": ("ray[default", "pydantic", "boto3", "grpcio"), "train": ("torch",)}
    for package in wanted.get(extra, ("ray[default", "pydantic", "boto3", "grpcio", "torch", "vllm")):
        assert package in whole


def test_the_client_imports_where_nothing_is_posix(tmp_path):
    """A stand-in for Windows: modules and names that are not there are hidden, and the platform says that it is win32."""
    done = subprocess.run(
        [sys.executable, "-c", PURE.replace("{heavy!r}", repr(HEAVY))],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["submit", "fabric"], done.stderr


def test_the_clients_modules_need_no_python_after_3_10():
    linted = (ROOT / "Makefile").read_text()
    assert "--python-version 3.10" in linted, "`make lint` has the types checked as of Python 3.10 too"
    targets = PROJECT["tool"]["ruff"]["per-file-target-version"]
    files = [str(file) for pattern in targets for file in expanded(pattern)]
    checked = [f"{sysconfig.get_path('scripts')}/vermin", "-t=3.10-", "--no-tips", "--violations", *files]
    done = subprocess.run(checked, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def expanded(pattern):
    """Files of a pattern with braces."""
    before, _, rest = pattern.partition("{")
    choices, _, after = rest.partition("}")
    for choice in choices.split(",") if rest else [""]:
        yield from sorted(ROOT.glob(f"{before}{choice}{after}"))
