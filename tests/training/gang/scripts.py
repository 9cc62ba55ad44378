"""Users' scripts, which know nothing of gangs: the tests run them on any number of ranks."""

import hashlib
import os
import random
import time

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from fabric.errors import FabricError
from tests.training.gang.work import REFUSED, SAMPLES, WIDTH, Run, dataset, note, shard
from training.session import session


def script(rank, world, port, order):
    """A user's script, on any number of ranks: nothing in it knows of a gang."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "FABRIC_TENSORBOARD_DIR": str(order.folder / "tensorboard"), "FABRIC_GRACE_S": str(order.grace_s),
        "FABRIC_GANG_TIMEOUT_S": str(order.timeout_s), "FABRIC_GANG_SILENT_S": str(order.silent_s),
    }  # fmt: skip
    if order.kinds:
        os.environ |= {"FABRIC_ACCELERATOR": order.kinds[rank], "FABRIC_MIX": order.mix, "FABRIC_ISLANDS_EVERY": "4"}
    torch.set_num_threads(1)
    own = Run(nn.LayerNorm if order.samples % order.batch else nn.BatchNorm1d)  # which can't learn from one sample
    inputs, wanted = dataset()
    data = torch.utils.data.TensorDataset(inputs[: order.samples], wanted[: order.samples])
    with session(model=own.model, opt=own.opt, sched=own.sched, directory=order.folder, clip_norm=1.0) as run:
        order.path(f"pid-{rank}").write_text(str(os.getpid()))
        for seen, label in run.batches(
            data, global_batch=order.batch, virtual=order.virtual, epochs=order.epochs, seed=9, workers=order.workers,
            reproducible=str(order.mode),
        ):  # fmt: skip
            noise = torch.from_numpy(np.random.normal(size=seen.shape)).float() * random.random()  # noqa: NPY002
            note(order, rank, did=run.done, rows=[hash_of(row) for row in seen], at=time.time())
            if order.pause_s:
                time.sleep(order.pause_s)
            if any(torch.equal(row, inputs[at]) for at in order.skips for row in seen):
                continue
            run.step(functional.cross_entropy(own.model(seen + 0.1 * noise), label))
    weights = b"".join(weight.detach().numpy().tobytes() for weight in own.model.parameters())
    note(order, rank, weights=hashlib.sha256(weights).hexdigest(), kind=order.kinds[rank : rank + 1])
    if rank == 0:
        own.step = run.done
        order.path("digest").write_text(own.digest())


def refused_script(rank, world, port, order):
    """A script that is refused says why."""
    try:
        script(rank, world, port, order)
    except FabricError as refused:
        note(order, rank, code=refused.code)
        os._exit(REFUSED)


def sharded_script(rank, world, port, order):
    """A model that no rank holds whole."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    dist.init_process_group("gloo")
    model = shard(nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 3)), world)
    try:
        session(model=model, directory=order.folder)
    except FabricError as refused:
        note(order, rank, code=refused.code, message=refused.message)
        os._exit(REFUSED)


def own_loop_on_islands(rank, world, port, order):
    """A loop of one's own, which reduces nothing."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "FABRIC_ACCELERATOR": order.kinds[rank], "FABRIC_MIX": order.mix,
    }  # fmt: skip
    own = Run(nn.LayerNorm)
    run = session(model=own.model, opt=own.opt, sched=own.sched, directory=order.folder)
    try:
        next(iter(run.steps(order.steps)))
    except FabricError as refused:
        note(order, rank, code=refused.code)
        os._exit(REFUSED)


def plain_script(rank, world, port, order):
    """A script with a DDP loop of its own, and two lines more."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "FABRIC_TENSORBOARD_DIR": str(order.folder / "tensorboard"),
    }  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    own = Run(nn.LayerNorm)
    model = DistributedDataParallel(own.model, find_unused_parameters=True)
    inputs, wanted = dataset()
    run = session(model=own.model, opt=own.opt, sched=own.sched, directory=order.folder)
    for step in run.steps(order.steps):
        at = torch.arange(step * 8 + rank, step * 8 + 8, world) % SAMPLES
        note(order, rank, did=step)
        time.sleep(order.pause_s)
        own.opt.zero_grad()
        functional.cross_entropy(model(inputs[at]), wanted[at]).backward()
        own.opt.step()
        own.sched.step()
    if rank == 0:
        own.step = order.steps
        order.path("digest").write_text(own.digest())


def hash_of(row):
    return hashlib.sha256(row.numpy().tobytes()).hexdigest()[:12]
