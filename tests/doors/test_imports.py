"""What travels with a script that is sent without a working directory."""

import io
import shlex
import zipfile

import pytest

from fabric.errors import InvalidRequest
from fabric.sdk.packing import pack_files, pack_program

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
    assert packed("true", "unused.py") == {"unused.py"}
    assert packed("no-such-command", "unused.py") == {"unused.py"}
    assert packed("./main.py") >= {"main.py"}


@pytest.fixture
def project(place):
    (place / "train.py").write_text("import helper\n")
    (place / "app" / "steps").mkdir(parents=True)
    (place / "app" / "__main__.py").write_text("import helper, own\n")
    (place / "app" / "steps" / "fit.py").write_text("")
    (place / "app" / "own.py").write_text("")
    (place / "conf").mkdir()
    (place / "conf" / "a.yaml").write_text("")
    (place / ".env").write_text("TOKEN=1")
    (place / "train.sh").write_text("source .env\nexec torchrun --nproc-per-node 2 'train.py' < conf/a.yaml\n")
    (place / "all.sh").write_text("for n in 1 2; do ./train.sh $n; done; python -m app.steps.fit; bash all.sh\n")
    return place


HELPER, APP = {"helper.py", "later.py", "main.py"}, {"app/__main__.py", "app/own.py", "app/steps/fit.py"}
APP_MAIN = {"app/__main__.py", "app/own.py"}
MAIN = {"pieces/__init__.py", "pieces/left.py", "pieces/right.py", "pieces/deeper/leaf.py"}
TRAIN = {"train.py"} | HELPER | MAIN


@pytest.mark.parametrize(
    ("command", "sent"),
    [
        ("python -W ignore train.py", TRAIN),
        ("python -X dev -u train.py", TRAIN),
        ("python -Wignore -Xdev train.py", TRAIN),
        ("python --check-hash-based-pycs never train.py", TRAIN),
        ("torchrun --nproc-per-node 2 train.py --lr 1", TRAIN),
        ("accelerate launch train.py", TRAIN),
        ("env A=1 python train.py", TRAIN),
        ("python -m torch.distributed.run --nproc-per-node 2 train.py", TRAIN),
        ("python -m train --epochs 3", TRAIN),
        ("python -mtrain", TRAIN),
        ("python -um train", TRAIN),
        ("python -m app.steps.fit", APP | HELPER | MAIN),
        ("torchrun -m app.steps.fit", APP | HELPER | MAIN),
        ("torchrun --module=app.steps.fit", APP | HELPER | MAIN),
        ("python -m json.tool", set()),
        ("python -c 'import train'", TRAIN),
        ("python -c 'import json'", set()),
        ("python app", APP_MAIN),
        ("python -X dev app/ --lr 1", APP_MAIN),
        ("env A=1 python app", APP_MAIN),
        ("python train.py --conf=conf/a.yaml", TRAIN | {"conf/a.yaml"}),
        ("python train.py conf=conf/a.yaml", TRAIN | {"conf/a.yaml"}),
        ("bash train.sh", TRAIN | {"train.sh"}),
        ("bash -c 'cd . && python train.py'", TRAIN),
        ("bash all.sh", TRAIN | APP | {"train.sh", "all.sh"}),
    ],
)
def test_whatever_starts_the_programs_of_a_project_they_have_their_modules(project, command, sent):
    """Data that a shell script reads, and its secrets, are not among them: that needs a working directory."""
    assert packed(*shlex.split(command)) == sent


def test_a_program_that_is_named_by_no_script_of_its_own_is_left_as_it_was(project):
    for command in (["python", "-W", "ignore", "-c", "print(1)"], ["python", "-", "x"], ["python"], ["env", "A=1"]):
        assert pack_program(command, working_dir=None).command == command


@pytest.mark.parametrize(
    ("given", "working_dir", "command", "sent"),
    [
        ("app", None, "app", APP_MAIN),
        ("./app/", None, "app", APP_MAIN),
        ("{here}/app", None, "app", APP_MAIN),
        ("../elsewhere", None, ".", {"__main__.py", "own.py"}),
        ("{here}/../elsewhere", None, ".", {"__main__.py", "own.py"}),
        ("app", "{here}", "app", None),
        (".", "{here}/app", ".", {"__main__.py", "own.py", "steps/fit.py"}),
        ("{here}/app", "{here}/app", ".", {"__main__.py", "own.py", "steps/fit.py"}),
    ],
)
def test_a_folder_that_python_runs_is_sent_wherever_it_is_named(project, given, working_dir, command, sent):
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "__main__.py").write_text("import own")
    (elsewhere / "own.py").write_text("")
    working_dir = working_dir and working_dir.format(here=project)
    found = pack_program(["python", given.format(here=project), "-v"], working_dir=working_dir)
    assert found.command == ["python", command, "-v"]
    names = set(zipfile.ZipFile(io.BytesIO(found.files)).namelist())
    assert names == sent if sent else names >= APP


def test_a_folder_that_python_could_run_says_how(project):
    with pytest.raises(InvalidRequest, match=r"write `-- python app`"):
        pack_files(("app",), working_dir=None)
    with pytest.raises(InvalidRequest, match=r"there is no script 'conf'"):
        pack_files(("python", "conf"), working_dir=None)


READS = """
'readme.txt is only spoken of'
import json, helper
from pathlib import Path
HERE = Path(__file__).parent
rows = (HERE / "rows.csv").read_text(), open("conf/a.yaml"), HERE / "table" / "1.csv", "nowhere.csv", "", "/etc/hosts"
print("own.py", "helper.py", "../outside.txt", "a" * 5000, "nul\\0")
"""


def test_what_the_code_names_and_what_is_not_sent_is_told(project):
    (project / "deep" / "table").mkdir(parents=True)
    for name in ("deep/rows.csv", "deep/table/1.csv", "rows.csv", "readme.txt", "deep/helper.py", "outside.txt"):
        (project / name).write_text("")
    (project / "deep" / "reads.py").write_text(READS)
    found = pack_program(["python", "deep/reads.py"], working_dir=None)
    assert found.unsent == ("conf/a.yaml", "deep/rows.csv", "deep/table")
    named = pack_program(["python", "deep/reads.py", "deep/rows.csv", "conf/a.yaml"], working_dir=None)
    assert named.unsent == ("deep/table",)
    assert pack_program(["python", "deep/reads.py"], working_dir=".").unsent == ()


def test_a_module_that_reads_nothing_beside_itself_has_nothing_told(project):
    (project / "plain.py").write_text("import helper\nprint('conf', 'app')\n")
    assert pack_program(["python", "plain.py"], working_dir=None).unsent == ()
