"""What travels with a script that is sent without a working directory."""

import io
import zipfile

import pytest

from fabric.errors import InvalidRequest
from fabric.sdk.packing import pack_files

FILES = {
    "main.py": "import os, helper\nfrom pieces.left import x\nimport torch\n",
    "helper.py": "def late():\n    import later\n",
    "later.py": "import main\nimport helper\n",
    "unused.py": "",
    "torch_notes.txt": "",
    "pieces/__init__.py": "",
    "pieces/left.py": "from . import right\n",
    "pieces/right.py": "",
    "pieces/deeper/leaf.py": "",
    "loose/part.py": "",
    "broken.py": "def (",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def packed(*command):
    found = pack_files(command, working_dir=None)
    return set() if found is None else set(zipfile.ZipFile(io.BytesIO(found)).namelist())


def test_a_script_takes_along_what_it_imports_of_what_lies_beside_it(place):
    pieces = {"pieces/__init__.py", "pieces/left.py", "pieces/right.py", "pieces/deeper/leaf.py"}
    assert packed("python", "main.py") == {"main.py", "helper.py", "later.py"} | pieces


def test_a_script_in_a_folder_takes_its_modules_from_there(place):
    (place / "loose" / "run.py").write_text("import part\nimport helper\n")
    assert packed("python", "loose/run.py") == {"loose/run.py", "loose/part.py"}


def test_a_folder_of_modules_without_an_init_is_taken_too(place):
    (place / "other.py").write_text("import loose.part\n")
    assert packed("python", "other.py", "torch_notes.txt") == {"other.py", "loose/part.py", "torch_notes.txt"}


@pytest.mark.parametrize("text", ["import broken\n", "def (", "x = '\0'"])
def test_what_cannot_be_read_is_sent_as_it_is(place, text):
    (place / "odd.py").write_text(text)
    assert "odd.py" in packed("python", "odd.py")


def test_what_imports_nothing_of_its_own_travels_alone(place):
    (place / "alone.py").write_text("import json, os.path\n")
    assert packed("python", "alone.py") == {"alone.py"}


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("pieces",), "not_a_command"),
        (("./pieces/",), "not_a_command"),
        (("torch_notes.txt",), "not_executable"),
        (("./torch_notes.txt", "--lr"), "not_executable"),
    ],
)
@pytest.mark.parametrize("working_dir", [None, "."])
def test_what_plainly_can_not_be_run_is_refused_before_it_is_sent(place, command, code, working_dir):
    with pytest.raises(InvalidRequest) as refusal:
        pack_files(command, working_dir=working_dir)
    assert refusal.value.code == code


def test_what_is_executable_or_may_be_a_command_of_the_nodes_is_sent(place):
    (place / "torch_notes.txt").chmod(0o755)
    assert packed("./torch_notes.txt") == {"torch_notes.txt"}
    (place / "true").mkdir()
    assert packed("true", "helper.py") == {"helper.py"}
    assert packed("no-such-command", "helper.py") == {"helper.py"}
    assert packed("./main.py") >= {"main.py"}
