"""What a session costs: a step's overhead against the bare loop, and how quickly a stop is durable over state size.

    python tests/bench/bench_session.py            # states of 28, 112 and 448 MB
    python tests/bench/bench_session.py --large    # and 1.8 GB

The overhead is CPU time, in alternating blocks of the bare loop and the same loop in a session, in one process, where neither
sees the other: a second model that a session's loop trains, and nobody has named, is kept, too. A save
is measured from the wish to stop until the checkpoint is durable in a directory (synced), with training under way, and
until the loop has ended (what the platform then takes to release the devices is in `bench_resume.py`); beside it
`torch.save` of the same state, synced too, and how long a snapshot keeps optimizer steps waiting.
"""

import argparse
import math
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from fabric import context
from fabric.checkpoints import Checkpoints, DirectoryStore
from tests.bench.yardstick import print_yardstick
from training import session

STEP_MS = 50
BLOCKS, BLOCK_STEPS = 25, 10
WIDTH = 1024


def layered(count, width):
    """A model of `count` blocks, each with a normalisation that has buffers."""
    blocks = [nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()) for _ in range(count)]
    return nn.Sequential(*blocks, nn.Linear(width, 8))


class Loop:
    """One training loop, run in blocks."""

    def __init__(self, model):
        self.model = model
        self.opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.sched = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, 10_000)
        self.data = torch.randn(8, model[-1].in_features)

    def body(self):
        self.opt.zero_grad()
        self.model(self.data).square().mean().backward()
        self.opt.step()
        self.sched.step()


def in_session(loop, folder):
    """The loop as a user has it, a block at a time."""
    run = session(model=loop.model, opt=loop.opt, sched=loop.sched, directory=folder, snapshot_every_s=math.inf)
    for step in run.steps(None):
        if step % BLOCK_STEPS == 0:
            yield
        loop.body()


def overhead(count, width, folder):
    """Median CPU milliseconds of a step, bare and in a session, and of the difference between neighbouring blocks."""
    bare, kept = Loop(layered(count, width)), in_session(Loop(layered(count, width)), folder)
    times = {"bare": [], "session": []}
    for block in range(2 * BLOCKS):
        began = time.process_time()  # of all threads: neighbours on the machine don't count
        if block % 2:
            next(kept)
        else:
            for _ in range(BLOCK_STEPS):
                bare.body()
        times["session" if block % 2 else "bare"].append(1000 * (time.process_time() - began) / BLOCK_STEPS)
    kept.close()
    differences = [session_ms - bare_ms for bare_ms, session_ms in zip(times["bare"], times["session"], strict=True)]
    return statistics.median(times["bare"]), statistics.median(times["session"]), statistics.median(differences)


def save_times(width, folder):
    """Megabytes of state, and seconds: notice to durable and to the end of the loop, snapshot's blocking, torch.save synced."""
    durable = []
    checkpoints = Checkpoints(DirectoryStore(folder / "kept"), prefix="jobs/a/j/checkpoint", epoch=1)
    job = context.Context(
        context.Place(job_id="j"),
        checkpoints=checkpoints,
        on_saved=lambda step, write_us, size: durable.append((time.perf_counter(), size)),
    )
    job.begin()
    context.enter(job)
    try:
        loop = Loop(nn.Sequential(nn.Linear(width, width, bias=False), nn.Linear(width, 8)))
        run = session(model=loop.model, opt=loop.opt, sched=loop.sched, snapshot_every_s=math.inf)
        asked, blocked_s = 0.0, 0.0
        for step in run.steps(None):
            if step == 3:
                job.ask_to_save()
            if step > 3 and run._loop.watch.last is not None and not asked:
                blocked_s, asked = run._loop.watch.last.blocked_s, time.perf_counter()
                job.ask_to_stop("evicted", seconds_left=600)
            loop.body()
    except context.Saved:
        left_s = time.perf_counter() - asked
    finally:
        context.enter(None)
    notice_s = durable[-1][0] - asked
    began = time.perf_counter()
    path = folder / "torch.pt"
    with path.open("wb") as file:
        torch.save({"model": loop.model.state_dict(), "opt": loop.opt.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    return durable[-1][1] / 2**20, notice_s, left_s, blocked_s, time.perf_counter() - began


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--large", action="store_true")
    large = options.parse_args().large
    print_yardstick()
    torch.set_num_threads(1)
    print(f"a step in a session against the bare loop, median of {BLOCKS} blocks of {BLOCK_STEPS} steps each")
    print("| tensors | bare CPU ms | session ms | added µs | of a step of 50 ms |")
    print("|---|---|---|---|---|")
    for count, width in ((4, 64), (24, 64), (96, 64), (8, 512)):
        with tempfile.TemporaryDirectory() as folder:
            bare_ms, session_ms, added_ms = overhead(count, width, folder)
        tensors = 4 * count + 2
        print(
            f"| {tensors} | {bare_ms:.2f} | {session_ms:.2f} | {1000 * added_ms:.0f} | {100 * added_ms / STEP_MS:.2f} % |"
        )
    print("\na stop, and a snapshot, over the size of the state")
    print(
        "| MB | notice → durable s | notice → left s | snapshot blocks s | torch.save, synced s | blocking against it |"
    )
    print("|---|---|---|---|---|---|")
    widths = [1550, 3100, 6200] + ([12_500] if large else [])
    assert all(small < big for small, big in pairwise(widths))
    for width in widths:
        with tempfile.TemporaryDirectory() as folder:
            size, notice_s, left_s, blocked_s, torch_s = save_times(width, Path(folder))
        print(
            f"| {size:.0f} | {notice_s:.3f} | {left_s:.3f} | {blocked_s:.3f} | {torch_s:.3f} | {blocked_s / torch_s:.2f} |"
        )


if __name__ == "__main__":
    main()
