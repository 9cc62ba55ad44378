"""Whatever launches a job's ranks: it waits until they have saved, however it would take the notice, and its exit code is no
matter then. Launchers that nobody here knows too.
"""

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from fabric.gate.events import LeaseOutcome
from fabric.system.processes import are_still
from fabric.worker import freeze
from fabric.worker.stop_notice import Standing, notice_for
from tests.worker.programs import Machine

SAVED = LeaseOutcome.SAVED
BIN = Path(sys.executable).parent
NO_MPI = pytest.mark.skipif(shutil.which("mpirun", path=BIN) is None, reason="there is no MPI")
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "x.py"]


@pytest.fixture
def nodes_of_one(tmp_path, zygotes):
    made = Machine(tmp_path, zygote=zygotes.socket())
    yield made
    made.close()


LAUNCH = """
import os, signal, subprocess, sys, time
ranks = []
def end(number, _):
    for rank in ranks:
        rank.terminate()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
for rank in range(2):
    env = {**os.environ, "MY_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
    ranks.append(subprocess.Popen([sys.executable, "x.py"], env=env))
while all(rank.poll() is None for rank in ranks):
    time.sleep(0.02)
end(0, None)
"""
FILES = """
import os, signal, sys, time
wanted = False
def note(*_):
    global wanted
    wanted = True
signal.signal(signal.SIGTERM, note)
rank = os.environ["RANK"]
path = os.path.join(os.environ["FABRIC_CHECKPOINT_DIR"], "step")
step = int(open(path).read()) if os.path.exists(path) else 0
print(f"at {step} rank {rank}\\n", end="", flush=True)  # at once: other ranks print, too
while not wanted:
    time.sleep(0.01)
    step += 1
if rank == "0":
    sys.exit(75)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
time.sleep(0.5)  # it saves for long: whoever ends it meanwhile has lost it
open(path, "w").write(str(step))
print(f"wrote {step}\\n", end="", flush=True)
sys.exit(75)
"""


def test_a_launcher_that_nobody_knows_waits_until_its_ranks_have_saved(executing):
    """It would end them all at the notice, and at the first end of one, and then end with 1."""
    files = {"launch.py": LAUNCH, "x.py": FILES}
    for command in (["python", "launch.py"], ["bash", "-c", "python launch.py; echo more"]):
        attempt = executing.begin(*command, files=files)
        at = executing.saves[-1][0] if executing.saves else 0
        attempt.until(lambda at=at, attempt=attempt: attempt.log.count(f"at {at} rank") == 2)
        end, log = attempt.stop()
        assert end.outcome is SAVED, (end, log)
        assert f"wrote {executing.saves[-1][0]}" in log
        assert "more" not in log


def test_a_launcher_that_takes_its_time_to_stand_still_is_not_woken_before_its_ranks_have_saved(executing, monkeypatch):
    """As on a busy machine: the signal is sent, and for a moment nothing says that it has come."""
    asked = Counter()

    def late(pids):
        asked.update(pids)
        return are_still(pids) and all(asked[pid] > 2 for pid in pids)

    monkeypatch.setattr(freeze, "are_still", late)
    attempt = executing.begin("bash", "-c", "python launch.py; echo more", files={"launch.py": LAUNCH, "x.py": FILES})
    attempt.until(lambda: attempt.log.count("at 0 rank") == 2)
    end, log = attempt.stop()
    assert end.outcome is SAVED, (end, log)
    assert f"wrote {executing.saves[-1][0]}" in log


SERVE = LAUNCH.replace(
    "ranks = []",
    """ranks = []
import socket, threading
listener = socket.create_server(("127.0.0.1", 0))
os.environ["SERVED_AT"] = str(listener.getsockname()[1])
def serve():
    while True:
        listener.accept()[0].sendall(b"yes")
threading.Thread(target=serve, daemon=True).start()
""",
)
ASKS = FILES.replace(
    "time.sleep(0.5)  #",
    """import socket
assert socket.create_connection(("127.0.0.1", int(os.environ["SERVED_AT"]))).recv(9) == b"yes"
time.sleep(0.5)  #""",
).replace('if rank == "0":', 'if rank == "2":')


def test_a_launcher_that_waits_still_serves_its_ranks_what_they_need_to_save(executing):
    """torchrun keeps their store, and MPI's their last barrier."""
    attempt = executing.begin("python", "launch.py", files={"launch.py": SERVE, "x.py": ASKS})
    attempt.until(lambda: attempt.log.count("at 0 rank") == 2)
    end, log = attempt.stop(seconds_left=60)
    assert end.outcome is SAVED, (end, log)
    assert log.count("wrote") == 2


@NO_MPI
def test_mpirun_waits_until_its_ranks_have_saved(executing):
    code = FILES.replace('os.environ["RANK"]', 'os.environ["OMPI_COMM_WORLD_RANK"]')
    attempt = executing.begin(*MPIRUN, files={"x.py": code})
    attempt.until(lambda: attempt.log.count("at 0 rank") == 2)
    end, log = attempt.stop()
    assert end.outcome is SAVED, (end, log)
    assert executing.saves[-1][0] > 0


SESSION = """
import os, time, torch
from training import session
torch.manual_seed(0)
weight = torch.nn.Linear(1, 1)
opt = torch.optim.SGD(weight.parameters(), lr=0.001)
run = session(model=weight, opt=opt)
print(f"at {run.done} rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}\\n", end="", flush=True)
data = [torch.ones(1) * n for n in range(10_000)]
for batch in run.batches(data, global_batch=4, virtual=4, epochs=None):
    run.step(weight(batch).sum())
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("command", "nodes", "ranks"),
    [
        pytest.param(MPIRUN, 1, 2, marks=[NO_MPI, pytest.mark.soak], id="mpirun"),
        pytest.param(MPIRUN, 2, 4, marks=[NO_MPI, pytest.mark.soak], id="mpirun on each of two nodes"),
        pytest.param(
            ["torchrun", "--nproc-per-node", "1", "x.py"], 2, 2, marks=pytest.mark.soak, id="torchrun, two nodes"
        ),
        pytest.param(
            ["bash", "-c", "torchrun --nproc-per-node 2 x.py; echo more"], 2, 4, id="bash, torchrun, two nodes"
        ),
        pytest.param(["accelerate", "launch", "--cpu", "x.py"], 1, 1, marks=pytest.mark.soak, id="accelerate launch"),
    ],
)
def test_the_ranks_of_a_launcher_are_one_session_that_parks_and_goes_on(nodes_of_one, command, nodes, ranks):
    at = 0
    for _ in range(2):
        gang = nodes_of_one.begin_gang(*command, files={"x.py": SESSION}, nodes=nodes)
        for attempt in gang:
            attempt.until(lambda at=at, attempt=attempt: attempt.log.count(f"at {at} rank") == ranks // nodes)
            assert attempt.log.count(f"of {ranks}\n") == ranks // nodes
        gang[0].until(lambda at=at, gang=gang: gang[0].stage.context.progress.step > at + 3)
        for attempt in gang:
            attempt.ask_to_stop()
        for attempt in gang:
            end, log = attempt.ended()
            assert end.outcome is SAVED, (end, log)
            assert "more" not in log
        at = nodes_of_one.saves[-1][0]


def test_torchrun_for_one_node_on_each_of_two_is_refused_by_the_session(nodes_of_one):
    command = ["torchrun", "--standalone", "--nproc-per-node", "1", "x.py"]
    for attempt in nodes_of_one.begin_gang(*command, files={"x.py": SESSION}, nodes=2):
        end, log = attempt.ended()
        assert end.outcome is LeaseOutcome.FAILED
        assert "Leave out --standalone" in log


def placed(pid, *, above=1, program="train.py", environment=0, **place):
    """A process that can save, with a place in its environment."""
    words = ("python", program) if program else ()
    named = tuple((name, str(value)) for name, value in place.items())
    return Standing(pid, above, catches=True, place=named, words=words, environment=environment)


HERE = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
"""What the job's first process is told of itself on one machine."""
SECOND = {**HERE, "RANK": 1, "WORLD_SIZE": 2}
"""And on the second of two."""
TORCH = {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "none"}
TWO, FOUR = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}, {"WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}
STARTS = placed(1, above=0, program="launch.py", environment=7, **HERE)
IS_FIRST = placed(1, above=0, environment=7, **HERE)
READER = placed(8, environment=7, **HERE)


@pytest.mark.parametrize(
    ("above", "below"),
    [
        (STARTS, [placed(2, **HERE | TWO), placed(3, **HERE | TWO | {"RANK": 1, "LOCAL_RANK": 1})]),
        (STARTS, [placed(2, environment=2, **HERE), placed(3, environment=3, **HERE | {"RANK": 1})]),
        (STARTS, [placed(2, **HERE | TORCH)]),
        (STARTS, [placed(2 + rank, **HERE | {"OMPI_COMM_WORLD_RANK": rank}) for rank in range(2)]),
        (placed(1, above=0, **SECOND), [placed(2 + at, **FOUR, RANK=2 + at, LOCAL_RANK=at) for at in range(2)]),
        (placed(1, above=0, **SECOND), [placed(2 + at, **SECOND | {"RANK": 2 + at, "WORLD_SIZE": 4}) for at in range(2)]),
        (placed(1, above=0, **SECOND), [placed(2, **SECOND | TORCH)]),
    ],
    ids=[
        "all are told all", "only ranks are told", "one rank", "MPI's", "the second node's", "no local ones are told",
        "one on each node",
    ],
)  # fmt: skip
def test_who_starts_all_ranks_is_a_launcher_and_waits_for_them(above, below):
    found = notice_for([above, *below], root=1)
    assert (found.told, found.halted, found.launchers) == ({each.pid for each in below}, {1}, {1})


@pytest.mark.parametrize(
    ("above", "below"),
    [
        (IS_FIRST, [placed(2, **HERE | TWO | {"RANK": 1, "LOCAL_RANK": 1})]),
        (IS_FIRST, [placed(2, **HERE | {"RANK": 1})]),
        (IS_FIRST, [placed(2, **HERE | {"LOCAL_RANK": 1, "NODE_RANK": 0, "WORLD_SIZE": 2})]),
        (IS_FIRST, [READER, *(placed(1 + rank, **HERE | {"RANK": rank, "WORLD_SIZE": 3}) for rank in (1, 2))]),
        (IS_FIRST, [placed(8, program="draws.py", **HERE), placed(2, **HERE | {"RANK": 1, "WORLD_SIZE": 2})]),
        (IS_FIRST, [Standing(3, 1), placed(2, above=3, **HERE | {"RANK": 1})]),
        (placed(1, above=0, **SECOND), [placed(2, **FOUR, RANK=3, LOCAL_RANK=1)]),
        (IS_FIRST, [READER]),
    ],
    ids=[
        "all are told all", "only ranks are told", "Lightning's", "with a reader", "with another program", "by a shell",
        "on the second node", "readers alone",
    ],
)  # fmt: skip
def test_the_rank_that_starts_the_others_is_told_as_it_would_be_alone(above, below):
    found = notice_for([above, *below], root=1)
    assert (found.told, found.signalled, found.halted) == ({1}, {1}, set())


FIRST = """
import subprocess
if os.environ.get("WORLD_SIZE") != "2":
    env = {**os.environ, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    other = subprocess.Popen([sys.executable, "x.py"], env=env)
""" + FILES.replace('if rank == "0":', 'if rank == "1":').split("import os, signal, sys, time\n", 1)[1]


@pytest.mark.parametrize(
    "command", [["python", "x.py"], ["bash", "-c", "python x.py; echo more"]], ids=["alone", "bash"]
)
def test_the_first_rank_saves_although_the_others_that_it_started_say_they_have(executing, command):
    """They end with 75 at once, and it is the one that writes."""
    files = {"x.py": "import os, signal, sys, time\n" + FIRST}
    attempt = executing.begin(*command, files=files)
    attempt.until(lambda: attempt.log.count("at 0 rank") == 2)
    end, log = attempt.stop()
    assert end.outcome is SAVED, (end, log)
    assert f"wrote {executing.saves[-1][0]}" in log
    assert executing.saves[-1][0] > 0
