"""The outbox: a killed replica forgets nothing that left it, and nothing is settled twice."""

import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from fabric.errors import Conflict, Unavailable
from serving.calls import Call, Usage
from serving.metering.call_log import ROOM_BYTES, CallLog
from serving.metering.slices import Ask, Payer


def call(call_id, *, completion=0, ended="error"):
    return Call(call_id, "ann", "k", "m", "H100", Usage(7, 0, completion), 1, 2, ended)


def ask(kind="authorize", hold_id="h1", seq=0, calls=()):
    return Ask(kind, hold_id, Payer("ann"), seq, tuple(calls))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "replica.outbox"


def reopened(outbox):
    outbox.close()
    return CallLog(outbox.path)


def test_what_is_open_or_unacknowledged_is_settled_after_a_restart(path):
    box = CallLog(path)
    assert box.unsettled == []
    box.held(ask())
    for call_id in ("a", "b", "c"):
        box.began("h1", call(call_id))
    box.moved("a", Usage(7, 0, 3))
    box.closed(call("b", completion=5, ended="stop"))
    box.closed(call("c", completion=1, ended="stop"))
    report = ask("update", seq=1, calls=[call("c")])
    box.held(report)
    box.acknowledged(report, over=False)
    again = reopened(box)
    (left,) = again.unsettled
    assert (left.kind, left.hold_id, left.seq, left.payer) == ("settle", "h1", 2, Payer("ann"))
    assert left.calls == (call("a", completion=3), call("b", completion=5, ended="stop"))
    again.held(left)
    again.acknowledged(left, over=True)
    assert reopened(again).unsettled == []


def test_a_hold_that_was_never_granted_is_forgotten(path):
    box = CallLog(path)
    box.held(ask())
    box.forget("h1")
    assert reopened(box).unsettled == []


def test_two_replicas_cannot_share_one_file(path):
    box = CallLog(path)
    with pytest.raises(Conflict, match="in use"):
        CallLog(path)
    box.close()


def filled(path, calls=40):
    box = CallLog(path)
    box.held(ask())
    for n in range(calls):
        box.began("h1", call(f"c{n}"))
        box.moved(f"c{n}", Usage(7, 0, n))
    box.close()
    return path.read_bytes()


def progress(outbox):
    return {each.call_id: each.usage.completion_tokens for left in outbox.unsettled for each in left.calls}


def test_a_torn_end_is_cut_off_wherever_it_is_torn(path):
    whole = filled(path)
    full = progress(CallLog(path))
    for cut in random.Random(0).sample(range(len(whole)), 60):
        path.with_suffix(".x").write_bytes(whole[:cut])
        box = CallLog(path.with_suffix(".x"))
        found = progress(box)
        assert found.items() <= {**full, **dict.fromkeys(full, 0)}.items() | full.items()
        box.close()


def test_a_flipped_bit_is_found_and_nothing_is_made_up_from_it(path):
    whole = filled(path)
    full = progress(CallLog(path))
    dice = random.Random(1)
    for n in range(200):
        bad = bytearray(whole)
        bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
        other = path.with_suffix(f".{n}")
        other.write_bytes(bad)
        box = CallLog(other)
        assert box.damaged_bytes > 0
        assert other.with_suffix(".damaged").exists()
        assert all(completion in (0, full[call_id]) for call_id, completion in progress(box).items())
        box.close()


def test_a_file_that_grew_is_written_anew_with_what_is_unsettled(path):
    box = CallLog(path, compact_bytes=20_000)
    box.held(ask())
    box.began("h1", call("open"))
    for n in range(400):
        box.began("h1", call(f"c{n}"))
        box.moved("open", Usage(7, 0, n))
        box.closed(call(f"c{n}", completion=1, ended="stop"))
        box.acknowledged(ask("update", seq=n + 1, calls=[call(f"c{n}")]), over=False)
    assert path.stat().st_size < 40_000 + ROOM_BYTES
    assert progress(reopened(box)) == {"open": 399}


def test_on_a_full_disk_no_call_begins_and_what_runs_is_not_lost(path):
    script = textwrap.dedent(
        """
        import resource, signal, sys
        from pathlib import Path
        from fabric.errors import Unavailable
        from serving.calls import Call, Usage
        from serving.metering.call_log import CallLog
        from serving.metering.slices import Ask, Payer
        call = lambda name: Call(name, "ann", "k", "m", "H100", Usage(7), 1, 2, "error")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        box = CallLog(Path(sys.argv[1]))
        box.held(Ask("authorize", "h1", Payer("ann"), 0))
        box.began("h1", call("a"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (box.path.stat().st_size + 20, resource.RLIM_INFINITY))
        for n in range(5000):
            box.moved("a", Usage(7, 0, n))
        assert box.failing
        try:
            box.began("h1", call("b"))
        except Unavailable as error:
            assert error.code == "outbox_unwritable", error.code
        else:
            raise AssertionError("it began")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        box.moved("a", Usage(7, 0, 5000))
        assert not box.failing
        box.began("h1", call("c"))
        """
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60)
    assert progress(CallLog(path)) == {"a": 5000, "c": 0}


def test_a_call_that_was_refused_for_a_full_disk_is_not_settled_after_a_crash(path, monkeypatch):
    """A small record fits into the room that is left, where a large one did not."""
    box = CallLog(path)
    box.held(ask())
    box.began("h1", call("a"))
    while len(box._map) - box._size > 300:
        box.moved("a", Usage(7, 0, 1))
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", no_room)
        box.closed(call("a", ended="e" * 400))
        assert box.failing
        for name in "bcdef":
            with pytest.raises(Unavailable):
                box.began("h1", call(name))
    shutil.copy(path, path.with_name("crashed"))
    assert progress(CallLog(path.with_name("crashed"))) == {"a": 1}
    box.began("h1", call("g"))
    assert progress(reopened(box)) == {"a": 0, "g": 0}


def no_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_is_written_anew_is_the_one_that_a_machine_finds_when_it_comes_up(path, monkeypatch):
    synced = []
    fsync = os.fsync

    def noting(file):
        synced.append((stat.S_ISDIR(os.fstat(file).st_mode), path.stat().st_ino))
        fsync(file)

    monkeypatch.setattr(os, "fsync", noting)
    box = CallLog(path)
    box.held(ask())
    box.compact()
    assert synced[-1] == (True, path.stat().st_ino)


def test_a_killed_process_had_recorded_every_output_that_left_it(path):
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from serving.calls import Call, Usage
        from serving.metering.call_log import CallLog
        from serving.metering.slices import Ask, Payer
        box = CallLog(Path(sys.argv[1]), compact_bytes=4096)
        box.held(Ask("authorize", "h1", Payer("ann"), 0))
        box.began("h1", Call("a", "ann", "k", "m", "H100", Usage(7), 1, 2, "error"))
        for n in range(10**9):
            box.moved("a", Usage(7, 0, n))
            if n % 7 == 0:
                box.acknowledged(Ask("update", "h1", Payer("ann"), n), over=False)
            sys.stdout.write(f"{n}\\n")
            sys.stdout.flush()
        """
    )
    dice = random.Random(2)
    for _ in range(8):
        path.unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as child:
            for _ in range(dice.randrange(1, 3_000)):
                child.stdout.readline()
            os.kill(child.pid, signal.SIGKILL)
            said = child.stdout.read().split(b"\n")
        complete = [int(line) for line in said[:-1]]
        box = CallLog(path)
        (recorded,) = progress(box).values()
        assert not complete or recorded >= complete[-1]
        assert not complete or recorded <= complete[-1] + 2
        box.close()


def test_a_folder_that_cannot_be_written_is_said_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="may write") as raised:
        CallLog(tmp_path / "file" / "x.outbox")
    assert raised.value.code == "outbox_unwritable"
