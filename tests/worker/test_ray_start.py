"""A program whose Ray doesn't start, or ends in the middle, is tried again, whatever it is and whoever stands above it; one that
fails by itself isn't.
"""

import contextlib
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from fabric.gate.events import LeaseOutcome
from fabric.worker import ray_node
from fabric.worker.exits import judged, unless_ray
from fabric.worker.ray_start import STARTS, noted

FAILED, INTERRUPTED = LeaseOutcome.FAILED, LeaseOutcome.INTERRUPTED
BEGINS = """
import os, sys
from pathlib import Path
from fabric.errors import Unavailable
from fabric.worker.lease_ray_settings import told_ray
from fabric.worker.ray_start import NOTE, noted

folder = Path(told_ray(os.environ).folder)
os.path.exists(folder) or os.mkdir(os.path.realpath(folder))

def start(error=None):
    with noted(folder):
        if error is not None:
            raise error

def fail():
    start(Unavailable("its raylet has ended", code="ray_not_started"))

def fail_and_go_on():
    try:
        fail()
    except Unavailable:
        pass
"""
ENDS = {
    "it fails of it": ("fail()", INTERRUPTED),
    "it ends of it in its own way": ("fail_and_go_on(); sys.exit(7)", INTERRUPTED),
    "Ray's own code ends it meanwhile": ("with noted(folder): os._exit(1)", INTERRUPTED),
    "it fails of something else": ("start(); sys.exit(3)", FAILED),
    "it asks for what can't be": ("start(ValueError('no such option'))", FAILED),
    "it tries again by itself": ("fail_and_go_on(); start(); sys.exit(3)", FAILED),
    "it goes on for long": ("fail_and_go_on(); os.utime(folder / NOTE, (1, 1)); sys.exit(3)", FAILED),
    "something else lies there": ("os.mkfifo(folder / NOTE); sys.exit(3)", FAILED),
}


@pytest.mark.parametrize("how", ENDS)
def test_only_a_program_whose_ray_has_just_not_started_is_interrupted(executing, how):
    code, outcome = ENDS[how]
    end, log = executing.run("python", "x.py", files={"x.py": textwrap.dedent(BEGINS) + code})
    assert (end.outcome, end.error.startswith("ray_not_started: ")) == (outcome, outcome is INTERRUPTED), (end, log)


def test_so_is_a_wrapper_that_ends_with_a_code_of_its_own(executing):
    end, _ = executing.run("sh", "-c", "python x.py || exit 4", files={"x.py": BEGINS + "fail()"})
    assert (end.outcome, end.exit_code) == (INTERRUPTED, 4)
    assert "its raylet has ended" in end.error


def test_and_a_function_whose_process_is_ended_meanwhile(executing):
    attempt = executing.begin("true")
    attempt.ended()
    (attempt.stage.folder / "ray").mkdir()
    with noted(attempt.stage.folder / "ray"):
        assert unless_ray(judged(1, asked=False), attempt.stage).outcome is INTERRUPTED
    assert unless_ray(judged(1, asked=False), attempt.stage).outcome is FAILED


@pytest.mark.parametrize(("name", "times", "raised"), [("raylet", STARTS, ChildProcessError), ("other", 1, ValueError)])
def test_a_start_is_tried_again_where_a_process_of_rays_has_ended_whatever_ray_says(tmp_path, name, times, raised):
    """Ray tells of most such ends as something else; and what the program asks for and can't have is not tried again."""
    (tmp_path / name).symlink_to("/bin/false")
    begun = []

    def start():
        begun.append(subprocess.Popen([tmp_path / name]))
        while ray_node.psutil.Process(begun[-1].pid).status() != ray_node.psutil.STATUS_ZOMBIE:
            pass
        raise ValueError("the current node timed out during startup")

    with pytest.raises(raised, match="timed out during startup"):
        ray_node.started(start)
    assert [process.wait() for process in begun] == [1] * times


STARTS_ONE = """
import os, signal
from ray._private import services
from fabric.worker.ray_node import patience

os.register_at_fork(after_in_child=lambda: signal.alarm(1))
with patience():
    print(services.start_ray_process(["sleep", "1.5"], "raylet", fate_share=False).process.wait())
"""


def test_a_process_of_rays_does_not_end_of_an_alarm_that_was_set_in_the_copy_that_it_was():
    """By Ray's handler of crashes, where a thread that gRPC begins anew in each copy aborts before the copy is the process."""
    done = subprocess.run([sys.executable, "-c", STARTS_ONE], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout == "0\n", done.stderr


BREAKS = """
import atexit, os, subprocess, sys, time
from pathlib import Path
from fabric.worker.lease_ray_settings import told_ray
from fabric.worker.ray_end import RayWatch
from fabric.worker.ray_start import END_NOTE, NOTE, noted

folder = Path(told_ray(os.environ).folder)
os.path.exists(folder) or os.mkdir(os.path.realpath(folder))
raylet = subprocess.Popen(["sleep", "600"])
atexit.register(raylet.kill)  # as Ray's own does
known = [True]
watch = RayWatch(folder, {"raylet": raylet.pid}, knows=lambda: known[0])

def break_it():
    raylet.kill()
    raylet.wait()
"""
BROKEN = {
    "it fails of it": ("break_it(); sys.exit(3)", INTERRUPTED),
    "Ray says so before its process has ended": ("known[0] = False; sys.exit(3)", INTERRUPTED),
    "Ray's own code ends it later": (
        "break_it()\nwhile not (folder / END_NOTE).exists(): time.sleep(0.01)\nos._exit(1)",
        INTERRUPTED,
    ),
    "it hears of it hours later": (
        "break_it()\nwhile not (folder / END_NOTE).exists(): time.sleep(0.01)\nos.utime(folder / END_NOTE, (1, 1)); os._exit(1)",
        INTERRUPTED,
    ),
    "it ends it then, and fails": ("break_it(); watch.let_go(); sys.exit(3)", INTERRUPTED),
    "it ends it then, and goes on for long": (
        "break_it(); watch.let_go(); os.utime(folder / NOTE, (1, 1)); sys.exit(3)",
        FAILED,
    ),
    "it starts another one": ("break_it(); watch.let_go()\nwith noted(folder): pass\nsys.exit(3)", FAILED),
    "it fails of something else": ("sys.exit(3)", FAILED),
    "it has ended it itself": ("watch.let_go(); break_it(); sys.exit(3)", FAILED),
    "a copy of it ends": ("os.fork() or sys.exit(3)\nos.wait(); sys.exit(3)", FAILED),
    "it can't be asked": ("known.clear(); sys.exit(3)", FAILED),
}


@pytest.mark.parametrize("how", BROKEN)
def test_only_a_program_whose_ray_has_ended_in_the_middle_is_interrupted(executing, how):
    code, outcome = BROKEN[how]
    end, log = executing.run("python", "x.py", files={"x.py": BREAKS + code})
    assert (end.outcome, end.error.startswith("ray_ended: ")) == (outcome, outcome is INTERRUPTED), (end, log)


def _ports(_):
    return ray_node._free_ports(len(ray_node._AGENT_PORTS))


def test_nodes_that_start_at_once_tell_their_agents_no_port_twice(monkeypatch):
    """Agents listen seconds after they were told: until then a port is free to see, and another node took it."""
    monkeypatch.setattr(ray_node, "_PORTS", range(20_000, 20_200))
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("fork"))) for _ in range(4)]
        told = [port for pool in pools for _ in range(4) for port in pool.submit(_ports, 0).result()]
        assert len(told) == len(set(told))
        with socket.create_server(("", told[0])):
            pass  # the agent itself can listen there
