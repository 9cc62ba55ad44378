"""Whatever launches a job's ranks: it waits until they have saved, however it would take the notice, and its exit code is no
matter then. Launchers that nobody here knows too.
"""

import shutil
import sys
from pathlib import Path

import pytest

from fabric.adapters.stop_notice import Standing, notice_for
from fabric.gate.events import LeaseOutcome
from tests.adapters.programs import Machine, Zygotes

SAVED = LeaseOutcome.SAVED
BIN = Path(sys.executable).parent
NO_MPI = pytest.mark.skipif(shutil.which("mpirun", path=BIN) is None, reason="there is no MPI")
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "x.py"]


@pytest.fixture
def executing(tmp_path):
    made = Machine(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def zygotes():
    """What starts each node's rank in a process of its own."""
    found = Zygotes()
    yield found
    found.close()


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
print("at", step, "rank", rank, flush=True)
while not wanted:
    time.sleep(0.01)
    step += 1
if rank == "0":
    sys.exit(75)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
time.sleep(0.5)  # it saves for long: whoever ends it meanwhile has lost it
open(path, "w").write(str(step))
print("wrote", step, flush=True)
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
print("at", run.done, "rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], flush=True)
data = [torch.ones(1) * n for n in range(10_000)]
for batch in run.batches(data, global_batch=4, virtual=4, epochs=None):
    run.step(weight(batch).sum())
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("command", "nodes", "ranks"),
    [
        pytest.param(MPIRUN, 1, 2, marks=[NO_MPI, pytest.mark.soak], id="mpirun"),
        pytest.param(MPIRUN, 2, 4, marks=NO_MPI, id="mpirun on each of two nodes"),
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


def test_readers_and_children_of_a_script_that_saves_are_not_taken_for_ranks():
    """Those have its environment; what starts ranks gives each a place of its own."""
    above = Standing(1, 0, catches=True, place=(("RANK", "0"),))
    reader = Standing(2, 1, catches=True, place=(("RANK", "0"),))
    rank = Standing(2, 1, catches=True, place=(("RANK", "1"),))
    assert notice_for([above, reader], root=1).told == {1}
    assert notice_for([above, rank], root=1).halted == {1}
    assert notice_for([above, Standing(3, 1), Standing(2, 3, catches=True, place=rank.place)], root=1).told == {2}
