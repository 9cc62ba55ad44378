"""A folder that is never quiet is committed all the same: as it was at one moment, with no file half written."""

import random
import time
from pathlib import Path

import pytest

from fabric.gate.events import LeaseOutcome
from fabric.system.processes import all_processes, kill
from fabric.worker.checkpoint_folder import EVERY_VARIABLE, QUIET_VARIABLE
from fabric.worker.freeze import Position, Rest, Writing
from tests.worker.folder_programs import NEVER, SOON, begin, committed

MIB = 2**20


def is_standing_still(pid):
    return "State:\tT" in Path(f"/proc/{pid}/status").read_text()


WRITES_ALL_THE_TIME = """
    log = open(FOLDER + "/log", "a")
    for at in itertools.count():
        log.write(f"{at}\\n"); log.flush()
        with open(FOLDER + "/new", "w") as file:
            file.write(str(at))
        os.replace(FOLDER + "/new", FOLDER + "/step")
        time.sleep(0.01)
"""


def test_a_folder_that_is_never_quiet_is_committed_again_and_again(machine):
    attempt = begin(machine, WRITES_ALL_THE_TIME, env=SOON)
    attempt.until(lambda: len(machine.saves) >= 3)
    steps = [facts[0] for facts in machine.saves]
    assert steps == sorted(set(steps)), "each is newer than the one before, and it goes on meanwhile"


PAIRS = """
    child = "import itertools, sys, time\\nfor at in itertools.count():\\n    sys.stdin.readline(); open(sys.argv[1], 'w').write(str(at) * 2000); print(flush=True)"
    other = subprocess.Popen([sys.executable, "-c", child, FOLDER + "/b"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for at in itertools.count():
        with open(FOLDER + "/a", "w") as file:
            for _ in range(200):
                file.write(str(at) * 10); file.flush()
        other.stdin.write(b"\\n"); other.stdin.flush(); other.stdout.readline()
        open(FOLDER + "/c" + str(at % 50), "w").write(str(at) * 2000)
"""


def test_what_is_committed_is_of_one_moment_and_no_file_is_half_written(machine, tmp_path):
    """Two processes write three files in turn, in place: none may be older than the order allows, and each is whole."""
    attempt = begin(machine, PAIRS, env=SOON)
    for count in range(1, 7):
        attempt.until(lambda count=count: len(machine.saves) >= count)
        folder = committed(attempt, tmp_path / f"cut{count}")
        found = {path.name: whole(path.read_text()) for path in folder.iterdir()}
        if count == 1 and "b" not in found:
            continue  # it has only just begun
        last = found.get("c" + str((found["a"] - 1) % 50), found["a"] - 1)
        assert found["a"] - 1 <= found["b"] <= found["a"], found
        assert last in {found["a"] - 1, found["a"] - 51}, found


def whole(text):
    """The number that a file repeats 2,000 times."""
    number = text[: len(text) // 2000]
    assert number * 2000 == text, f"{len(text)} characters of {text[:20]!r}"
    return int(number)


IN_PLACE = """
    path = FOLDER + "/state"
    at = json.loads(open(path).read())["at"] if os.path.exists(path) else 0
    print("from", at, flush=True)
    while True:
        at += 1
        text = json.dumps({"at": at, "more": "x" * 20_000})
        with open(path, "w") as file:
            for part in range(0, len(text), 500):
                file.write(text[part:part + 500]); file.flush(); time.sleep(0.002)
        time.sleep(0.05)
        print("at", at, flush=True)
"""


def test_a_program_that_can_not_save_is_stopped_between_two_writes(machine):
    """Most of the time its one file is half written, and nobody hears the signal: it goes on from what it wrote last."""
    last = 0
    for _ in range(4):
        attempt = begin(machine, IN_PLACE, env=NEVER)
        attempt.until(f"at {last + 3}\n")
        time.sleep(random.uniform(0.0, 0.2))
        end, log = attempt.stop()
        assert (end.outcome, end.error) == (
            LeaseOutcome.INTERRUPTED,
            "it ended when it was asked to stop; its folder was committed as it was then",
        ), log
        assert int(log.split()[1]) in {last, last + 1}, "written, and perhaps not yet said"
        last = int(log.split()[-1])


IGNORES = (
    """
    signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
    print("up", flush=True)
"""
    + WRITES_ALL_THE_TIME
)


def test_a_program_that_goes_on_after_the_notice_is_committed_before_its_end(machine):
    attempt = begin(machine, IGNORES, env=NEVER)
    attempt.until("up")
    attempt.stage.ask_to_stop("evicted", seconds_left=4, save=True)
    attempt.until("no")
    told_at = time.monotonic()
    attempt.until(lambda: machine.saves)
    assert attempt.stage.context.deadline_s_left() > 0, time.monotonic() - told_at


def test_a_program_that_is_not_to_save_is_not_kept_from_ending(machine):
    attempt = begin(machine, IN_PLACE, env=NEVER)
    attempt.until("at 1\n")
    attempt.stage.ask_to_stop("cancelled", seconds_left=60, save=False)
    end, _ = attempt.ended()
    assert (end.outcome, machine.saves) == (LeaseOutcome.INTERRUPTED, [])


LEAVES = """
    child = "import itertools, sys, time\\nfor at in itertools.count(): open(sys.argv[1], 'w').write(str(at) * 2000); time.sleep(0.01)"
    subprocess.Popen([sys.executable, "-c", child, FOLDER + "/a"], start_new_session=True)
    print("up", flush=True)
    time.sleep(0.5)
    sys.stdout.flush()
    time.sleep(1000)
"""


def test_what_a_program_started_writes_no_more_once_it_has_ended_at_the_notice(machine, tmp_path):
    attempt = begin(machine, LEAVES, env=NEVER)
    attempt.until("up")
    time.sleep(0.5)
    end, log = attempt.stop()
    assert "committed as it was then" in end.error, log
    whole((committed(attempt, tmp_path / "found") / "a").read_text())
    assert not [seen for seen in all_processes() if lease_of_process(seen.pid) == attempt.lease.lease_id]


def lease_of_process(pid):
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((each[16:].decode() for each in variables if each.startswith(b"FABRIC_LEASE_ID=")), "")


HELD = (
    """
    print(os.getpid(), flush=True)
"""
    + WRITES_ALL_THE_TIME
)


def test_what_stands_still_already_is_not_woken_by_a_commit(machine):
    """Its owner, a debugger or the notice has stopped it: that is no business of ours."""
    attempt = begin(machine, HELD, env=SOON)
    attempt.until(lambda: len(machine.saves) >= 1)
    pid = int(attempt.log.split()[0])
    kill(pid, 19)
    attempt.until(lambda: is_standing_still(pid))
    attempt.stage.ask_to_save()
    for _ in range(60):
        time.sleep(0.05)
        assert is_standing_still(pid)
    kill(pid, 18)
    count = len(machine.saves)
    attempt.until(lambda: len(machine.saves) > count)


LARGE = """
    with open(FOLDER + "/hole", "wb") as file:
        file.truncate(2**40)
        file.seek(2**30); file.write(b"end")
    open(FOLDER + "/large", "wb").write(b"x" * 3_000_000)
    os.symlink("large", FOLDER + "/link")
    os.mkdir(FOLDER + "/sub"); os.chmod(FOLDER + "/sub", 0o750)
    os.mkfifo(FOLDER + "/pipe")
    for at in itertools.count():
        open(FOLDER + "/sub/" + str(at % 3), "w").write("x" * 10)
        if at % 3 == 0:
            os.path.exists(FOLDER + "/gone") and os.remove(FOLDER + "/gone")
        else:
            open(FOLDER + "/gone", "w").close()
        time.sleep(0.01)
"""


def test_holes_links_and_what_can_not_be_kept_are_as_in_a_quiet_folder(machine, tmp_path):
    attempt = begin(machine, LARGE, env=SOON)
    attempt.until(lambda: len(machine.saves) >= 2)
    folder = committed(attempt, tmp_path / "found")
    assert sorted(path.name for path in folder.iterdir() if path.name != "gone") == ["hole", "large", "link", "sub"]
    about = (folder / "hole").stat()
    assert (about.st_size, about.st_blocks * 512 < 2**20) == (2**40, True)
    assert (folder / "link").readlink() == Path("large")
    assert ((folder / "sub").stat().st_mode & 0o777, (folder / "large").stat().st_size) == (0o750, 3_000_000)


def first_rest_s(position_at, *, looks=100):
    """When a folder is found at rest first in which one file is open, or none, as `position_at` has it; it is looked at ten
    times a second.
    """
    rest, one = Rest(), Writing(1, 4, 99)
    for look in range(looks):
        position = position_at(look)
        if rest.is_at_rest({} if position is None else {one: position}, now=look / 10):
            return look / 10
    return None


@pytest.mark.parametrize(
    ("position_at", "expected"),
    [
        (lambda look: None, 0.0),
        (lambda look: None if look == 4 else Position(look, 9, 0.0), 0.4),
        (lambda look: Position(100, 100, 3.0), 1.0),
        (lambda look: Position(100 * look + 1, 100 * look + 1, 0.0), 1.0),
        (lambda look: Position(MIB * look + 1, MIB * look + 1, 0.0), None),
        (lambda look: Position(MIB * look + 1, MIB * look + 1, 0.0 if look < 30 else 0.6), 3.0),
        (lambda look: Position(look % 7 * 100, 700, 0.0), None),
        (lambda look: Position(0, 0, look / 10), 5.0),
    ],
    ids=["closed", "closed once", "untouched", "a log", "a large save", "a save that ends", "in place", "just opened"],
)
def test_a_folder_is_at_rest_when_no_file_in_it_is_half_written(position_at, expected):
    assert first_rest_s(position_at) == expected


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(40))
def test_a_program_goes_on_from_what_it_wrote_however_often_it_is_stopped(machine, seed):
    draw, last, told = random.Random(seed), 0, []
    env = {EVERY_VARIABLE: str(draw.uniform(0.1, 2)), QUIET_VARIABLE: str(draw.choice([0.3, 60]))}
    for _ in range(6):
        attempt = begin(machine, IN_PLACE, env=env)
        attempt.until("from ")
        time.sleep(draw.uniform(0, 1.5))
        end, log = attempt.stop(seconds_left=draw.uniform(6, 20))
        assert end.outcome is LeaseOutcome.INTERRUPTED, log
        found = [int(word) for word in log.split() if word.isdigit()]
        assert found[0] >= last, (seed, last, told, log)
        told.append(end.error)
        last = found[-1]
