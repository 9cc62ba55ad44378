"""Users' scripts, which know nothing of gangs: the tests run them on any number of ranks."""

import hashlib
import os
import random
import time
import warnings

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from fabric.checkpoints import Draft
from fabric.errors import FabricError
from tests.training.gang.work import REFUSED, SAMPLES, WIDTH, Run, dataset, note, whole_digest
from training import session_loop
from training.gang import peer_copies, sharded_saver
from training.gang.part_vault import Parts
from training.gang.peer_copies import PeerCopies
from training.session import session
from training.state import eviction


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


def flat_script(rank, world, port, order):
    """A state that takes all ranks at once to read: FSDP1's, or ZeRO's optimizer."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    dist.init_process_group("gloo", rank=rank, world_size=world)
    model = nn.Linear(WIDTH, 16)
    warnings.simplefilter("ignore")  # torch's own: what is refused here is on its way out there
    if order.sharding == "zero":
        from torch.distributed.optim import ZeroRedundancyOptimizer

        tracked = {"model": model, "opt": ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.01)}
    else:
        model = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
        opt = torch.optim.AdamW(model.parameters(), lr=0.01)
        tracked = {"opt": opt} if order.sharding == "fsdp1 optimizer" else {"model": model, "opt": opt}
    try:
        session(**tracked, directory=order.folder)
    except FabricError as refused:
        note(order, rank, code=refused.code, message=refused.message)
        os._exit(REFUSED)


class Parted(nn.Module):
    """A model for each way to cut one up: a weight that isn't cut, a frozen one, a buffer, dropout."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(WIDTH, 18), nn.LayerNorm(18)
        self.drop, self.last = nn.Dropout(0.2), nn.Linear(18, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.given = nn.Parameter(torch.arange(20_000.0), requires_grad=False)

    def forward(self, batch):
        self.seen += len(batch)
        return self.last(self.drop(self.norm(torch.relu(self.first(batch)))))


def cut_up(model, way, world):
    """The model as a script would shard it."""
    if way in {"tp", "both"}:
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
        parallelize_module(
            model,
            mesh["tp"],
            {"first": ColwiseParallel(output_layouts=Replicate()), "last": ColwiseParallel(output_layouts=Replicate())},
        )
        mesh = mesh["dp"]
    elif way == "hsdp":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replica", "shard"))
    elif way == "fsdp":
        mesh = init_device_mesh("cpu", (world,))
    if way in {"fsdp", "hsdp", "both"}:
        for part in (model.first, model.last):
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def parted_script(rank, world, port, order):
    """A loop of one's own over a model that no rank holds whole, and two lines more."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "FABRIC_TENSORBOARD_DIR": str(order.folder / "tensorboard"), "FABRIC_GRACE_S": str(order.grace_s),
        "FABRIC_GANG_TIMEOUT_S": str(order.timeout_s), "FABRIC_GANG_SILENT_S": str(order.silent_s),
    }  # fmt: skip
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # of FSDP over tensor parallelism
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(5)
    model = cut_up(Parted(), order.sharding, world)
    opt = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 500)
    part, parts = (rank // 2, world // 2) if order.sharding in {"tp", "both"} else (rank, world)
    torch.manual_seed(50 + part)
    inputs, wanted = dataset()
    if rank in order.dies_saving:
        Draft.put = lambda *_: os.kill(os.getpid(), 9)
    tracked = {"opt": opt} if order.sharding == "fsdp" and order.kinds else {"model": model, "opt": opt}
    prepare_copies(rank, order)
    run = session(
        **tracked,
        sched=sched,
        directory=order.folder,
        snapshot_every_s=order.snapshot_every_s,
        peer_copies=order.copies,
    )
    note(order, rank, resumed=run.resumed_at, digest=parts_digest(model, opt) if run.resumed_at else "")
    if rank in order.dies_comparing:
        Parts.check = lambda *_: os.kill(os.getpid(), 9)
    for step in run.steps(order.steps):
        note(order, rank, began=step)
        at = torch.arange(step * 8, step * 8 + 8)[part::parts] % SAMPLES
        time.sleep(order.pause_s)
        if step == order.fails_at:
            raise KeyError(step)
        opt.zero_grad()
        functional.cross_entropy(model(inputs[at]), wanted[at]).backward()
        if order.sharding not in {"tp", "both"}:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        sched.step()
        note(order, rank, did=step)
        if order.digests:
            note(order, rank, after=step + 1, digest=parts_digest(model, opt))
    note(
        order,
        rank,
        at_step=order.steps,
        drawn=torch.rand(()).item(),
        seen=model.seen.item(),
        digest=parts_digest(model, opt),
    )


def prepare_copies(rank, order):
    """What befalls copies in peers' memory; and what is told of a loss is noted."""
    if order.nodes:
        os.environ["LOCAL_RANK"] = str(rank % order.nodes)
    for module in (eviction, session_loop, sharded_saver):
        module.say = lambda line: note(order, rank, said=line, told_at=time.time())
    peer_copies._CHUNK_BYTES = 16 * 1024
    if order.dies_copying is not None and order.dies_copying[0] == rank:
        passes, left = PeerCopies._passed, [order.dies_copying[1]]

        def passed_or_dead(*what):
            left[0] -= 1
            return passes(*what) if left[0] else os.kill(os.getpid(), 9)

        PeerCopies._passed = passed_or_dead
    if order.damages == rank:
        freeze = PeerCopies.freeze

        def freeze_damaged(copies):
            freeze(copies)
            slot = max(copies._kept, key=lambda slot: slot.held.step)
            slot.memory[slot.size - 1] ^= 4

        PeerCopies.freeze = freeze_damaged


def parts_digest(model, opt):
    """Of weights and moments, which are the same on all ranks; the buffer isn't."""
    seen = model.seen.clone()
    model.seen.zero_()
    digest = whole_digest(model, opt)
    model.seen.copy_(seen)
    return digest


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


def joined(rank, world, port, order):
    """What a script with a DDP loop of its own begins with: its run, and the model that the ranks share."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "FABRIC_TENSORBOARD_DIR": str(order.folder / "tensorboard"),
    }  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    own = Run(nn.LayerNorm)
    model = DistributedDataParallel(own.model, find_unused_parameters=True)
    return own, model


def plain_script(rank, world, port, order):
    """A script with a DDP loop of its own, and two lines more."""
    own, model = joined(rank, world, port, order)
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


def own_script(rank, world, port, order):
    """A script whose ranks draw different numbers, some of them from a generator that it names."""
    own, model = joined(rank, world, port, order)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(20 + rank)
    inputs, wanted = dataset()
    dice, seen, drawn = torch.Generator().manual_seed(50 + rank), [], torch.randint(SAMPLES, (4,))
    run = session(
        model=own.model,
        opt=own.opt,
        sched=own.sched,
        extra={"dice": dice},
        directory=order.folder,
        snapshot_every_s=order.snapshot_every_s,
    )
    for step in run.steps(order.steps):
        at, drawn = drawn, torch.randint(SAMPLES, (4,), generator=dice)  # drawn ahead
        seen.append(int(at[0]) + random.random() + np.random.rand())  # noqa: NPY002
        note(order, rank, did=step, drew=[*at.tolist(), sum(seen), len(seen)])
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
