"""No checkpoint of a folder holds half of a file, however its command ends, and whoever of it was just writing."""

import re
import shutil
import subprocess
import threading
import time
from typing import NamedTuple

import pytest

from fabric.errors import Conflict
from fabric.gate.events import LeaseOutcome
from fabric.system.processes import seen_of
from fabric.worker import freeze
from fabric.worker.checkpoint_folder import EVERY_VARIABLE, QUIET_VARIABLE
from fabric.worker.freeze import Position, Rest, Writing
from tests.worker.folder_programs import NEVER, SOON, begin, committed
from tests.worker.programs import Machine


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def whole(path):
    """The digit that a file repeats 20,000 times."""
    text = path.read_text()
    assert text == text[:1] * 20_000, f"{len(text)} characters of {text[:9]!r}"
    return int(text[:1])


DIES = """
    write("state", "1" * 20_000, part=20_000)
    time.sleep(2.5)
    for at in itertools.count():
        with open(FOLDER + "/state", "w") as file:
            for part in range(40):
                file.write("2" * 200); file.flush(); time.sleep(0.02)
            os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    "command",
    [
        ("python", "x.py"),
        ("bash", "-c", "python x.py; sleep 1; exit 3"),
        ("python", "-c", "import subprocess, sys; sys.exit(subprocess.run([sys.executable, 'x.py']).returncode and 1)"),
    ],
    ids=["alone", "below a shell", "below another"],
)
def test_what_a_crash_leaves_half_written_is_never_committed(machine, tmp_path, command):
    """It dies while its folder waits for a moment at which no file is half written: then there is none any more."""
    attempt = begin(machine, DIES, command=command)
    end, log = attempt.ended()
    assert end.outcome is LeaseOutcome.FAILED, log
    assert machine.saves, "it was committed before, with time enough"
    assert whole(committed(attempt, tmp_path / "found") / "state") == 1


def test_a_quiet_folder_is_committed_as_it_was_when_it_was_quiet(machine, tmp_path):
    """It is written to again just when its reading begins, and stands still in the middle of that."""
    code = """
        write("state", "1" * 20_000, part=20_000)
        while not os.path.exists("go"):
            time.sleep(0.01)
        with open(FOLDER + "/state", "w") as file:
            file.write("2" * 9_000); file.flush()
            print("half", flush=True)
            time.sleep(1000)
    """
    attempt = begin(machine, code, env={QUIET_VARIABLE: "0.5", EVERY_VARIABLE: "1000"})
    checkpoints = attempt.stage.context.checkpoints
    begins, until = checkpoints.begin, threading.Event()

    def begun(*arguments, **options):
        until.set()
        (attempt.stage.folder / "work" / "go").touch()
        attempt.until("half")
        return begins(*arguments, **options)

    checkpoints.begin = begun
    attempt.until(until.is_set)
    attempt.until("half")
    for _ in range(20):
        time.sleep(0.02)
        found = committed(attempt, tmp_path / "found")
        assert found is None or whole(found / "state") == 1


def rest_after(*looks, lives):
    """Whether a folder is at rest at the last of these looks, which are a tenth of a second apart: what is open at each."""
    rest, one = Rest(lives=lambda _: lives), Writing(1, 4, 99)
    for at, position in enumerate(looks):
        found = rest.is_at_rest({} if position is None else {one: position}, now=at / 10)
    return found


def test_who_ends_in_the_middle_of_a_write_has_not_closed_its_file():
    busy, still = Position(5, 5, 0.0), Position(5, 5, 3.0)
    assert rest_after(busy, None, lives=True)
    assert not rest_after(busy, None, lives=False)
    assert rest_after(still, None, lives=False), "a log, or a database, that nobody was writing to"
    assert not rest_after(busy, *[None] * 19, lives=False)
    assert rest_after(busy, *[None] * 22, lives=False), "whoever is above it goes on with what is there"
    assert rest_after(*[busy, None] * 12, None, lives=False), "that is how this program writes"


def test_a_freeze_of_processes_that_do_not_stand_still_is_none(monkeypatch):
    """One waits for a disk: who was stopped goes on, and nobody takes the folder as it is."""
    monkeypatch.setattr(freeze, "STILL_WITHIN_S", 0.05)
    with subprocess.Popen(["sleep", "100"]) as process:
        with monkeypatch.context() as patched:
            patched.setattr(freeze, "are_still", lambda _: False)
            with pytest.raises(Conflict) as raised, freeze.frozen(lambda: [process.pid]):
                raise AssertionError("it was taken")
        assert raised.value.code == "not_still"
        assert not freeze.are_still([process.pid])
        process.kill()


LARGE = """
    write("large", "x" * 3_000_000, part=3_000_000)
    for at in itertools.count():
        write("state", str(at % 10) * 20_000)
        time.sleep(0.06)
"""


@pytest.fixture
def scarce(monkeypatch):
    """The disk has a MiB left."""
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40 - 2**20, 2**20))
    yield
    monkeypatch.setattr(shutil, "disk_usage", usage)


def test_a_folder_that_is_too_large_to_copy_is_committed_with_no_file_half_written(machine, tmp_path, monkeypatch):
    attempt = None
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40 - 2**20, 2**20))
        attempt = begin(machine, LARGE)
        attempt.until(lambda: len(machine.saves) >= 1)
    for count in range(2, 6):
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40 - 2**20, 2**20))
            attempt.until(lambda count=count: len(machine.saves) >= count)
        found = committed(attempt, tmp_path / f"found{count}")
        whole(found / "state")
        assert (found / "large").read_text() == "x" * 3_000_000


TOLD = """
    signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), sys.exit(75)))
    write("large", "x" * 3_000_000, part=3_000_000)
    print("up", flush=True)
    for at in itertools.count():
        open(FOLDER + "/new", "w").write(str(at)); os.replace(FOLDER + "/new", FOLDER + "/step")
        time.sleep(0.005)
"""


def test_the_notice_reaches_a_program_whose_large_folder_is_being_sent(machine, scarce):
    attempt = begin(machine, TOLD)
    sending, goes_on = threading.Event(), threading.Event()
    for store in (attempt.stage.context.checkpoints.store, attempt.stage.context.checkpoints.local):
        for name in ("put", "put_file"):
            if store is not None:
                setattr(store, name, slow(getattr(store, name), sending, goes_on))
    attempt.until(sending.is_set)
    attempt.ask_to_stop(seconds_left=100)
    give_up_at = time.monotonic() + 20
    while "told" not in attempt.log and time.monotonic() < give_up_at:
        time.sleep(0.02)
    was_told = "told" in attempt.log
    goes_on.set()
    end, log = attempt.ended()
    assert was_told, "while its store was slow"
    assert end.outcome is LeaseOutcome.SAVED, (end, log)


def slow(put, begun, goes_on):
    def kept(key, *arguments, **options):
        if "/data/" in key:
            begun.set()
            goes_on.wait(60)
        return put(key, *arguments, **options)

    return kept


EXITS = """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    path = FOLDER + "/state"
    at = int(open(path).read()[:1]) if os.path.exists(path) else 0
    assert not os.path.exists(path) or open(path).read() == str(at) * 20_000, "half"
    print("from", at, flush=True)
    while True:
        at = (at + 1) % 10
        write("state", str(at) * 20_000)
        time.sleep(0.01)
        print("at", at, flush=True)
"""


def test_a_handler_that_exits_in_the_middle_of_a_write_leaves_no_half_of_it(machine):
    last = 0
    for _ in range(4):
        attempt = begin(machine, EXITS, env=NEVER)
        attempt.until(lambda attempt=attempt: attempt.log.count("at") >= 3)
        end, log = attempt.stop()
        assert (end.outcome, "committed as it was then" in end.error) == (LeaseOutcome.INTERRUPTED, True), (end, log)
        assert int(log.split()[1]) in {last, (last + 1) % 10}, "written, and perhaps not yet said"
        last = int(re.findall(r"at (\d)\n", log)[-1])  # the last line may have been cut as well


THREAD = """
    write("state", "1" * 20_000, part=20_000)
    is_writing = threading.Event()
    def other():
        is_told.wait()
        with open(FOLDER + "/state", "w") as file:
            for _ in range(100_000):
                file.write("2" * 10); file.flush(); time.sleep(0.002); is_writing.set()
    is_told = threading.Event()
    threading.Thread(target=other, daemon=True).start()
    def told(*_):
        is_told.set(); is_writing.wait(); time.sleep(0.5); os._exit(143)
    signal.signal(signal.SIGTERM, told)
    print("up", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_what_a_program_was_writing_when_it_exited_at_the_notice_is_not_committed(machine, tmp_path):
    attempt = begin(machine, THREAD, env=NEVER)
    attempt.until("up")
    end, log = attempt.stop()
    assert (end.outcome, "saved nothing" in end.error) == (LeaseOutcome.INTERRUPTED, True), (end, log)
    assert committed(attempt, tmp_path / "found") is None


LEFT = """
    if sys.argv[1:]:
        for at in itertools.count():
            write("state", str(at % 10) * 20_000)
            time.sleep(0.02)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    subprocess.Popen([sys.executable, "x.py", "child"], start_new_session=True)
    print("up", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_what_a_program_leaves_running_is_not_ended_in_the_middle_of_a_write(machine, tmp_path):
    for count in range(3):
        attempt = begin(machine, LEFT, env=NEVER)
        attempt.until("up")
        time.sleep(1 + 0.05 * count)
        end, log = attempt.stop()
        assert "committed as it was then" in end.error, (end, log)
        whole(committed(attempt, tmp_path / f"found{count}") / "state")


DAEMON = """
    write("state", "1" * 20_000, part=20_000)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open("daemon", "w").write(str(os.getpid()))
            for at in itertools.count():
                write("state", str(at % 10) * 20_000)
                time.sleep(0.06)
        os._exit(0)
    os.wait()
    print("up", flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("how", ["executed", "forked", "executed in a process of its own"])
def test_a_daemon_of_a_program_stands_still_with_it_and_ends_with_it(tmp_path, zygotes, how):
    machine = Machine(tmp_path, zygote="" if how == "executed" else zygotes.socket())
    command = ("bash", "-c", "python x.py; true") if how.startswith("executed in") else ("python", "x.py")
    try:
        attempt = begin(machine, DAEMON, env=SOON, command=command)
        attempt.until("up")
        named = attempt.stage.folder / "work" / "daemon"
        attempt.until(lambda: named.exists() and named.read_text())
        for count in range(3):
            attempt.until(lambda count=count: len(machine.saves) > count + 1)
            whole(committed(attempt, tmp_path / f"found{count}") / "state")
        end, log = attempt.stop()
        assert "committed as it was then" in end.error, (end, log)
        assert seen_of(int(named.read_text())) is None
        whole(committed(attempt, tmp_path / "found") / "state")
    finally:
        machine.close()


MAPPED = """
    with open(FOLDER + "/array", "wb") as file:
        file.truncate(4096)
    array = mmap.mmap(os.open(FOLDER + "/array", os.O_RDWR), 4096)
    def child():
        while True:
            write("other", "x" * 20_000)
            time.sleep(0.06)
    threading.Thread(target=child, daemon=True).start()
    for at in itertools.count(1):
        array[:8] = struct.pack("q", at)
        open(FOLDER + "/new", "w").write(str(at)); os.replace(FOLDER + "/new", FOLDER + "/step")
        time.sleep(0.001)
"""


def number_in(folder):
    return int.from_bytes((folder / "array").read_bytes()[:8], "little")


def test_what_is_written_by_mapped_memory_is_of_the_same_moment(machine, tmp_path):
    """Such a file's time of modification doesn't move with each store."""
    attempt = begin(machine, MAPPED)
    for count in range(1, 3):
        attempt.until(lambda count=count: len(machine.saves) >= count)
        found = committed(attempt, tmp_path / f"found{count}")
        step = int((found / "step").read_text())
        assert number_in(found) - step in {0, 1}, (number_in(found), step)


STORES_LAST = """
    with open(FOLDER + "/array", "wb") as file:
        file.truncate(4096)
    array = mmap.mmap(os.open(FOLDER + "/array", os.O_RDWR), 4096)
    array[:8] = struct.pack("q", 1)
    def told(*_):
        array[:8] = struct.pack("q", 2)
        sys.exit(75)
    signal.signal(signal.SIGTERM, told)
    print("up", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_what_mapped_memory_was_told_last_is_committed_at_the_end(machine, tmp_path):
    attempt = begin(machine, STORES_LAST, env={QUIET_VARIABLE: "0.3"})
    attempt.until(lambda: machine.saves)
    end, log = attempt.stop()
    assert end.outcome is LeaseOutcome.SAVED, (end, log)
    assert number_in(committed(attempt, tmp_path / "found")) == 2
