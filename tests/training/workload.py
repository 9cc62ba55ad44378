"""A small training script with everything that makes bitwise resumption hard, and jobs to run it in.

Dropout, BatchNorm, AdamW, a cosine schedule, augmentation that draws from numpy and from Python, state of the script's own
and an evaluation now and then.
"""

import hashlib
import math
import random
import threading
import time
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fabric import context
from fabric.checkpoints import Checkpoints, DirectoryStore
from training import session

FEATURES, CLASSES, BATCH = 8, 3, 4


class Script:
    """What a user writes; `job.ask_to_stop` may come at any time."""

    def __init__(self, *, seed=0, width=12):
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # the generator that scripts and libraries share
        self.model = nn.Sequential(
            nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.ReLU(), nn.Linear(width, CLASSES)
        )
        self.opt = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.sched = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, 300)
        self.best = {"loss": math.inf, "at": -1}

    def session(self, **options):
        options = {"snapshot_every_s": math.inf, "extra": {"best": self.best}} | options
        return session(model=self.model, opt=self.opt, sched=self.sched, **options)

    def loss(self, samples, classes):
        noisy = samples + float(np.random.normal(scale=0.1)) + random.gauss(0, 0.1)  # noqa: NPY002
        return functional.cross_entropy(self.model(noisy), classes)

    def batch(self):
        return torch.randn(BATCH, FEATURES), torch.randint(CLASSES, (BATCH,))

    def train(self, steps, *, each=lambda step: None, **options):
        """The plain loop; `each` is called at the top of every body."""
        run = self.session(**options)
        for step in run.steps(steps):
            each(step)
            loss = self.loss(*self.batch())
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
            self.sched.step()
            if loss.item() < self.best["loss"]:
                self.best |= {"loss": loss.item(), "at": step}
            if step % 20 == 19:
                with run.evaluation():
                    self.loss(*self.batch())
        return run

    def digest(self):
        whole = hashlib.sha256(repr((self.best, self.sched.state_dict()["_last_lr"])).encode())
        moments = [tensor for state in self.opt.state_dict()["state"].values() for tensor in state.values()]
        for tensor in [*self.model.state_dict().values(), *moments]:
            whole.update(tensor.numpy().tobytes())
        return whole.hexdigest()


class Dice:
    """What decides when a test evicts: no part of what a loop trains, though the tests' loops can reach it. Kept with it, the same
    would be thrown after each eviction.
    """

    def __init__(self, seed):
        self.dice = random.Random(seed)

    def random(self):
        return self.dice.random()

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Attempts:
    """The attempts of one job, each with a context as the runner would make it."""

    def __init__(self, folder):
        self.store = DirectoryStore(folder)
        self.count = 0
        self.saves = []

    def next(self):
        self.count += 1
        checkpoints = Checkpoints(self.store, prefix="jobs/ada/j/checkpoint", epoch=self.count)
        job = context.Context(
            context.Place(job_id="j", attempt=self.count),
            checkpoints=checkpoints,
            on_saved=lambda step, write_us, size: self.saves.append(step),
        )
        job.begin()
        return job

    def state_dict(self):
        """Nothing: it is no part of what a loop trains, though the tests' loops can reach it."""
        return {}

    def load_state_dict(self, state):
        pass

    def run(self, work):
        """Attempt after attempt until one ends by itself; what that one gave."""
        while True:
            with running(self.next()) as job:
                try:
                    return work(job)
                except context.Saved:
                    continue


@contextmanager
def running(job):
    context.enter(job)
    try:
        yield job
    finally:
        context.enter(None)


class Ended:
    """What ended a run."""

    error = None


@contextmanager
def ended_by(kind, job):
    """Run as `job`; it must end by an error of that kind, which is handed out."""
    ended = Ended()
    with running(job):
        try:
            yield ended
        except kind as error:
            ended.error = error
        else:
            raise AssertionError(f"it was not ended by {kind.__name__}")


def stopped(job, *, seconds_left=30, reason="evicted"):
    """Asks to stop from another thread, as the runner does; returns once the wish is known."""
    asking = threading.Thread(target=job.ask_to_stop, args=(reason,), kwargs={"seconds_left": seconds_left})
    asking.start()
    asking.join()


def linger(*, at_least_s=10.0):
    """Busy with something that never looks at the session."""
    until = time.monotonic() + at_least_s
    while time.monotonic() < until:
        time.sleep(0.005)
    raise AssertionError("nobody ended it")


def resumed(attempts, steps=12):
    """Where the next attempt goes on, and with what it ends."""
    with running(attempts.next()):
        script = Script()
        run = script.train(steps)
        return run.resumed_at, script.digest()
