"""What a release is made of: locked by hashes, from no address, licensed, and under no name that a stranger could take."""

import hashlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {name: (ROOT / "locks" / f"{name}.txt").read_text() for name in ("client", "base", "cpu", "gpu")}
OF_A_NODE = ("base", "cpu", "gpu")
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""Of the licence's text as its authors publish it."""
CONFIGS = sorted((ROOT / "cluster-configs").rglob("*.yaml"))


def locked(name):
    """Each package of a lock with its version and hashes."""
    found = {}
    for entry in re.split(r"\n(?=\S)", LOCKS[name].strip()):
        first, *hashes = entry.replace("\\\n", "\n").split("\n")
        requirement = Requirement(first.strip())
        (pin,) = requirement.specifier
        assert pin.operator == "==", first
        found[canonicalize_name(requirement.name)] = (pin.version, [line.strip() for line in hashes])
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_is_pinned_with_hashes(name):
    packages = locked(name)
    assert len(packages) > (50 if name in OF_A_NODE else 10)
    for package, (_, hashes) in packages.items():
        assert hashes, package
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), package


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_no_address_and_no_option(name):
    assert not re.search(r"://|^\s*-[a-z]|^\s*--(?!hash=)|\s@\s", LOCKS[name], re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_of_what_the_project_asks_for(name):
    packages = locked(name)
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + extras.get(name, []) + (extras["cluster"] if name in OF_A_NODE else [])
    for requirement in map(Requirement, wanted):
        if requirement.name == PROJECT["name"] or (requirement.marker and name != "client"):
            continue
        version, _ = packages[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version.partition("+")[0], prereleases=True), requirement


def test_torch_is_the_cpu_build_where_the_extra_is_cpu_and_not_where_it_is_gpu():
    assert locked("cpu")["torch"][0].endswith("+cpu")
    assert "+" not in locked("gpu")["torch"][0]
    assert not [package for package in locked("cpu") if package.startswith("nvidia-")]


def test_the_licence_is_named_and_its_text_is_whole():
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    assert (PROJECT["license"], PROJECT["license-files"]) == ("Apache-2.0", ["LICENSE"])


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *CONFIGS], ids=lambda path: path.name
)
def test_nothing_asks_an_index_for_a_name_of_ours(path):
    for command in re.findall(r"pip3? install[^\n]*", path.read_text()):
        names = [word for word in command.split()[2:] if not word.startswith("-")]
        assert not [word for word in names if canonicalize_name(word.partition("[")[0]) == PROJECT["name"]], command
        ours = [word for word in names if "token_fabric" in word]
        assert not ours or {"--no-index", "--no-deps"} <= set(command.split()), command


def images(node):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from [value] if key == "image" else images(value)
    elif isinstance(node, list):
        for each in node:
            yield from images(each)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_an_image_comes_from_a_named_registry(path):
    for document in yaml.safe_load_all(path.read_text()):
        for image in images(document):
            assert "." in image.partition("/")[0], f"{image} is whatever the default registry has under that name"


def test_a_release_is_made_of_what_is_locked():
    made = subprocess.run(["make", "-n", "release"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in LOCKS:
        assert f"locks/{name}.txt" in made
    assert "sha256sum" in made
