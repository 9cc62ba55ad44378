"""Packages of a job's own: what may be asked for, and that what is installed is held within its account and its lease."""

import io
import json
import subprocess
import tarfile
import zipfile

import pytest

from fabric.errors import InvalidRequest
from fabric.worker import environments
from fabric.worker.environments import (
    Environment,
    build,
    build_command,
    environment_folder,
    environment_of,
    is_ready,
    python_of,
)
from fabric.worker.payload import Payload, runtime_env_of
from fabric.worker.wheels import Prepared, is_plain, prepare

PACKAGE = "from setuptools import setup\nsetup(name='parcel', version='1.0', py_modules=['parcel'])\n"


@pytest.mark.parametrize(
    ("given", "packages", "options"),
    [
        ({"pip": ["numpy==2.0", "emoji"]}, ("numpy==2.0", "emoji"), ()),
        ({"pip": {"packages": ["emoji"], "pip_check": False}}, ("emoji",), ()),
        ({"uv": {"packages": ["emoji"], "uv_pip_install_options": ["--no-cache"]}}, ("emoji",), ("--no-cache",)),
        ({"uv": ["emoji"], "env_vars": {"A": "b"}, "config": {"setup_timeout_seconds": 30}}, ("emoji",), ()),
    ],
    ids=["pip", "pip in full", "uv in full", "with the rest"],
)
def test_packages_are_named_as_ray_has_them(given, packages, options):
    wanted = environment_of(given)
    assert (wanted.packages, wanted.options) == (packages, options)


@pytest.mark.parametrize("given", [{}, {"env_vars": {"A": "b"}}, {"pip": []}, {"config": {}}])
def test_a_job_that_names_no_package_has_no_environment_of_its_own(given):
    assert environment_of(given) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"conda": "base"}, "use pip or uv"),
        ({"working_dir": "/etc"}, "working_dir="),
        ({"py_modules": ["/etc"]}, "working_dir="),
        ({"py_executable": "sh -c evil"}, "pip or uv"),
        ({"image_uri": "evil"}, "a Ray cluster of your own"),
        ({"container": {"image": "evil"}}, "a Ray cluster of your own"),
        ({"worker_process_setup_hook": "evil"}, "beginning of your function"),
        ({"nsight": "default"}, "allowed are pip, uv, env_vars, config"),
        ({"java_jars": ["x"]}, "allowed are"),
        ({"pip": "/etc/requirements.txt"}, '"-r"'),
        ({"pip": ["a"], "uv": ["a"]}, "one of them"),
        ({"pip": {"packages": ["a"], "pip_version": "==1"}}, "allowed are packages"),
        ({"pip": [1]}, "list of texts"),
        ({"pip": [["a"]]}, "list of texts"),
        ({"pip": ["a"] * 201}, "200"),
        ({"pip": ["a" * 1001]}, "1000"),
        ({"pip": ["a\0b"]}, "NUL"),
        ({"pip": ["a"], "config": {"setup_timeout_seconds": 10**9}}, "3600"),
        ({"config": {"setup_timeout_seconds": True}}, "3600"),
        ({"config": {"log_files": ["/etc/passwd"]}}, "nothing else"),
    ],
)
def test_what_cannot_be_held_within_a_lease_is_refused_with_its_remedy(given, said):
    with pytest.raises(InvalidRequest) as refused:
        environment_of(given)
    assert said in refused.value.message
    assert refused.value.code == "invalid_runtime_env"


@pytest.mark.parametrize("name", ["FABRIC_LEASE_ID", "RAY_AUTH_TOKEN", "LD_PRELOAD", "PYTHONSTARTUP"])
def test_a_variable_that_is_the_platforms_is_refused(name):
    with pytest.raises(InvalidRequest, match=name):
        environments.check_variables({"MINE": "1", name: "x"})


def test_ray_is_told_of_nothing_that_it_would_install():
    payload = Payload(runtime_env={"pip": ["evil"], "env_vars": {"A": "b"}, "config": {"setup_timeout_seconds": 5}})
    assert runtime_env_of(payload, extra={"M": "1"}) == {"env_vars": {"A": "b", "M": "1"}}
    assert runtime_env_of(Payload(runtime_env={"pip": ["evil"]}), extra={}) == {}


def test_the_same_packages_of_two_accounts_are_two_folders(tmp_path):
    digest = Environment(tool="pip", packages=("a",)).digest
    assert environment_folder(tmp_path, "a", digest) != environment_folder(tmp_path, "b", digest)


@pytest.mark.parametrize(
    ("more", "is_same"),
    [
        ({}, True),
        ({"packages": ("b",)}, False),
        ({"options": ("-U",)}, False),
        ({"within_s": 5}, True),
        ({"files": "x"}, False),
    ],
)
def test_what_differs_in_what_is_installed_is_another_environment(more, is_same):
    first = {"tool": "pip", "packages": ("a",)}
    assert (Environment(**first).digest == Environment(**{**first, **more}).digest) is is_same


def test_files_of_the_working_directory_count_only_where_a_package_names_one():
    assert environment_of({"pip": ["emoji==2.0"]}, files="blobs/a/1").files == ""
    for word in ("./parcel", "-r", "git+https://example.org/a"):
        assert environment_of({"pip": [word]}, files="blobs/a/1").files == "blobs/a/1"


def run_in(folder, code):
    return subprocess.run([python_of(folder), "-c", code], capture_output=True, text=True, check=False)


@pytest.fixture
def parcel(tmp_path):
    """A package that leaves a trace each time it is installed."""
    folder = tmp_path / "parcel"
    folder.mkdir()
    trace = tmp_path / "installed"
    (folder / "setup.py").write_text(f"open({str(trace)!r}, 'a').write('x')\n{PACKAGE}")
    (folder / "parcel.py").write_text("VALUE = 7\n")
    return folder, trace


def wanted_of(folder):
    return Environment(tool="pip", packages=(str(folder),), options=("--no-build-isolation", "--no-deps", "--no-index"))


def test_what_is_built_has_its_own_packages_and_the_fabrics(tmp_path, parcel):
    folder, trace = parcel
    made = environment_folder(tmp_path, "acme", "d1")
    assert not is_ready(made)
    assert build(made, wanted_of(folder)) == 0
    assert is_ready(made)
    done = run_in(made, "import parcel, fabric, ray, sys; print(parcel.VALUE, sys.prefix)")
    assert done.stdout.split() == ["7", str(made)], done.stderr
    installed = trace.read_text()
    assert build(made, wanted_of(folder)) == 0
    assert trace.read_text() == installed, "the second one found it built"
    other = environment_folder(tmp_path, "other", "d1")
    assert not is_ready(other)


def test_what_could_not_be_built_is_not_taken_for_built(tmp_path):
    made = environment_folder(tmp_path, "acme", "d1")
    broken = Environment(tool="pip", packages=("no-such-package-here",), options=("--no-index",))
    done = subprocess.run(
        build_command(made), input=json.dumps({"tool": "pip", "packages": broken.packages, "options": broken.options}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert not is_ready(made)
    assert not made.exists()


def test_an_account_keeps_the_environments_it_used_last(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "_installed", lambda folder, wanted: 0)
    wanted = Environment(tool="pip", packages=("a",))
    made = [environment_folder(tmp_path, "acme", f"d{at}") for at in range(environments.KEPT)]
    for at, folder in enumerate(made):
        build(folder, wanted)
        (folder / ".ready").touch()
        import os

        os.utime(folder / ".ready", (at, at))
    is_ready(made[0])
    build(environment_folder(tmp_path, "acme", "new"), wanted)
    assert [is_ready(folder) for folder in made[:3]] == [True, False, True]


def test_one_that_a_process_runs_with_is_not_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "_installed", lambda folder, wanted: 0)
    monkeypatch.setattr(environments, "KEPT", 1)
    made = [environment_folder(tmp_path, "acme", f"d{at}") for at in range(3)]
    build(made[0], Environment(tool="pip", packages=("a",)))
    command = [python_of(made[0]), "-c", "print(flush=True); input()"]
    user = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    user.stdout.readline()  # before, its command line may be empty: the kernel fills it in last
    try:
        build(made[1], Environment(tool="pip", packages=("a",)))
        assert is_ready(made[0])
    finally:
        user.communicate(b"\n")
    build(made[2], Environment(tool="pip", packages=("a",)))
    assert not is_ready(made[0])


# -- before the devices burn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packages", "options", "variables", "plain"),
    [
        (["numpy==2.0", "rich[all]>=13 ; python_version > '3.8'"], [], {}, True),
        (["a"], ["--index-url", "https://x/simple", "--extra-index-url=https://y", "--pre", "--no-deps"], {"A": "b"}, True),
        (["./parcel"], [], {}, False),
        (["a @ https://x/a.tar.gz"], [], {}, False),
        (["git+https://x/a"], [], {}, False),
        (["-r", "requirements.txt"], [], {}, False),
        (["-e", "."], [], {}, False),
        (["a"], ["--no-binary", ":all:"], {}, False),
        (["a"], ["--find-links", "/etc"], {}, False),
        (["a"], ["--index-url", "file:///etc"], {}, False),
        (["a"], ["--index-url"], {}, False),
        (["a"], ["--target=/etc"], {}, False),
        (["a"], ["--log", "/etc/x"], {}, False),
        (["a"], [], {"PIP_CONFIG_FILE": "/x"}, False),
        (["a"], [], {"uv_index_url": "https://x"}, False),
    ],
)  # fmt: skip
def test_only_names_from_an_index_are_installed_before_the_devices_burn(packages, options, variables, plain):
    wanted = Environment(tool="pip", packages=tuple(packages), options=tuple(options))
    assert is_plain(wanted, variables) is plain


def wheel_of(folder, name="parcel", version="1.0"):
    """A wheel made by hand, in a folder that pip may look into."""
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as out:
        out.writestr(f"{name}.py", "VALUE = 7\n")
        out.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        out.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{about}/RECORD", "")


def sdist_of(folder, trace, name="source"):
    """A package that runs code to be installed, and leaves a trace."""
    with tarfile.open(folder / f"{name}-1.0.tar.gz", "w:gz") as out:
        for file, text in (
            (
                "setup.py",
                f"open({str(trace)!r}, 'a').write('x')\nfrom setuptools import setup\nsetup(name={name!r}, version='1.0')\n",
            ),
            ("PKG-INFO", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"),
        ):
            about = tarfile.TarInfo(f"{name}-1.0/{file}")
            about.size = len(text)
            out.addfile(about, io.BytesIO(text.encode()))


async def test_a_package_that_must_be_built_is_left_to_the_lease_and_runs_nothing(tmp_path, monkeypatch):
    wheels, trace = tmp_path / "wheels", tmp_path / "trace"
    wheels.mkdir()
    sdist_of(wheels, trace)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    wanted = Environment(tool="pip", packages=("source",), options=("--no-index",))
    made = environment_folder(tmp_path, "acme", wanted.digest)
    assert await prepare(made, wanted, within_s=120) == Prepared()
    assert not is_ready(made)
    assert not trace.exists()


async def test_wheels_are_installed_and_what_no_index_has_is_said(tmp_path, monkeypatch):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel_of(wheels)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    found = {}
    for name in ("parcel==1.0", "parcel>=2", "no-such-package-here", "other ; python_version < '3'"):
        wanted = Environment(tool="pip", packages=(name,), options=("--no-index",))
        made = environment_folder(tmp_path, "acme", wanted.digest)
        found[name] = await prepare(made, wanted, within_s=120)
        assert is_ready(made) is found[name].done
    assert found["parcel==1.0"].done
    assert found["other ; python_version < '3'"].done
    assert "parcel>=2 can't be had from the package index" in found["parcel>=2"].missing
    assert "no-such-package-here can't be had" in found["no-such-package-here"].missing


async def test_packages_that_unpack_to_more_than_they_may_are_not_kept(tmp_path, monkeypatch, capfd):
    """A wheel of few bytes may become many."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel_of(wheels)
    with zipfile.ZipFile(wheels / "parcel-1.0-py3-none-any.whl", "a", zipfile.ZIP_DEFLATED) as out:
        out.writestr("parcel_data.bin", bytes(64 * 2**20))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(environments, "BYTES_MAX", 32 * 2**20)
    wanted = Environment(tool="pip", packages=("parcel",), options=("--no-index",))
    made = environment_folder(tmp_path, "acme", wanted.digest)
    assert build(made, wanted) != 0
    assert "which is all that they may" in capfd.readouterr().out
    assert not made.exists()


async def test_what_takes_too_long_is_left_to_the_lease(tmp_path):
    wanted = Environment(tool="pip", packages=("parcel",), options=("--no-index",))
    made = environment_folder(tmp_path, "acme", wanted.digest)
    assert await prepare(made, wanted, within_s=0.05) == Prepared()
    assert not is_ready(made)
