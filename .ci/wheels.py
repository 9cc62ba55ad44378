"""Build what a release gives out: the source archive, a client's wheel, and the wheel of what a cluster runs besides.

    python .ci/wheels.py dist

The two wheels share no file, and together they are what a clone installs. They are told apart by `tool.fabric` in
pyproject.toml, so that what a client takes doesn't grow with the cluster's rooms. Both are made from the source archive.
"""

import argparse
import shutil
import subprocess
import sysconfig
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
UV = shutil.which("uv", path=sysconfig.get_path("scripts")) or "uv"
_CLIENTS = '[tool.hatch.build.targets.wheel]\npackages = ["fabric", "serving", "training"]\n'
_CONFIGS = '\n[tool.hatch.build.targets.wheel.force-include]\n"cluster-configs" = "fabric/cluster-configs"'


def build(out: Path) -> list[Path]:
    """Write the archive and the wheels, and answer where they are.

    Raises:
        subprocess.CalledProcessError: a build failed; its output is in the error.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        made = Path(place)
        _uv("build", "-q", "--sdist", "-o", made, ROOT)
        (archive,) = made.glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(made, filter="data")
        source = made / archive.name.removesuffix(".tar.gz")
        whole = (source / "pyproject.toml").read_text(encoding="utf-8")
        for project in (of_client(whole), of_cluster(whole)):
            (source / "pyproject.toml").write_text(project, encoding="utf-8")
            _uv("build", "-q", "--wheel", "-o", made, source)
        return [Path(shutil.copy(file, out)) for file in sorted([archive, *made.glob("*.whl")])]


def of_client(whole: str) -> str:
    """The project without what is in the other wheel."""
    rooms = tomllib.loads(whole)["tool"]["fabric"]["cluster-wheel"]
    assert whole.count(_CLIENTS) == whole.count(_CONFIGS) == 1
    excluded = [f"/{room}" for room in rooms]
    without = f'[tool.hatch.build.targets.wheel]\npackages = ["fabric", "training"]\nexclude = {excluded}\n'
    return whole.replace(_CONFIGS, "").replace(_CLIENTS, without)


def of_cluster(whole: str) -> str:
    """A project of the rest, which needs the client of its own version."""
    read = tomllib.loads(whole)
    project: dict[str, Any] = read["project"]
    return f"""[build-system]
requires = {read["build-system"]["requires"]}
build-backend = "{read["build-system"]["build-backend"]}"

[project]
name = "{project["name"]}-cluster"
version = "{project["version"]}"
description = "What runs a fabric of {project["name"]}, or joins its Ray cluster."
requires-python = ">=3.11,<3.12"
license = "{project["license"]}"
license-files = {project["license-files"]}
dependencies = ["{project["name"]}[cluster]=={project["version"]}"]

[tool.hatch.build.targets.wheel]
only-include = {read["tool"]["fabric"]["cluster-wheel"]}
{_CONFIGS}
"""


def _uv(*words: str | Path) -> None:
    subprocess.run([UV, *words], check=True, capture_output=True, text=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to write to")
    for each in build(parser.parse_args().out):
        print(f"{each.stat().st_size:12,}  {each}")
