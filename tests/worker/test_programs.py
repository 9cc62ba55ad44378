"""Other people's scripts and commands run as they do with `python x.py` or in a shell, and are asked to stop as they can hear it."""

import json
import sys
import textwrap
import time

import pytest

from fabric.context.host import ContextHost
from fabric.gate.events import LeaseOutcome
from fabric.worker.stop_notice import Standing, notice_for
from tests.worker.programs import Machine

SUCCEEDED, FAILED, SAVED = LeaseOutcome.SUCCEEDED, LeaseOutcome.FAILED, LeaseOutcome.SAVED


@pytest.fixture(params=["executed", "forked"])
def machine(request, tmp_path):
    """Either way in which a script comes to run."""
    zygote = request.getfixturevalue("zygotes").socket() if request.param == "forked" else ""
    made = Machine(tmp_path, zygote=zygote)
    yield made
    made.close()


def script(code):
    return {"x.py": textwrap.dedent(code)}


def run(machine, code, *arguments, **more):
    return machine.run("python", "x.py", *arguments, files=script(code), **more)


# -- a script is a program of its own ------------------------------------------------------------------------------------


def test_a_script_has_the_main_thread_and_its_signals(machine):
    end, log = run(machine, """
        import signal, sys, threading, time, os
        print(threading.current_thread() is threading.main_thread(), __name__, sys.argv, os.path.isabs(__file__))
        def rang(*_):
            print("rang")
        signal.signal(signal.SIGALRM, rang)
        signal.signal(signal.SIGUSR1, rang)
        signal.alarm(1)
        signal.pause()
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.05)
    """, "--lr", "0.1")  # fmt: skip
    assert log == "True __main__ ['x.py', '--lr', '0.1'] True\nrang\nrang\n"
    assert (end.outcome, end.exit_code) == (SUCCEEDED, 0)


@pytest.mark.parametrize(
    ("code", "outcome", "exit_code", "said"),
    [
        ("import os; print('done'); os._exit(0)", SUCCEEDED, 0, "done\n"),
        ("import os; os._exit(3)", FAILED, 3, ""),
        ("import sys; sys.exit(5)", FAILED, 5, ""),
        ("import sys; sys.exit('no such model')", FAILED, 1, "no such model\n"),
        ("import os; os.kill(os.getpid(), 9)", FAILED, 137, ""),
        ("import os; os.kill(os.getpid(), 11)", FAILED, 139, ""),
        ("import sys; sys.stdout.write('half a line'); sys.exit()", SUCCEEDED, 0, "half a line"),
    ],
    ids=["_exit 0", "_exit 3", "exit 5", "exit text", "killed", "crashed", "half a line"],
)
def test_a_script_ends_with_its_own_exit_code(machine, code, outcome, exit_code, said):
    end, log = run(machine, code)
    assert (end.outcome, end.exit_code, log) == (outcome, exit_code, said)


def test_what_a_script_leaves_for_its_end_is_done(machine):
    end, log = run(machine, """
        import atexit, sys, threading, time
        def later():
            time.sleep(0.3); print("thread")
        atexit.register(lambda: print("atexit", __name__, sys.modules["__main__"].__file__[-4:]))
        threading.Thread(target=later).start()
        try:
            sys.exit(0)
        finally:
            print("finally")
    """)  # fmt: skip
    assert (end.outcome, log) == (SUCCEEDED, "finally\nthread\natexit __main__ x.py\n")


def test_an_error_shows_the_scripts_own_lines_alone(machine):
    end, log = run(machine, "def f():\n    raise ValueError('mine')\nf()\n")
    assert (end.outcome, end.exit_code) == (FAILED, 1)
    assert log.startswith("Traceback (most recent call last):\n  File ")
    assert "fabric/" not in log
    assert log.count("File ") == 2
    assert "ValueError: mine" in end.error
    end, log = run(machine, "x = = 1\n")
    assert (end.exit_code, "SyntaxError" in log, "fabric/" in log) == (1, True, False)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_scripts_multiprocessing_works(machine, method):
    end, log = run(machine, f"""
        import multiprocessing, os, time
        def square(n):
            return n * n, __name__
        if __name__ == "__main__":
            context = multiprocessing.get_context("{method}")
            with context.Pool(2) as pool:
                print([value for value, _ in pool.map(square, range(4))])
            child = context.Process(target=time.sleep, args=(100,))
            child.start(); time.sleep(0.2); child.terminate(); child.join()
            print(child.exitcode, child.pid != os.getpid())
    """)  # fmt: skip
    assert (end.outcome, log) == (SUCCEEDED, "[0, 1, 4, 9]\n-15 True\n"), log


def test_two_scripts_draw_other_random_numbers(machine):
    code = """
        import random, uuid, multiprocessing, sys
        import numpy
        print(random.random(), numpy.random.rand(), multiprocessing.current_process().authkey.hex())
    """
    assert not set(run(machine, code)[1].split()) & set(run(machine, code)[1].split())


def test_python_in_a_command_is_the_one_with_the_jobs_packages(executing, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    end, log = executing.run("sh", "-c", "python -c 'import sys, fabric; print(sys.prefix)'")
    assert (end.outcome, log.strip()) == (SUCCEEDED, sys.prefix)


# -- its context is its own wherever it runs ---------------------------------------------------------------------------

COUNTS = """
import sys
from fabric import context
job = context.current()
step = int(job.load() or b"0")
print(f"from {step} rank {job.rank} of {job.world_size} on {len(job.devices)}\\n", end="", flush=True)
while not job.wait_for_stop(0.01):
    step += 1
    job.report(step=step)
print("asked:", job.stop_reason, flush=True)
job.save(str(step).encode(), step=step)
job.park()
"""
WRAPPERS = {
    "itself": ["python", "x.py"],
    "bash, and more lines": ["bash", "train.sh"],
    "sh -c and": ["sh", "-c", "true && python x.py"],
    "sh -c, a pipe": ["bash", "-o", "pipefail", "-c", "python x.py | tee out.txt; echo done"],
    "env and time": ["env", "A=1", "bash", "-c", "time python x.py; exit 0"],
    "until": ["bash", "-c", "until python x.py; do sleep 0.1; done"],
    "python above": ["python", "-c", "import subprocess, sys; sys.exit(subprocess.call(['python', 'x.py']))"],
    "trap": ["bash", "-c", "trap 'echo trapped; exit 1' TERM; python x.py; echo more"],
}
TRAIN = "#!/bin/bash\nset -u\npython x.py\necho training is over\ntouch $FABRIC_CHECKPOINT_DIR/../done\n"


@pytest.mark.parametrize("command", WRAPPERS.values(), ids=WRAPPERS)
def test_a_script_below_any_wrapper_saves_and_is_resumed(executing, command):
    files = {"x.py": COUNTS, "train.sh": TRAIN}
    first = executing.begin(*command, files=files)
    first.until("from 0")
    first.until(lambda: first.stage.context.progress.step > 3)
    end, log = first.stop()
    assert end.outcome is SAVED, (end, log)
    assert "asked: evicted" in log
    assert "training is over" not in log
    step = executing.saves[-1][0]
    again = executing.begin(*command, files=files)
    again.until(f"from {step} ")
    end, log = again.stop()
    assert end.outcome is SAVED, (end, log)


LOOKS_LATE = """
import time
from fabric import context
job = context.current()
step = int(job.load() or b"0")
print("from", step, flush=True)
time.sleep(2)
job.report(step=step + 1)
if job.stop_requested:
    job.save(b"1", step=step + 1)
    job.park()
"""


def test_a_script_that_has_loaded_its_state_is_not_ended_before_it_looks_whether_it_should_stop(executing, monkeypatch):
    """Also where its runner is slow to hear of it."""
    heard = ContextHost._hear

    def hear_late(host, said, pid):
        time.sleep(0.5)
        heard(host, said, pid)

    monkeypatch.setattr(ContextHost, "_hear", hear_late)
    attempt = executing.begin("python", "x.py", files={"x.py": LOOKS_LATE})
    attempt.until("from 0")
    end, log = attempt.stop()
    assert end.outcome is SAVED, (end, log)
    assert executing.saves[-1][0] == 1


def test_a_forked_script_saves_parks_and_is_resumed(machine):
    first = machine.begin("python", "x.py", files={"x.py": COUNTS})
    first.until("from 0")
    assert first.stop()[0].outcome is SAVED
    again = machine.begin("python", "x.py", files={"x.py": COUNTS})
    again.until(f"from {machine.saves[-1][0]} ")
    assert again.stop()[0].outcome is SAVED


def test_a_wish_for_a_checkpoint_reaches_a_script_in_a_shell(executing):
    code = COUNTS.replace("    step += 1\n", "    step += 1\n    if job.save_requested: job.save(b'7', step=step)\n")
    attempt = executing.begin("sh", "-c", "python x.py; true", files={"x.py": code})
    attempt.until("from 0")
    attempt.stage.ask_to_save()
    attempt.until(lambda: executing.saves)
    assert attempt.stop()[0].outcome is SAVED


def test_a_forked_child_links_by_itself_and_can_be_terminated(machine):
    end, log = run(machine, """
        import multiprocessing, time
        from fabric import context
        def child():
            print("child", context.current().job_id, context.current().stop_requested, flush=True)
            time.sleep(100)
        job = context.current()
        job.stop_requested
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start(); time.sleep(0.5); process.terminate(); process.join()
        job.save(b"x", step=3)
        print(process.exitcode, job.load())
    """)  # fmt: skip
    assert (end.outcome, log) == (SUCCEEDED, "child job-1 False\n-15 b'x'\n"), end
    assert [facts[0] for facts in machine.saves] == [3]


SESSION = """
import sys, time
import torch
from training import session
weight = torch.nn.Linear(1, 1)
opt = torch.optim.SGD(weight.parameters(), lr=0.1)
run = session(model=weight, opt=opt)
print("at", run.done, flush=True)
for step in run.steps(1000):
    weight(torch.ones(1, 1)).sum().backward()
    opt.step(); opt.zero_grad()
    run.log(step=step)
    if step >= 5:
        run.boundary()
        print("in C", flush=True)
        time.sleep(1000)
"""


def test_a_session_saves_while_the_main_thread_is_in_a_long_call(machine):
    first = machine.begin("python", "x.py", files={"x.py": SESSION})
    first.until("in C")
    end, log = first.stop()
    assert (end.outcome, machine.saves[-1][0]) == (SAVED, 6), log
    again = machine.begin("python", "x.py", files={"x.py": SESSION})
    again.until("at 6")
    again.until("in C")
    assert again.stop()[0].outcome is SAVED


DDP = """
import os, torch
from training import session
torch.manual_seed(0)
weight = torch.nn.Linear(1, 1)
opt = torch.optim.SGD(weight.parameters(), lr=0.001)
run = session(model=weight, opt=opt)
print(f"at {run.done} rank {os.environ['RANK']}\\n", end="", flush=True)
data = [torch.ones(1) * n for n in range(10_000)]
for batch in run.batches(data, global_batch=2, virtual=2, epochs=None):
    run.step(weight(batch).sum())
"""


def test_torchrun_is_halted_until_its_ranks_have_saved(executing):
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", "x.py"]
    first = executing.begin(*command, files={"x.py": DDP})
    first.until(lambda: first.log.count("at 0") == 2 and first.stage.context.progress.step > 3)
    end, log = first.stop()
    assert end.outcome is SAVED, log
    assert "Traceback" not in log
    step = executing.saves[-1][0]
    again = executing.begin(*command, files={"x.py": DDP})
    again.until(lambda: again.log.count(f"at {step} rank") == 2)
    assert again.stop()[0].outcome is SAVED


# -- who gets the notice -------------------------------------------------------------------------------------------------


def tree(*given):
    """From words: pid, parent, and what it is."""
    words = [line.split() for line in given]
    kinds = {
        "catches": "catches",
        "listens": "listens",
        "shell": "is_shell",
        "launcher": "is_launcher",
        "ray": "is_ray",
    }
    return [Standing(int(pid), int(parent), **{kinds[each]: True for each in what}) for pid, parent, *what in words]


@pytest.mark.parametrize(
    ("given", "told", "signalled", "halted"),
    [
        (["1 0"], [], [1], []),
        (["1 0 catches"], [1], [1], []),
        (["1 0 listens"], [1], [], []),
        (["1 0 listens catches", "2 1 catches"], [1], [1], []),
        (["1 0 catches", "2 1 catches", "3 1"], [1], [1], []),
        (["1 0 shell", "2 1"], [], [1, 2], []),
        (["1 0 shell", "2 1 catches"], [2], [2], [1]),
        (["1 0 shell", "2 1 listens", "3 1"], [2], [], [1]),
        (["1 0 shell catches", "2 1"], [1], [1, 2], []),
        (["1 0 shell catches", "2 1 catches"], [1], [1, 2], []),
        (["1 0 shell catches", "2 1 listens"], [2], [], [1]),
        (["1 0 catches launcher", "2 1 listens", "3 1 listens"], [2, 3], [], [1]),
        (["1 0 catches launcher", "2 1 catches", "3 1 catches"], [2, 3], [2, 3], [1]),
        (["1 0 catches launcher", "2 1", "3 1"], [1], [1, 2, 3], []),
        (["1 0 shell", "2 1", "3 2 listens", "4 3"], [3], [], [1, 2]),
        (["1 0 shell", "9 0 listens"], [9], [], [1]),
        (["1 0", "2 1 catches ray", "3 2 catches ray"], [], [1, 2, 3], []),
        (["1 0 shell", "2 1", "3 2 catches ray"], [], [1, 2, 3], []),
        (["1 0 catches", "2 1 catches ray", "3 2 catches ray"], [1], [1], []),
        (["1 0 shell", "2 1 catches", "3 2 catches ray"], [2], [2], [1]),
        (["1 0", "2 1 catches ray", "3 2 listens catches ray"], [3], [], [1]),
        (["1 0", "2 1 catches ray", "3 2 catches ray", "4 3 catches"], [4], [4], [1]),
    ],
)  # fmt: skip
def test_the_notice_goes_to_who_can_save_and_halts_who_stands_above(given, told, signalled, halted):
    found = notice_for(tree(*given), root=1)
    assert (sorted(found.told), sorted(found.signalled), sorted(found.halted)) == (told, signalled, halted)


def test_what_a_script_finds_in_its_environment_is_no_secret_of_ours(machine, monkeypatch):
    monkeypatch.setenv("FABRIC_API_KEY", "not yours")
    _, log = run(machine, "import json, os\nprint(json.dumps(dict(os.environ)))\n", env={"WANDB_API_KEY": "mine"})
    seen = json.loads(log)
    assert "not yours" not in seen.values()
    assert (seen["WANDB_API_KEY"], seen["RANK"], seen["FABRIC_ATTEMPT"]) == ("mine", "0", "1")


def test_what_a_short_script_tells_last_is_heard_however_short_it_is(machine):
    attempt = machine.begin("python", "x.py", files=script("""
        from fabric import context
        for step in range(1, 4):
            context.current().report(step=step, staging_saved=step / 2)
    """))  # fmt: skip
    assert attempt.ended()[0].outcome is SUCCEEDED
    assert attempt.stage.context.progress.step == 3
    assert attempt.stage.context.progress.timers["staging_saved"] == 1_500_000
