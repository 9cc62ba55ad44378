"""A start that can't succeed says why in one line, and leaves nothing; no Ray is started here."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import msgspec
import pytest
from typer.testing import CliRunner

from fabric import daemon, doctor
from fabric.cli import app
from fabric.daemon.process import _wait
from fabric.daemon.state_dir import announce, is_held, note_health, tell
from fabric.errors import Conflict, InvalidConfig, NotFound, Unavailable

LOCAL = (
    "name: here\nray: {{mode: local, nodes: [{{node: n, accelerator: H100, devices: 1}}]}}\n"
    "rpc: {{listen: '127.0.0.1:{rpc}'}}\ndashboard: {{port: {dashboard}}}\n"
)


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "cluster.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def there(state_dir):
    """What a state directory says of a fabric that is, or was, up."""
    return daemon.Running(
        name="here",
        pid=2**22 + 1,
        address="127.0.0.1:1",
        ca="",
        dashboard="",
        ray_address="",
        verifier_key="",
        state_dir=str(state_dir),
        nodes=1,
    )


class FakeTime:
    """Time that passes only where somebody sleeps, and what happens at some of its seconds."""

    def __init__(self, happens):
        self.now, self.happens = 0.0, happens

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        while self.happens and self.happens[0][0] <= self.now:
            self.happens.pop(0)[1]()


class Alive:
    def poll(self):
        return None


@pytest.mark.parametrize("gets_on", [True, False])
def test_a_start_that_gets_on_with_its_journal_is_waited_for(tmp_path, monkeypatch, gets_on):
    """Each step has the time anew; one that says nothing more is given up."""
    steps, said = tmp_path / "steps", []
    up = (3_600, lambda: tell(steps, daemon.Step(doing="up", up=True)))
    on = [(100 * n, lambda n=n: tell(steps, daemon.Step(doing=f"{n} entries"))) for n in range(1, 36)]
    monkeypatch.setattr("fabric.daemon.process.time", FakeTime([*on[: 35 if gets_on else 5], up]))
    waiting = {"place": tmp_path, "doing": "come up", "say": said.append, "timeout_s": 180}
    if gets_on:
        _wait(Alive(), steps, **waiting)
        assert said == [f"{n} entries" for n in range(1, 36)]
    else:
        with pytest.raises(Unavailable, match="did not come up in time"):
            _wait(Alive(), steps, **waiting)


def test_a_second_start_says_what_is_wrong_with_the_first(state_dir, there):
    """Already up is no help to whoever starts it because it doesn't answer."""
    with daemon.held(state_dir):
        announce(state_dir, there)
        note_health(state_dir, "the journal's database is away since 40 s")
        with pytest.raises(
            Conflict, match=r"not well: the journal's database is away .*`fabric down` ends it"
        ) as raised:
            daemon.up()
        assert raised.value.facts["ailment"] == "the journal's database is away since 40 s"
        note_health(state_dir, "")
        with pytest.raises(Conflict, match=r"is up already at .*: use it"):
            daemon.up()


@pytest.mark.parametrize(
    ("is_up", "wrong", "said", "remedy"),
    [
        (True, "", "is up and well", ""),
        (
            True,
            "Ray's control store is away since 9 s",
            "not well: Ray's control store is away since 9 s",
            "fabric down",
        ),
        (False, "", "has ended, and not in order", "fabric up brings everything back"),
    ],
)
def test_the_doctor_says_how_the_fabric_is(state_dir, there, monkeypatch, is_up, wrong, said, remedy):
    monkeypatch.setattr(doctor, "diagnose", lambda _: [])
    assert json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout) == []
    with daemon.held(state_dir):
        announce(state_dir, there)
        note_health(state_dir, wrong)
        done = CliRunner().invoke(app, ["doctor", "--json"]) if is_up else None
    (row,) = json.loads((done or CliRunner().invoke(app, ["doctor", "--json"])).stdout)
    assert row["name"] == "fabric"
    assert said in row["found"]
    assert remedy in row["remedy"]
    assert row["health"] == ("warn" if remedy else "ok")


def test_up_says_in_red_where_tokens_cost_nothing(state_dir, there, monkeypatch):
    giveaway = "TOKENS COST NOTHING for every customer who reaches rpc.listen 0.0.0.0:7433"
    monkeypatch.setattr(daemon, "operator_key", lambda _: "fab_k_s")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(state_dir))
    monkeypatch.setenv("FORCE_COLOR", "1")
    for said in ("", giveaway):
        found = msgspec.structs.replace(there, giveaway=said, account="local", payments="" if said else "operator")
        monkeypatch.setattr(daemon, "up", lambda *_, found=found, **__: found)
        done = CliRunner().invoke(app, ["up", "--local"])
        assert (f"\x1b[1;31mWARNING: {giveaway}" in done.stderr) == bool(said), done.output + repr(done.exception)
        assert ("--payment-ref" in done.stdout) == (not said), "what comes next is what will be accepted"
        assert json.loads(CliRunner().invoke(app, ["up", "--local", "--json"]).stdout)["giveaway"] == said


def test_a_second_start_in_one_state_directory_is_a_conflict_that_names_the_first(state_dir, there):
    with daemon.held(state_dir):
        with pytest.raises(Conflict, match=r"a fabric is starting in .*: use it, stop it"):
            daemon.up()
        announce(state_dir, there)
        with pytest.raises(Conflict, match=r"here is up already at 127.0.0.1:1 .*--state-dir DIR --any-port") as raised:
            daemon.up()
        assert daemon.running() == there
    assert raised.value.code == "already_up"


def test_a_second_fabric_beside_the_first_listens_at_free_ports(state_dir, there, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(daemon, "up", lambda _, **options: asked.update(options) or there)
    monkeypatch.setattr(daemon, "operator_key", lambda _: "key")
    words = ["up", "--local", "--state-dir", str(tmp_path / "other"), "--any-port", "--profile", "other"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert (asked["any_port"], asked["state_dir"]) == (True, tmp_path / "other")


@pytest.mark.parametrize(("answer", "asked"), [("y\n", [False, True]), ("n\n", [False])])
def test_a_clock_that_is_far_ahead_is_a_question_to_whoever_starts_the_fabric(
    there, tmp_path, monkeypatch, answer, asked
):
    accepted = []

    def up(_, *, accept_time, **__):
        accepted.append(accept_time)
        if not accept_time:
            raise Unavailable("is this machine's clock right?", code="clock_ahead")
        return there

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(daemon, "up", up)
    monkeypatch.setattr(daemon, "operator_key", lambda _: "key")
    monkeypatch.setattr("fabric.cli.cluster._is_a_person", lambda: True)
    done = CliRunner().invoke(app, ["up", "--local"], input=answer)
    assert "is this machine's clock right? [y/N]" in done.output
    assert accepted == asked
    assert (done.exit_code == 0) == (answer == "y\n")


def test_without_anybody_to_ask_a_clock_far_ahead_ends_the_start_and_an_option_answers(there, tmp_path, monkeypatch):
    given = []

    def up(_, **options):
        given.append((options["accept_time"], options["replay_from"]))
        if not options["accept_time"]:
            raise Unavailable("is this machine's clock right?", code="clock_ahead")
        return there

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(daemon, "up", up)
    monkeypatch.setattr(daemon, "operator_key", lambda _: "key")
    assert CliRunner().invoke(app, ["up", "--local"]).exit_code != 0
    assert CliRunner().invoke(app, ["up", "--local", "--accept-time", "--replay-from", "0"]).exit_code == 0
    assert given == [(False, None), (True, 0)]


def test_a_lock_whose_holder_was_killed_is_none(state_dir, there):
    with daemon.held(state_dir):
        announce(state_dir, there)
    assert (state_dir / "run.lock").exists()
    assert daemon.running() is None
    assert not is_held(state_dir)
    with pytest.raises(NotFound):
        daemon.down()


def test_looking_whether_one_is_up_makes_nothing_and_keeps_nobody_out(state_dir):
    assert daemon.running() is None
    assert not state_dir.exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_state_directory_that_can_not_be_written_is_named_with_what_to_do(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfig, match=r"can't be written: .*--state-dir or FABRIC_STATE_DIR") as raised:
        daemon.up(state_dir=tmp_path / place)
    assert raised.value.code == "state_dir_unwritable"


@pytest.mark.parametrize("which", ["rpc", "dashboard"])
def test_a_port_that_is_taken_is_told_before_a_cluster_is_started(state_dir, file, taken_port, which):
    config = file(LOCAL.format(**{"rpc": 0, "dashboard": 0, which: taken_port}))
    doing = []
    with pytest.raises(Unavailable, match=f"127.0.0.1:{taken_port}: .* set another port for {which}") as raised:
        daemon.up(config, say=doing.append)
    assert raised.value.code == "address_taken"
    assert doing == []
    assert sorted(path.name for path in state_dir.iterdir()) == ["fabric.log", "run.lock"]


def test_a_ray_cluster_that_is_not_there_is_told_with_what_to_do(state_dir, file):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    config = file(f"name: lab\nray: {{mode: join, address: '{address}'}}\nrpc: {{listen: '127.0.0.1:0'}}\n")
    with pytest.raises(Unavailable, match=f"{address}: Connection refused: check RAY_ADDRESS") as raised:
        daemon.up(config)
    assert raised.value.code == "ray_unreachable"


def run(*words, code):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


def test_bad_yaml_ends_every_command_with_two_and_one_line(state_dir, file):
    config = file("name: [")
    for command in ("up", "doctor"):
        done = run(command, "--config", config, code=2)
        assert done.stderr.count("\n") == 1
        assert "cluster.yaml: is not valid YAML: expected the node content" in done.stderr
        assert "line 1, column 8" in done.stderr
    assert not state_dir.exists()


def test_down_with_nothing_up_ends_with_five_and_says_how_to_start(state_dir):
    assert "`fabric up` starts one" in run("down", code=5).stderr
    assert json.loads(run("down", "--gate", "--json", code=5).stderr)["error"]["code"] == "not_up"


def test_local_and_a_file_can_not_both_be_asked_for(file):
    assert "choose --local or --config" in run("up", "--local", "--config", file("name: a"), code=2).stderr


def test_the_doctor_ends_with_one_where_something_fails_and_says_what_to_do(state_dir, file, taken_port):
    config = file(LOCAL.format(rpc=taken_port, dashboard=0))
    shown = run("doctor", "--config", config, code=1).stdout
    assert "fail  rpc.listen" in shown
    assert "set another port for rpc.listen" in shown
    findings = json.loads(run("doctor", "--config", config, "--json", code=1).stdout)
    assert {each["name"] for each in findings if each["health"] == "fail"} == {"rpc.listen"}
    assert all(each["found"] for each in findings)


def test_the_doctor_ends_with_zero_where_nothing_fails(state_dir, file):
    config = file(LOCAL.format(rpc=0, dashboard=0))
    findings = json.loads(run("doctor", "--config", config, "--json", code=0).stdout)
    assert {each["health"] for each in findings} <= {"ok", "warn"}
    assert not state_dir.exists()


SERVES = """
import os, signal, sys, time
from pathlib import Path
from fabric import daemon
from fabric.daemon.state_dir import announce, tell

place, clears_s = Path(sys.argv[1]), float(sys.argv[2])
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(time.monotonic()))
with daemon.held(place):
    announce(place, daemon.Running(name="here", pid=os.getpid(), address="", ca="", dashboard="", ray_address="",
                                  verifier_key="", state_dir=str(place), nodes=1))
    print("up", flush=True)
    while not ended:
        time.sleep(0.01)
    tell(daemon.ending_file(place), daemon.Step(doing="saving", within_s=60))
    while time.monotonic() < ended[0] + clears_s and not daemon.now_file(place).exists():
        time.sleep(0.01)
"""


@pytest.fixture
def serves(state_dir):
    """A process that serves from the state directory, and at its end has jobs that take so many seconds to save."""
    started = []

    def start(clears_s):
        command = [sys.executable, "-c", SERVES, str(state_dir), str(clears_s)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "up\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_an_end_waits_for_jobs_that_save_and_says_so(serves):
    process, said = serves(2), []
    daemon.down(say=said.append, timeout_s=1)
    assert (process.wait(5), said) == (0, ["saving"])


def test_an_end_that_can_not_wait_ends_at_once_and_leaves_no_word_of_it(serves, state_dir):
    process = serves(600)
    daemon.down(now=True)
    assert process.wait(5) == 0
    assert not daemon.now_file(state_dir).exists()


def test_an_end_that_is_interrupted_goes_on_and_waits_for_nobody_the_second_time(serves):
    process, said = serves(600), []

    def interrupting(doing):
        said.append(doing)
        if len(said) <= 2:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    daemon.down(say=interrupting)
    assert process.wait(5) == 0
    assert ["interrupt again" in doing for doing in said] == [False, True, False]
