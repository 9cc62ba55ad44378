"""The command line for somebody who has never seen it: wrong words, wrong settings, and terminals that can't show all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.errors import NotFound, Unauthenticated
from fabric.transport import choice

MAIN = "import sys; sys.argv[0] = 'fabric'; from fabric.cli import main; main()"
NARROW = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "cp437"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


def environment(house, **more):
    known = {"FABRIC_ADDRESS": house.address, "FABRIC_API_KEY": house.acme, "FABRIC_CA": str(house.tls.ca)}
    own = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
    return own | known | {"XDG_CONFIG_HOME": str(house.folder)} | more


def run(house, *words, **more):
    return subprocess.run(
        [sys.executable, "-c", MAIN, *words],
        capture_output=True,
        env=environment(house, **more),
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("sumbit",), "Did you mean 'submit'?"),
        (("keys", "crate"), "Did you mean 'create'?"),
        (("jobs", "--stat", "running"), "--state"),
        (("jobs", "--limit", "x"), "--limit"),
        (("jobs", "--limit", "0"), "x>=1"),
        (("job",), "JOB"),
        (("submit", "x.py"), "--tokens"),
        (("--bogus",), "--bogus"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_a_wrong_word_is_one_line_with_what_helps_and_json_where_asked(house, words, says):
    done = run(house, *words)
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in said
    assert "--help`" in said
    assert said.count("\n") == 1
    if words[0].startswith("--"):
        return
    done = run(house, *words, "--json")
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, done.stdout, error["code"]) == (2, b"", "usage")
    assert says in error["message"]


@pytest.mark.parametrize("narrow", NARROW, ids=lambda each: next(iter(each.values())))
def test_a_terminal_that_can_not_show_all_letters_is_shown_the_others(house, narrow):
    for words in (("--help",), ("submit", "--help"), ("quote", "-t", "1"), ("plans",), ("balance",), ("job", "ü→µ")):
        done = run(house, *words, **narrow)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode in ((2, 5) if words[0] == "job" else (0,)), words


@pytest.mark.parametrize("narrow", NARROW, ids=lambda each: next(iter(each.values())))
def test_json_says_every_letter_whatever_the_terminal_can_show(house, narrow):
    house.port.run_jobs = False
    house.fabric().submit(["true"], tokens=1, name="训练 → µ")
    done = run(house, "jobs", "--json", **narrow)
    assert json.loads(done.stdout)[0]["name"] == "训练 → µ"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("words", ["balance", "plans --json", "--help"])
def test_output_that_nobody_reads_is_no_mistake_and_a_full_disk_is_told(house, words):
    command = f'"{sys.executable}" -c "{MAIN}" {words}'
    for shell, codes in (
        (f"{command} | true; exit ${{PIPESTATUS[0]}}", {0}),
        (f"{command} >&-", {0}),
        (f"{command} 2>&- >/dev/null", {0}),
        (f"{command} >/dev/full", {2}),
    ):
        done = subprocess.run(
            ["bash", "-c", shell], capture_output=True, env=environment(house), check=False, timeout=120
        )
        assert done.returncode in codes, (shell, done)
        assert b"Traceback" not in done.stderr
        assert b"Exception ignored" not in done.stderr
        assert (b"No space left" in done.stderr) == ("/dev/full" in shell)


def test_no_color_is_heeded_and_a_narrow_terminal_is_filled_no_wider(house):
    done = run(house, "balance", NO_COLOR="1", FORCE_COLOR="")
    assert b"\x1b[" not in done.stdout
    assert run(house, "--help", COLUMNS="30", TERM="dumb").returncode == 0


@pytest.mark.parametrize("transport", ["grpcio", "http2"])
def test_a_key_or_account_that_none_can_be_is_told_before_it_is_sent(house, monkeypatch, transport):
    monkeypatch.setattr(choice, "has_grpcio", lambda: transport == "grpcio")
    with pytest.raises(Unauthenticated, match="FABRIC_API_KEY"):
        house.client("fab_ключ_x")
    with pytest.raises(Unauthenticated):
        house.client("fab_a_b\nx")
    with pytest.raises(NotFound, match="ü"):
        house.client(house.root, account="ü")


def test_an_address_that_no_fabric_answers_at_says_what_to_check(house):
    here = run(house, "balance", FABRIC_ADDRESS="127.0.0.1:1").stderr.decode()
    assert "127.0.0.1:1" in here
    assert "fabric doctor" in here
    away = run(house, "balance", FABRIC_ADDRESS="nowhere.invalid:50051").stderr.decode()
    assert "nowhere.invalid:50051" in away
    assert "FABRIC_ADDRESS" in away
    assert "doctor" not in away


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes_commands_and_options(house, tmp_path):
    fabric = tmp_path / "fabric"
    fabric.write_text(f'#!/bin/sh\nexec \'{sys.executable}\' -c "{MAIN}" "$@"\n')
    fabric.chmod(0o755)
    for typed, expected in ((("fabric", "sub"), {"submit", "subscribe"}), (("fabric", "jobs", "--sta"), {"--state"})):
        words = " ".join(typed)
        script = (
            f'eval "$(_FABRIC_COMPLETE=source_bash fabric)"; COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1};'
            " _fabric_completion fabric; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        env = environment(house, PATH=f"{tmp_path}:{os.environ['PATH']}")
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, check=False, timeout=120)
        assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_there_is_a_script_for_the_other_shells(house, shell):
    done = run(house, _FABRIC_COMPLETE=f"source_{shell}")
    assert done.returncode == 0
    assert b"_FABRIC_COMPLETE=complete_" + shell.encode() in done.stdout
