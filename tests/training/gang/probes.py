"""What benches and small tests have the processes of a gang do."""

import math
import os
import time

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from tests.training.gang.scripts import hash_of
from tests.training.gang.work import SAMPLES, Net, dataset, note
from training.gang.islands import Islands
from training.gang.members import Gang, Seat
from training.gang.replicas import _Vector
from training.loop.virtual import Plan
from training.session import session


def agree_often(rank, world, port, order):
    """Steps of 5 ms with nothing in them but the agreement."""
    torch.set_num_threads(1)
    gang = Gang.open(Seat(rank=rank, world=world, master=("127.0.0.1", port)), backend="gloo")
    starts, reads, cpus = [], [], []
    for _ in range(order.steps):
        cpu = time.thread_time()
        began = time.perf_counter()
        agreement = gang.agree(stop=False, lap_us=1)
        starts.append(time.perf_counter() - began)
        cpu = time.thread_time() - cpu
        time.sleep(0.005)
        again = time.thread_time()
        began = time.perf_counter()
        agreement.wait()
        reads.append(time.perf_counter() - began)
        cpus.append(cpu + time.thread_time() - again)
    start_ms, read_ms, cpu_ms = (float(np.median(found)) * 1e3 for found in (starts, reads, cpus))
    note(order, rank, start_ms=start_ms, read_ms=read_ms, cpu_ms=cpu_ms)
    gang.close()


def fold_often(rank, world, port, order):
    """The exchange of a gradient of `batch` MiB, beside an all-reduce of it."""
    torch.set_num_threads(1)
    gang = Gang.open(Seat(rank=rank, world=world, master=("127.0.0.1", port)), backend="gloo")
    leaf = torch.ones(order.batch << 18)
    ragged = [order.virtual // world + (1 if at % 2 else -1) for at in range(world)]
    took = {}
    for name, plan in {"fold_s": Plan.even(order.virtual, world), "ragged_s": Plan(tuple(ragged))}.items():
        vector = _Vector([0], [leaf], world=world)
        took[name] = []
        for _ in range(order.steps):
            vector.begin(plan, rank)
            for _ in plan.block(rank):
                vector.add([leaf])
            dist.barrier()
            began = time.perf_counter()
            vector.finish(plan, gang)
            took[name].append(time.perf_counter() - began)
    took["reduce_s"] = []
    for _ in range(order.steps):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(leaf)
        took["reduce_s"].append(time.perf_counter() - began)
    note(order, rank, **{name: float(np.median(found)) for name, found in took.items()})
    gang.close()


def island(rank, world, port, order):
    """An island that takes as many samples a step as it is quick, meets every ten steps, and says what came of it."""
    torch.set_num_threads(1)
    gang = Gang.open(Seat(rank=rank, world=world, master=("127.0.0.1", port)), backend="gloo")
    torch.manual_seed(5)
    model = Net(nn.LayerNorm)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    islands = Islands(model, gang, every=10)
    inputs, _ = dataset()
    wanted = inputs[:, :3].argmax(1)
    size = int(8 * order.speeds[rank])
    dice, met = torch.Generator().manual_seed(rank), 0
    for _ in range(order.steps):
        at = torch.randint(SAMPLES, (size,), generator=dice)
        opt.zero_grad()
        loss = functional.cross_entropy(model(inputs[at]), wanted[at])
        loss.backward()
        opt.step()
        if islands.stepped(size):
            weights = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
            whole = functional.cross_entropy(model.eval()(inputs), wanted)
            model.train()
            note(order, rank, met=met, weights=hash_of(weights), loss=whole.item())
            met += 1
    gang.close()


class Weights(nn.Module):
    """As many as asked for, and next to nothing to compute."""

    def __init__(self, count):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(count))

    def forward(self):
        return self.weights.sum()


def copy_often(rank, world, port, order):
    """Steps in which a device computes for `pause_s`, of ranks that hold `batch` MiB of weights and moments each."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    model = fully_shard(Weights(world * (order.batch << 20) // 12), mesh=init_device_mesh("cpu", (world,)))
    opt = torch.optim.AdamW(model.parameters(), foreach=False)
    run = session(model=model, opt=opt, directory=order.folder, snapshot_every_s=math.inf, peer_copies=order.copies)
    ends = []
    for _ in run.steps(order.steps):
        time.sleep(order.pause_s)
        opt.zero_grad()
        model().backward()
        opt.step()
        ends.append((time.perf_counter(), time.thread_time(), time.process_time()))
    since, steps = ends[len(ends) // 4], len(ends) - 1 - len(ends) // 4
    names = ("step_s", "thread_s", "process_s")
    note(order, rank, **{name: (end - began) / steps for name, began, end in zip(names, since, ends[-1], strict=True)})


def nothing(rank, world, port, order):
    """Only be forked: the nest is warm after it."""
