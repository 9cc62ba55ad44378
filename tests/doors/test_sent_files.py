"""Which files are sent with a script or a command, and how often."""

import io
import json
import os
import zipfile

import pytest

from fabric.cli.packages import runtime_env_of
from fabric.errors import InvalidRequest
from fabric.sdk.packing import pack_program
from fabric.sdk.sent_files import listed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(packed):
    return [] if packed.files is None else zipfile.ZipFile(io.BytesIO(packed.files)).namelist()


def sent(folder):
    return [path.as_posix() for path in listed(folder).files]


@pytest.mark.parametrize(
    ("given", "working_dir", "command", "files"),
    [
        ("x.py", None, "x.py", ["mod.py", "x.py"]),
        ("./x.py", None, "x.py", ["mod.py", "x.py"]),
        ("{here}/x.py", None, "x.py", ["mod.py", "x.py"]),
        ("sub/y.py", None, "sub/y.py", ["sub/y.py"]),
        ("../out.py", None, "out.py", ["beside.py", "out.py"]),
        ("{here}/../out.py", None, "out.py", ["beside.py", "out.py"]),
        ("{here}/x.py", ".", "x.py", ["mod.py", "sub/y.py", "x.py"]),
        ("y.py", "sub", "y.py", ["y.py"]),
        ("sub/y.py", "sub", "y.py", ["y.py"]),
        ("{here}/sub/y.py", "{here}/sub", "y.py", ["y.py"]),
    ],
)  # fmt: skip
def test_a_script_is_sent_wherever_it_is_named(folder, given, working_dir, command, files):
    write(folder, x_dot_py="import mod", mod_dot_py="", sub__y_dot_py="")
    write(folder.parent, out_dot_py="import beside", beside_dot_py="", other_dot_py="")
    script = given.format(here=folder)
    packed = pack_program(
        ["python", script, "--lr", "0.1"], working_dir=working_dir and working_dir.format(here=folder)
    )
    assert packed.command == ["python", command, "--lr", "0.1"]
    assert sorted(names(packed)) == files


@pytest.mark.parametrize("word", ["bash", "sh", "perl"])
def test_the_script_of_another_interpreter_is_sent_too(folder, word):
    write(folder.parent, train_dot_sh="echo hi")
    packed = pack_program([word, "../train.sh", "a"], working_dir=None)
    assert (packed.command, names(packed)) == ([word, "train.sh", "a"], ["train.sh"])
    untouched = [word, "-c", "echo ../train.sh"]
    assert pack_program(untouched, working_dir=None).command == untouched


def test_a_script_outside_of_the_working_directory_given_is_refused(folder):
    write(folder.parent, out_dot_py="")
    write(folder, sub__y_dot_py="")
    with pytest.raises(InvalidRequest, match=r"not in the working directory"):
        pack_program(["python", "../out.py"], working_dir="sub")


def test_what_git_ignores_stays_and_fabricignore_has_the_last_word(folder):
    write(
        folder, a_dot_py="", data__big_dot_bin="", data__keep_dot_txt="", out_dot_log="", sub__b_dot_tmp="",
        sub__c_dot_tmp="", notes_dot_md="", _dot_gitignore="*.log\n/data/*\n!/data/keep.txt\n", sub___dot_gitignore="*.tmp\n",
        _dot_fabricignore="# ours\nnotes.md\n!out.log\n!sub/c.tmp\n",
    )  # fmt: skip
    assert sent(folder) == [
        ".fabricignore", ".gitignore", "a.py", "data/keep.txt", "out.log", "sub/.gitignore", "sub/c.tmp",
    ]  # fmt: skip
    assert listed(folder).left_out == ["data/big.bin", "sub/b.tmp"]


def test_the_rules_of_the_repository_above_hold_in_a_folder_of_it(folder):
    write(folder, _dot_gitignore="*.bin\n/sub/x.txt\n", sub__a_dot_bin="", sub__x_dot_txt="", sub__y_dot_txt="")
    assert sent(folder / "sub") == ["a.bin", "x.txt", "y.txt"], "it is no repository"
    (folder / ".git").mkdir()
    assert sent(folder / "sub") == ["y.txt"]


@pytest.mark.parametrize("name", [".env", ".env.local", "deep/.env", ".venv/lib/a.py", "myenv/lib/a.py", ".git/config"])
def test_secrets_and_environments_are_sent_only_if_asked_for(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("TOKEN=1")
    write(folder, a_dot_py="", _dot_env_dot_example="")
    if "myenv" in name:
        write(folder, myenv__pyvenv_dot_cfg="")
    assert sent(folder) == [".env.example", "a.py"]
    assert listed(folder).secrets == ([name] if ".env" in name else []), "a program may miss it, so it is named"
    top = name.split("/")[0]
    write(folder, _dot_fabricignore=f"!{top if top != 'deep' else '.env'}\n")
    assert name in sent(folder)


def test_links_are_sent_as_what_they_lead_to_and_empty_folders_as_folders(folder):
    write(folder.parent, shared__data__a_dot_txt="A", shared__b_dot_txt="B")
    write(folder, x_dot_py="")
    (folder / "linked").symlink_to(folder.parent / "shared")
    (folder / "file").symlink_to(folder.parent / "shared" / "b.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "broken").symlink_to("nowhere")
    (folder / "checkpoints" / "old").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    packed = pack_program(["python", "x.py"], working_dir=".")
    assert names(packed) == ["checkpoints/old/", "file", "linked/b.txt", "linked/data/a.txt", "x.py"]
    assert pack_program(["python", "x.py"], working_dir=".").files == packed.files


def test_the_same_content_is_sent_once(house):
    client, chunks = house.fabric().client, []
    client.on_sent = lambda sent, of: chunks.append((sent, of))
    data = os.urandom(3 * 2**20)
    first = client.put_blob(data)
    assert chunks[-1] == (len(data), len(data))
    chunks.clear()
    assert client.put_blob(data) == first
    assert chunks == []
    assert client.put_blob(data + b"x") != first
    assert chunks[-1] == (len(data) + 1, len(data) + 1)


def test_what_stays_for_gits_sake_is_told(house, run, folder):
    write(folder, x_dot_py="", _dot_gitignore="model/\n", model__weights="w")
    done = run("submit", "--tokens", 1, "--working-dir", ".", "x.py")
    assert "model/" in done.stderr
    assert "`!model/` in .fabricignore" in done.stderr


def test_what_the_code_reads_and_what_was_not_sent_is_told(house, run, folder):
    write(folder, x_dot_py="open('data.csv')", data_dot_csv="1")
    done = run("submit", "--tokens", 1, "x.py")
    assert "not sent, though the code names it: data.csv" in done.stderr
    assert "--working-dir" in done.stderr
    assert "data.csv" not in run("submit", "--tokens", 1, "--working-dir", ".", "x.py").stderr


@pytest.mark.parametrize("command", ["submit", "run"])
def test_an_option_of_the_scripts_is_pointed_at_the_dashes(run, folder, command):
    write(folder, train_dot_py="")
    done = run(command, "--tokens", 1, "train.py", "--lr", "0.1", code=2)
    told = " ".join(done.stderr.replace("│", " ").split())
    assert "No such option: --lr" in told
    assert "-- train.py --lr" in told
    assert run(command, "--tokens", 1, "--", "train.py", "--lr", "0.1")


def test_packages_are_named_on_the_command_line(house, run, folder):
    write(
        folder, x_dot_py="",
        requirements_dot_txt="# what it needs\nnumpy>=2 ; python_version > '3.9'\n\nemoji==2.0 # small\n--extra-index-url https://a/b\n",
        env_dot_json=json.dumps({"env_vars": {"A": "b"}, "pip": ["rich"]}),
    )  # fmt: skip
    run("submit", "--tokens", 1, "-r", "requirements.txt", "--pip", "six", "--runtime-env", "env.json", "x.py")
    (submitted,) = house.port.batches[-1]
    assert json.loads(submitted.spec.payload)["runtime_env"] == {
        "env_vars": {"A": "b"},
        "pip": {
            "packages": ["rich", "numpy>=2 ; python_version > '3.9'", "emoji==2.0", "six"],
            "pip_install_options": ["--extra-index-url", "https://a/b"],
        },
    }


@pytest.mark.parametrize(
    ("given", "file", "says"),
    [
        ("", "-e .\n", "line 1"),
        ("", "a==1 --hash=sha256:0\n", "hashes"),
        ("", "-r other.txt\n", "other.txt"),
        ("nowhere.json", None, "neither JSON nor a file"),
        ("{bad", None, "not JSON"),
    ],
)
def test_packages_that_can_not_be_read_are_named(folder, given, file, says):
    path = folder / "r.txt"
    path.write_text(file or "")
    with pytest.raises(InvalidRequest, match=says):
        runtime_env_of(given, requirements=path if file else None, pip=[])
