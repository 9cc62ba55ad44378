"""Lives of a training that saves without pause and is killed: at a random instant, or at a call to the disk.

    kill_session.py FOLDER --lives N --seed S

Each life is a process of its own, the next attempt of the same job: a loop with a frozen base, an adapter, objects that are changed in
place and a shuffled loader, which goes on until it is killed. After each, another process opens a session as anybody would, and compares
all that came back, and the batches that follow, with a run that nobody disturbed. What was acknowledged must be there.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fabric import context
from fabric.checkpoints import Checkpoints, DirectoryStore
from tests.checkpoints.kill_load import armed
from training import session

STEPS, WIDTH, EPOCHS = 400, 96, 25
"""The base is large enough to be kept apart, as what nothing trains."""
AHEAD = 3
"""Batches after a resume that are looked at."""


class Net(nn.Module):
    """A base that nothing trains, and an adapter beside it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(requires_grad=False)
        self.down, self.norm, self.up = nn.Linear(WIDTH, 2), nn.BatchNorm1d(2), nn.Linear(2, WIDTH)

    def forward(self, seen):
        return self.base(seen) + self.up(torch.dropout(self.norm(self.down(seen)), p=0.1, train=self.training))


class Ring:
    """A replay buffer as scripts write them."""

    def __init__(self):
        self.seen, self.at = np.zeros((16, 2), np.float32), 0

    def push(self, value):
        self.seen[self.at % len(self.seen)] = value, np.random.rand()  # noqa: NPY002
        self.at += 1


def lived(look):
    """The script; `look` is told at the top of each body of all there is, and once more at the end."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    net, ring, recent, count = Net(), Ring(), collections.deque(maxlen=5), {"steps": 0}
    opt = torch.optim.AdamW([weight for weight in net.parameters() if weight.requires_grad], lr=1e-2)
    data = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(9))
    run = session(model=net, opt=opt, snapshot_every_s=0.0)
    for (batch,) in run.batches(DataLoader(TensorDataset(data), batch_size=4, shuffle=True), epochs=EPOCHS):
        look.note(count["steps"], digest_of(net, opt, ring, recent, batch))
        opt.zero_grad()
        loss = net(batch).square().mean()
        loss.backward()
        opt.step()
        ring.push(loss.item())
        recent.append(loss.item() + random.random())
        count["steps"] += 1
    look.note(count["steps"], digest_of(net, opt, ring, recent, torch.zeros(0)))


def digest_of(net, opt, ring, recent, batch):
    whole = hashlib.sha256(repr((list(recent), ring.at)).encode())
    moments = [
        state[name] for state in opt.state_dict()["state"].values() for name in ("exp_avg", "exp_avg_sq", "step")
    ]
    for tensor in (*net.state_dict().values(), *moments, batch):
        whole.update(tensor.detach().numpy().tobytes())
    whole.update(ring.seen.tobytes())
    return whole.hexdigest()


class Look:
    """No part of what a loop trains, though the loop can reach it."""

    def __init__(self, expected=None, mouth=None):
        self.seen, self.expected, self.mouth = [], expected, mouth

    def note(self, step, digest):
        """With `expected`: say by `mouth` what came back, and end the process before anything is saved."""
        self.seen.append((step, digest))
        if self.expected is not None and len(self.seen) == AHEAD:
            self.say()

    def say(self):
        for step, digest in self.seen:
            if digest != self.expected[step]:
                os.write(self.mouth, f"step {step} came back as another one".encode())
        os.write(self.mouth, f"resumed {self.seen[0][0]}".encode())
        os._exit(0)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def undisturbed():
    look = Look()
    lived(look)
    return [digest for _, digest in look.seen]


def job_of(folder, attempt, *, on_saved=None):
    checkpoints = Checkpoints(DirectoryStore(folder), prefix="jobs/ada/j/checkpoint", epoch=attempt)
    job = context.Context(context.Place(job_id="j", attempt=attempt), checkpoints=checkpoints, on_saved=on_saved)
    job.begin()
    return job


def killed(folder, attempt, dice):
    """A life and its end: the last step it was told is durable, and how many saves there were; None = it came to its end."""
    ear, mouth = os.pipe()
    die_at = dice.randrange(1, 80) if dice.random() < 0.5 else None
    wait_s, from_first_save = dice.uniform(0.0, 1.5), dice.random() < 0.5
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(ear)
            if die_at is not None:
                armed(str(folder), die_at)
            context.enter(job_of(folder, attempt, on_saved=lambda step, *_: os.write(mouth, step.to_bytes(8, "big"))))
            lived(Look())
            code = 0
        except BaseException as error:  # noqa: BLE001
            sys.stderr.write(f"life {attempt}: {error!r}\n")
        os._exit(code)
    os.close(mouth)
    if die_at is None:
        if from_first_save:
            select.select([ear], [], [], 60)  # however long a busy machine takes to come to it
        time.sleep(wait_s)
        os.kill(pid, signal.SIGKILL)
    told = b""
    while chunk := os.read(ear, 65536):
        told += chunk
    os.close(ear)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), f"life {attempt} ended with {code}: the reason is above"
    return (int.from_bytes(told[-8:], "big") if told else 0), len(told) // 8, code == 0


def came_back(folder, attempt, expected):
    """In a process of its own, which saves nothing: the step that a session goes on from, STEPS when it was over."""
    ear, mouth = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ear)
        look = Look(expected, mouth)
        try:
            context.enter(job_of(folder, attempt))
            lived(look)
            look.say()
        except BaseException as error:  # noqa: BLE001
            os.write(mouth, f"{error!r}".encode())
        os._exit(0)
    os.close(mouth)
    said = b""
    while chunk := os.read(ear, 65536):
        said += chunk
    os.close(ear)
    os.waitpid(pid, 0)
    assert said.startswith(b"resumed "), said.decode()
    return int(said.split()[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--lives", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dice, expected = random.Random(given.seed), undisturbed()
    assert len(expected) == STEPS + 1
    counts, attempt, round_, least, lives = Counter(), 0, 0, 0, 0
    while lives < given.lives:
        folder, attempt = os.path.join(given.folder, str(round_)), attempt + 1  # noqa: PTH118
        told, saves, is_over = killed(folder, attempt, dice)
        counts["saves"] += saves
        lives += not is_over
        least = max(least, told)
        attempt += 1
        step = came_back(folder, attempt, expected)
        assert step >= least, f"step {least} was acknowledged, {step} came back"
        assert step == STEPS or not is_over, f"it was over, and step {step} came back"
        if step == STEPS:
            attempt, round_, least = 0, round_ + 1, 0
            counts["ends"] += 1
        else:
            least = step
            counts["resumed"] += step > 0
    print(json.dumps({"lives": lives, **counts}))


if __name__ == "__main__":
    main()
