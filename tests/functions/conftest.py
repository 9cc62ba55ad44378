"""Projects of several files, the programs that submit their functions, and a far side that has never seen them."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.functions import afar


@pytest.fixture(scope="session")
def far_side(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("far") / "socket")
    process = afar.served(path)
    yield path
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def project(tmp_path, far_side):
    """Write files, and run a command below them: what it prints."""

    def project(files, *command, cwd=".", path=(), stdin=None, check=True):
        folder = tmp_path / "home" / "project"
        for name, text in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text) if isinstance(text, bytes) else file.write_text(textwrap.dedent(text))
        python_path = os.pathsep.join(str(folder / each) for each in path)
        ran = subprocess.run(
            [sys.executable, *(command or ("main.py",))], cwd=folder / cwd, input=stdin, capture_output=True, text=True, check=False,
            env=os.environ | {"AFAR_SOCKET": far_side, "PYTHONPATH": python_path, "PYTHONSAFEPATH": ""},
        )  # fmt: skip
        if check:
            assert ran.returncode == 0, ran.stderr
        return ran.stdout if check else ran

    project.folder = tmp_path / "home" / "project"
    return project
