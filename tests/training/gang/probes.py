"""What benches and small tests have the processes of a gang do."""

import time

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from tests.training.gang.scripts import hash_of
from tests.training.gang.work import SAMPLES, Net, dataset, note
from training.gang import Gang, Seat
from training.islands import Islands
from training.replicas import _Vector
from training.virtual import Plan


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


def nothing(rank, world, port, order):
    """Only be forked: the nest is warm after it."""
