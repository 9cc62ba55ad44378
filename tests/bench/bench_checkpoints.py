"""Saving: how long training stands still, how long until it is durable and how long until it is back; and what kills leave.

All ways take turns on the same state in one run, so that a busy machine slows them all: what counts is the ratios. The state
is what AdamW keeps (weights and two moments, in tensors of a few MB). "Blocked" is the time in which the training thread
can't go on: `torch.save` blocks until it is written, ours until the tensors are copied; the copy is then hashed, written and
committed by another thread. "Durable" is synced to the disk, or answered by the bucket (moto's server, in a process of its own).

    bench_checkpoints.py                      28 and 112 MB, 100 kills of each way
    bench_checkpoints.py --mb 28 448 2048     any sizes
    bench_checkpoints.py --kills 0            no kills
"""

import argparse
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from fabric.checkpoints import Checkpoints, DirectoryStore, S3Store
from fabric.storage.s3 import Place
from fabric.storage.s3_clients import S3Credentials
from tests.bench.yardstick import print_yardstick
from training.state import shards

State = dict[str, Any]
JOB = "jobs/bench/j-1/checkpoint"
ROUNDS = 5
_TENSOR_MB = 4


def a_state(mb: int, *, step: int = 0) -> State:
    """Weights and AdamW's two moments, `mb` MB together; every value is the step, so that a mixture shows."""
    count = max(1, mb // 3 // _TENSOR_MB)
    size = mb * 2**20 // 3 // count // 4
    made = {f"layer.{number}": torch.full((size,), float(step)) for number in range(count)}
    moments = {str(number): {"step": step, "exp_avg": weight.clone(), "exp_avg_sq": weight.clone()}
               for number, weight in enumerate(made.values())}  # fmt: skip
    return {"model": made, "optimizer": {"state": moments}, "step": step}


def is_of_one_step(state: State) -> bool:
    """Whether nothing of another step is in it."""
    step = float(state["step"])
    moments = state["optimizer"]["state"].values()
    tensors = [*state["model"].values(), *(one[name] for one in moments for name in ("exp_avg", "exp_avg_sq"))]
    return all(bool((tensor == step).all()) for tensor in tensors)


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1_000


def synced(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def save_plain(state: State, folder: Path) -> None:
    torch.save(state, folder / "latest.pt")


def save_synced(state: State, folder: Path) -> None:
    torch.save(state, folder / "next.pt")
    synced(folder / "next.pt")
    (folder / "next.pt").replace(folder / "latest.pt")
    synced(folder)


def save_dcp(state: State, folder: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        dcp.save(state, checkpoint_id=folder / "dcp", no_dist=True)


def measure(mb: int, bucket: S3Store, *, rounds: int) -> None:
    """Print one size's table."""
    state = a_state(mb, step=7)
    with (
        tempfile.TemporaryDirectory(prefix="fabric-bench-") as name,
        tempfile.TemporaryDirectory(dir="/dev/shm") as near,
    ):
        folder, rows = Path(name), dict[str, list[float]]()
        disk = Checkpoints(DirectoryStore(folder / "store"), prefix=JOB, keep=1)
        tiered = Checkpoints(
            DirectoryStore(folder / "tiered"), prefix=JOB, local=DirectoryStore(near, durable=False), keep=1
        )
        remote = Checkpoints(bucket, prefix=JOB, keep=1)

        kept = shards.dump(state)

        def note(row: str, ms: float) -> None:
            rows.setdefault(row, []).append(ms)

        for number in range(rounds + 1):
            if number == 1:
                rows.clear()  # the first round warms up
            note("torch.save, one file", timed(lambda: save_plain(state, folder)))
            note("torch.save, new file, synced, renamed", timed(lambda: save_synced(state, folder)))
            note("DCP, one directory", timed(lambda: save_dcp(state, folder)))
            note("ours: blocked, into new memory", timed(lambda: shards.dump(state)))
            note("ours: blocked, into the last save's memory", timed(lambda: shards.dump(state, into=kept)))
            data = shards.dump(state, into=kept)
            note("ours: staged in memory", staged(tiered, data, number))
            note("ours: durable on the disk", committed(disk, data, number))
            note("ours: durable in the bucket", committed(remote, data, number))
            note("torch.load, one file", timed(lambda: torch.load(folder / "latest.pt", weights_only=True)))
            note("ours: back from the disk, verified", timed(lambda: back(disk)))
            note("ours: back from memory, verified", timed(lambda: back(tiered)))
            note("ours: back from the bucket, verified", timed(lambda: back(remote)))
        show(mb, rows)


def staged(checkpoints: Checkpoints, data: memoryview, step: int) -> float:
    """Until the process may die; then makes it durable as well."""
    draft = checkpoints.begin(step)

    def stage() -> None:
        draft.put("state", data)
        checkpoints.stage(draft)

    took = timed(stage)
    checkpoints.commit(draft)
    return took


def committed(checkpoints: Checkpoints, data: memoryview, step: int) -> float:
    def commit() -> None:
        draft = checkpoints.begin(step)
        draft.put("state", data)
        checkpoints.commit(draft)

    return timed(commit)


def back(checkpoints: Checkpoints) -> State:
    found = checkpoints.load()
    assert found is not None
    return dict(shards.load(found[1]["state"]))


def show(mb: int, rows: dict[str, list[float]]) -> None:
    base = statistics.median(rows["torch.save, one file"])
    say(f"{mb} MB of state, medians of {len(next(iter(rows.values())))}")
    say(f"  {'':44}{'ms':>10}{'MB/s':>8}{'of torch.save':>15}")
    for name, values in rows.items():
        ms = statistics.median(values)
        say(f"  {name:44}{ms:10.1f}{mb / ms * 1_000:8.0f}{ms / base:15.2f}")
    say("")


class Life:
    """One way to save for ever, and to look at what a kill has left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int) -> None:
        raise NotImplementedError

    def load(self) -> State | None:
        """What a user would load; None if nothing was saved. Any exception: it can't be loaded."""
        raise NotImplementedError


class OneFile(Life):
    def save(self, step: int) -> None:
        save_plain(a_state(6, step=step), self.folder)

    def load(self) -> State | None:
        path = self.folder / "latest.pt"
        return dict(torch.load(path, weights_only=True)) if path.exists() else None


class Renamed(OneFile):
    def save(self, step: int) -> None:
        save_synced(a_state(6, step=step), self.folder)


class Dcp(Life):
    def save(self, step: int) -> None:
        save_dcp(a_state(6, step=step), self.folder)

    def load(self) -> State | None:
        if not (self.folder / "dcp").exists():
            return None
        state = a_state(6, step=-1)
        with warnings.catch_warnings(action="ignore"):
            dcp.load(state, checkpoint_id=self.folder / "dcp", no_dist=True)
        return state


class Ours(Life):
    def save(self, step: int) -> None:
        checkpoints = self.__dict__.setdefault("saving", Checkpoints(DirectoryStore(self.folder), prefix=JOB))
        committed(checkpoints, shards.dump(a_state(6, step=step)), step)

    def load(self) -> State | None:
        found = Checkpoints(DirectoryStore(self.folder), prefix=JOB).load()
        return None if found is None else dict(shards.load(found[1]["state"]))


WAYS: dict[str, type[Life]] = {
    "torch.save, one file": OneFile,
    "torch.save, new file, synced, renamed": Renamed,
    "DCP, one directory": Dcp,
    "ours": Ours,
}


def kill_all(kills: int, *, seed: int) -> None:
    """Print what `kills` kills at random instants leave of each way."""
    say(f"kill -9 at a random instant of saving for ever, {kills} of each way, seed {seed}; the state has 6 MB")
    say(f"  {'':44}{'kills':>7}{'unloadable':>12}{'of two steps':>14}{'lost':>6}")
    dice = random.Random(seed)
    for name, way in WAYS.items():
        ends = [kill_one(way, dice.uniform(0.02, 0.25)) for _ in range(kills)]
        counts = [sum(end == kind for end in ends) for kind in ("unloadable", "mixed", "lost")]
        say(f"  {name:44}{kills:7}{counts[0]:12}{counts[1]:14}{counts[2]:6}")
    say("")


def kill_one(way: type[Life], after_s: float) -> str:
    """Save in a child until it is killed; how what it left is."""
    folder = Path(tempfile.mkdtemp(prefix="fabric-bench-"))
    ear, mouth = os.pipe()
    child = os.fork()
    if child == 0:
        life, step = way(folder), 0
        while True:
            step += 1
            life.save(step)
            os.write(mouth, step.to_bytes(8, "big"))
    os.close(mouth)
    first = os.read(ear, 8)  # there is something to lose
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = first + (os.read(ear, 2**20) or b"")
    os.close(ear)
    try:
        state = way(folder).load()
    except BaseException:  # noqa: BLE001  # whatever it is, it can't be loaded (DCP's is not even an Exception)
        return "unloadable"
    finally:
        shutil.rmtree(folder)
    if state is None or state["step"] < int.from_bytes(told[-8:], "big"):
        return "lost"
    return "whole" if is_of_one_step(state) else "mixed"


@contextmanager
def a_bucket() -> Iterator[S3Store]:
    """A bucket of moto's server, in a process of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    own = S3Credentials(access_key_id="AKIA", secret_access_key="secret")
    store = S3Store(Place(bucket="bench", endpoint_url=f"http://127.0.0.1:{port}", region="us-east-1", credentials=own))
    try:
        for _ in range(200):
            time.sleep(0.1)
            try:
                store._bucket.client.create_bucket(Bucket="bench")
            except Exception:  # noqa: BLE001  # it is not up yet
                continue
            break
        yield store
    finally:
        server.terminate()
        server.wait()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, nargs="+", default=[28, 112])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print_yardstick()
    torch.set_num_threads(1)
    with a_bucket() as bucket:
        for mb in given.mb:
            measure(mb, bucket, rounds=given.rounds)
    if given.kills:
        kill_all(given.kills, seed=given.seed)


if __name__ == "__main__":
    main()
