"""Hostile processes that leave their lease in every way there is: they are counted to it, and end with it."""

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fabric.node.agent import NodeAgent, Watch
from fabric.storage.archive import DirectoryArchive
from fabric.system.processes import LEASE_VARIABLE, all_processes, kill
from fabric.worker.members import Members, own_group
from fabric.worker.traces import new_trace, trace_of

RUNNER = """
import ctypes, os, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
print("ready", flush=True)
sys.stdin.readline()
{job}
time.sleep(600)
"""
BUSY = "end = time.monotonic() + 120\nwhile time.monotonic() < end: pass"
ESCAPE = """
import ctypes, os, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)
code = '''
import os, sys, time
{leave}
open({told!r}, "w").write(str(os.getpid()))
{busy}
'''
for _ in range(1):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 256)
            os.chdir("/")
            os.execve(sys.executable, {argv}, {environ})
        os._exit(0)
    os.wait()
"""
WAYS = {
    "twice forked, without a subreaper": {},
    "in a session of its own": {"leave": "os.setsid() if os.getsid(0) != os.getpid() else None"},
    "with an empty environment": {"environ": "{}"},
    "with other words": {"argv": '["/sbin/init", "-c", code]'},
    "in another folder with other words and no environment": {"environ": "{}", "argv": '["sh", "-c", code]'},
    "with another's mark": {"environ": "{'FABRIC_LEASE_ID': 'other.1'}"},
}
LOWER = "import resource\nresource.setrlimit(resource.RLIMIT_{which}, ({to}, {to}))\n"


def escaping(told, *, leave="", environ="dict(os.environ)", argv="[sys.executable, '-c', code]"):
    return ESCAPE.format(leave=leave, told=str(told), busy=BUSY, environ=environ, argv=argv)


@pytest.fixture
def runner(tmp_path):
    """Starts runners' stand-ins, whose job begins when it is told to; all of it ends with the test."""
    started, told = [], []

    def start(job, *, begun=False):
        words = [sys.executable, "-c", RUNNER.format(job=job)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        started.append(process)
        return process

    def tell():
        told.append(tmp_path / f"told-{len(told)}")
        return told[-1]

    start.tell = tell
    yield start
    for file in told:
        with suppress(OSError, ValueError):
            kill(int(file.read_text()))
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def begin(process):
    process.stdin.write("\n")
    process.stdin.flush()


def pid_in(file, *, within_s=30):
    deadline = time.monotonic() + within_s
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline, "it did not escape"
        time.sleep(0.01)
    return int(file.read_text())


def lives(pid):
    """Whether it is there, and no zombie."""
    return any(seen.pid == pid for seen in all_processes())


def groups(kind):
    """Where there may be control groups, and where there are none."""
    if kind == "a limit":
        return Path("/nonexistent")
    if own_group() is None:
        pytest.skip("no writable control groups (v2) here")
    return None


def strays(members, runners=()):
    return [stray.pid for stray in members.strays(runners)]


def with_one_that_escapes(members, runner, **way):
    """A process of a lease, and the number of the one that it has started elsewhere."""
    told = runner.tell()
    process = runner(escaping(told, **way))
    members.follow("job-1.1", (process.pid,))
    begin(process)
    return process, pid_in(told)


def test_what_was_a_leases_is_known_when_it_has_gone_and_when_its_lease_has(runner):
    members, now_s = Members(groups_at=groups("a limit")), time.time()
    process, escaped = with_one_that_escapes(members, runner)
    assert members.had({escaped: now_s}) == []
    assert escaped in members.of("job-1.1")
    assert members.had({escaped: now_s, 1: now_s, process.pid: now_s}) == [escaped, process.pid]
    kill(escaped)
    while lives(escaped):
        time.sleep(0.01)
    assert escaped not in members.of("job-1.1")
    assert members.had({escaped: now_s}) == [escaped]
    assert members.had({escaped: now_s - 3_600}) == []
    assert members.had({escaped: now_s + 3_600}) == []
    members.forget("job-1.1")
    assert members.had({escaped: now_s}) == [escaped]


def test_a_process_that_goes_with_its_lease_is_known_by_its_number_and_time(runner):
    members, now_s = Members(groups_at=groups("a limit")), time.time()
    _, escaped = with_one_that_escapes(members, runner)
    assert escaped in members.of("job-1.1")
    members.forget("job-1.1")
    assert members.had({escaped: now_s}) == [escaped]


@pytest.mark.parametrize("kind", ["a control group", "a limit"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_process_that_leaves_its_lease_is_still_its_member(runner, way, kind):
    members = Members(groups_at=groups(kind))
    process, escaped = with_one_that_escapes(members, runner, **way)
    assert os.getsid(escaped) != os.getsid(process.pid)
    assert escaped in members.of("job-1.1")


def test_the_two_ways_of_containing_do_not_need_one_another(runner, monkeypatch):
    """Seen while it was below its runner, a process is known after it has left, also where neither could be had."""
    members = Members(groups_at=Path("/nonexistent"))
    monkeypatch.setattr("fabric.worker.members.traced", lambda pid, tag: 0)
    told = runner.tell()
    slow = escaping(told).replace("os._exit(0)", "time.sleep(1); os._exit(0)")
    process = runner(slow)
    members.follow("job-1.1", (process.pid,))
    begin(process)
    escaped = pid_in(told)
    assert escaped in members.of("job-1.1")
    deadline = time.monotonic() + 30
    while parent_of(escaped) != 1 and parent_of(escaped) in members.of("job-1.1"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert escaped in members.of("job-1.1")


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_job_cannot_have_another_pay_for_what_it_marks_as_theirs(runner):
    members = Members()
    told = runner.tell()
    attacker = runner(escaping(told, environ="{'FABRIC_LEASE_ID': 'victim.1'}"))
    victim = runner("")
    members.follow("attacker.1", (attacker.pid,))
    members.follow("victim.1", (victim.pid,))
    begin(attacker)
    escaped = pid_in(told)
    assert escaped in members.of("attacker.1")
    assert members.of("victim.1") == [victim.pid]


def lowering(job, **limits):
    """The same job, after its process has lowered limits: nobody needs a privilege for that."""
    return "".join(LOWER.format(which=which, to=to) for which, to in limits.items()) + job


@pytest.mark.parametrize("to", [{"RTTIME": 5}, {"RSS": 5}, {"RTTIME": 5, "RSS": 5}, {"RTTIME": 2**61 + 1}])
def test_a_process_that_has_lowered_its_limits_and_left_is_a_stray(runner, to):
    members = Members(groups_at=Path("/nonexistent"))
    told = runner.tell()
    attacker, other = runner(lowering(escaping(told, environ="{}"), **to)), runner("")
    members.follow("attacker.1", (attacker.pid,))
    members.follow("other.1", (other.pid,))
    begin(attacker)
    escaped = pid_in(told)
    assert members.of("other.1") == [other.pid]
    assert escaped in [*members.of("attacker.1"), *strays(members)], (
        "it may leave between the two, and does not come back"
    )


def test_a_process_that_has_lowered_its_limits_and_stayed_is_no_stray(runner):
    """`ulimit -m` in a job's script, seen by the agent of the job and by that of another fabric on the machine."""
    members, others = (Members(groups_at=Path("/nonexistent")) for _ in range(2))
    told = runner.tell()
    job = f"import subprocess\nsubprocess.run(['sh', '-c', 'ulimit -m 5; echo $$ > {told}; exec sleep 60'])"
    process = runner(job)
    members.follow("job-1.1", (process.pid,))
    begin(process)
    lowered = pid_in(told)
    assert lowered not in strays(others)
    assert lowered in members.of("job-1.1")
    assert lowered not in strays(members)


def test_a_job_cannot_have_another_pay_by_taking_on_its_limit(runner, monkeypatch):
    members = Members(groups_at=Path("/nonexistent"))
    told = runner.tell()
    number = new_trace()
    numbers = iter((number, number + 7))
    monkeypatch.setattr("fabric.worker.traces.new_trace", lambda tag: next(numbers))
    victim = runner("")
    members.follow("victim.1", (victim.pid,))
    lower = trace_of(victim.pid)
    attacker = runner(lowering(escaping(told, environ="{}"), RTTIME=lower))
    members.follow("attacker.1", (attacker.pid,))
    begin(attacker)
    escaped = pid_in(told)
    assert members.of("victim.1") == [victim.pid]
    assert escaped in [*members.of("attacker.1"), *strays(members)], (
        "it may leave between the two, and does not come back"
    )


def test_what_a_mark_alone_tells_of_is_a_member_too():
    """A Ray worker that a job has started: no child of its runner, but with what the runner's environment began with."""
    members = Members()
    members.follow("job-1.1", (), marks=("runner-abc",))
    words = [sys.executable, "-c", "input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, env={**os.environ, LEASE_VARIABLE: "runner-abc"}) as worker:
        deadline = time.monotonic() + 10
        while worker.pid not in members.of("job-1.1"):
            assert time.monotonic() < deadline
        worker.communicate(b"\n")


def test_each_runner_has_a_number_of_its_own_and_keeps_it_for_its_next_lease(runner):
    members = Members(groups_at=Path("/nonexistent"))
    first, second = runner(""), runner("")
    members.follow("job-1.1", (first.pid,))
    members.follow("job-2.1", (second.pid,))
    numbers = trace_of(first.pid), trace_of(second.pid)
    assert len({*numbers, 0}) == 3
    members.forget("job-1.1")
    members.follow("job-3.1", (first.pid,))
    assert trace_of(first.pid) == numbers[0]
    again = Members(groups_at=Path("/nonexistent"))
    again.follow("job-3.1", (first.pid,))
    assert trace_of(first.pid) == numbers[0], "an agent that was started again goes by the same number"


def test_whoever_follows_is_never_contained_nor_a_member():
    members = Members()
    members.follow("job-1.1", (os.getpid(),))
    assert trace_of(os.getpid()) == 0
    assert os.getpid() not in members.of("job-1.1")


@pytest.mark.parametrize("kind", ["a control group", "a limit"])
def test_what_outlives_its_lease_is_a_stray_and_a_runner_that_waits_is_none(runner, kind):
    members = Members(groups_at=groups(kind))
    told = runner.tell()
    process = runner(escaping(told, environ="{}"))
    members.follow("job-1.1", (process.pid,))
    begin(process)
    escaped = pid_in(told)
    assert escaped not in strays(members)
    members.forget("job-1.1")
    assert escaped in strays(members)
    assert process.pid not in strays(members)
    kill(escaped)
    while lives(escaped):
        time.sleep(0.01)
    assert escaped not in strays(members)


def test_a_worker_with_the_mark_of_a_lease_that_was_is_a_stray():
    members = Members()
    members.follow("job-1.1", (), marks=("runner-abc",))
    members.forget("job-1.1")
    words = [sys.executable, "-c", "input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, env={**os.environ, LEASE_VARIABLE: "runner-abc"}) as worker:
        deadline = time.monotonic() + 10
        while worker.pid not in strays(members):
            assert time.monotonic() < deadline
        members.follow("job-2.1", (), marks=("runner-abc",))
        assert worker.pid not in strays(members)
        worker.communicate(b"\n")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_what_left_its_lease_is_metered_to_it_and_ended_with_it(runner, tmp_path, way):
    agent = NodeAgent(meter="cpu", archive=DirectoryArchive(tmp_path / "archive"))
    told = runner.tell()
    process = runner(escaping(told, **way))
    await agent.attach(Watch(lease_id="job-1.1", devices=("0",), roots=(process.pid,)))
    begin(process)
    escaped = pid_in(told)
    (first,) = await agent.samples({})
    await asyncio.sleep(1)
    (second,) = await agent.samples({"job-1.1": first.seq})
    assert second.busy_us > second.window_us // 4
    await agent.detach("job-1.1", acknowledged=second.seq)
    assert await agent.end("job-1.1", roots=(process.pid,))
    assert not lives(escaped)


async def test_what_left_a_runner_that_stays_is_ended_when_the_lease_is_released(runner, tmp_path):
    agent = NodeAgent(meter="cpu", archive=DirectoryArchive(tmp_path / "archive"))
    told = runner.tell()
    process = runner(escaping(told, environ="{}"))
    await agent.attach(Watch(lease_id="job-1.1", devices=("0",), roots=(process.pid,)))
    begin(process)
    escaped = pid_in(told)
    _, clear = await agent.release("job-1.1", acknowledged=0)
    assert clear
    assert process.poll() is None
    assert not lives(escaped)


async def test_a_crowd_that_keeps_forking_out_of_its_lease_is_ended(runner, tmp_path):
    """It forks 800 times at most: whoever takes in orphans here may be slow, and the machine has so many process ids."""
    agent = NodeAgent(meter="cpu", archive=DirectoryArchive(tmp_path / "archive"))
    crowd = textwrap.dedent(
        """
        for _ in range(8):
            if os.fork() == 0:
                os.setsid()
                for _ in range(100):
                    if os.fork() != 0:
                        os._exit(0)
                    time.sleep(0.02)
                    os.setsid()
                os._exit(0)
        """
    )
    process = runner("ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)\n" + crowd)
    await agent.attach(Watch(lease_id="job-1.1", devices=("0",), roots=(process.pid,)))
    number = trace_of(process.pid)
    begin(process)
    await asyncio.sleep(0.5)
    assert await agent.end("job-1.1", roots=(process.pid,))
    assert [seen.pid for seen in all_processes() if trace_of(seen.pid) == number] == []


def test_all_that_comes_of_a_process_that_may_start_nothing_is_a_stray(runner):
    members = Members()
    told = runner.tell()
    process = runner(escaping(told, environ="{}"))
    members.contain([process.pid])
    begin(process)
    escaped = pid_in(told)
    assert strays(members) == [escaped]


def test_control_groups_that_an_agent_has_left_go_with_the_next_one_and_those_in_use_stay(runner):
    where = groups("a control group") or own_group()
    left = where / f"fabric-{os.getpid()}-0"
    left.mkdir()
    process = runner("")
    Members().follow("job-1.1", (process.pid,))
    assert not left.exists()
    Members()
    assert [path for path in where.glob(f"fabric-*-{process.pid}-*") if path.exists()]
