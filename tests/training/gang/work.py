"""What the processes of a test's gang do: a small run that shows every bit that went another way.

Dropout, batch normalisation, AdamW, a schedule, clipping, and noise from numpy and Python in the data: anything that
depended on who computed what would show in the digest. `Shelf` is a stand-in for the checkpoints of the product.
"""

import hashlib
import io
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from fabric.checkpoints import Checkpoints, DirectoryStore, Draft
from fabric.errors import Unavailable
from training.gang.gradients import Gradients, Reproducible
from training.gang.members import Gang, PeerLost, Seat
from training.gang.shares import Shares
from training.loop.virtual import Plan, VirtualRanks
from training.sharded import Sharded, restore, state_of

EVICTED = 75
REFUSED = 70
SAMPLES = 512
WIDTH = 12


@dataclass(frozen=True)
class Order:
    """What one gang is to do."""

    folder: Path
    steps: int
    virtual: int = 8
    batch: int = 24
    stop_after: int | None = None
    """This rank asks to stop when it has done so many steps."""
    asked: int = 0
    shares: tuple[int, ...] | None = None
    mode: Reproducible = Reproducible.BITWISE
    timeout_s: float = 30.0
    silent_s: float = 20.0
    pause_s: float = 0.0
    """How long a micro-batch takes at least."""
    dies_saving: tuple[int, ...] = ()
    hangs_saving: tuple[int, ...] = ()
    dies_restoring: tuple[int, ...] = ()
    speeds: tuple[float, ...] = ()
    sharded: bool = False
    epoch: int = 1
    epochs: int = 1
    samples: int = 504
    grace_s: float = 30.0
    balances: bool = True
    workers: int = 0
    kinds: tuple[str, ...] = ()
    """What devices the ranks have, and `mix` what they may be made of."""
    mix: str = "never"
    sharding: str = "fsdp"
    """How a model is cut up that no rank holds whole: fsdp, hsdp, tp, both (fsdp of tp); whole = it isn't."""
    snapshot_every_s: float | None = None
    copies: str | None = None
    """What FABRIC_PEER_COPIES would say."""
    nodes: int = 0
    """How many ranks a node has; 0 = nobody has said."""
    dies_comparing: tuple[int, ...] = ()
    """Ranks that are killed as all compare what they hold after their first step."""
    dies_copying: tuple[int, int] | None = None
    """A rank, and how often it has begun to pass bytes to a peer's memory when it dies."""
    damages: int | None = None
    """A rank in whose memory a bit falls over in the newest of what it holds for another."""
    fails_at: int | None = None
    """A step in which the script itself fails, on all ranks."""
    digests: bool = False
    """Whether weights and moments are noted after each step."""
    skips: tuple[int, ...] = ()
    """Samples whose batch the script gives no loss for."""

    def path(self, name):
        return self.folder / name


class Shelf:
    """Whole files by rename, the newest step first."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def newest(self):
        steps = [int(path.stem) for path in self.folder.glob("*.saved")]
        return max(steps, default=None)

    def save(self, step, state):
        kept = io.BytesIO()
        torch.save(state, kept)
        draft = self.folder / f".{step}.{os.getpid()}"
        draft.write_bytes(kept.getvalue())
        draft.replace(self.folder / f"{step}.saved")

    def load(self, step):
        return torch.load(self.folder / f"{step}.saved", weights_only=True)


class Net(nn.Module):
    def __init__(self, norm=nn.BatchNorm1d):
        super().__init__()
        self.first, self.norm = nn.Linear(WIDTH, 16), norm(16)
        self.drop, self.last = nn.Dropout(0.2), nn.Linear(16, 3)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, seen):
        return self.last(self.drop(torch.relu(self.norm(self.first(seen)))))


class Run:
    """A model in training, with all that a checkpoint brings back."""

    def __init__(self, norm=nn.BatchNorm1d):
        torch.manual_seed(5)
        self.model = Net(norm)
        self.opt = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.sched = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, 500)
        self.step = 0

    def parts(self):
        return {"model": self.model, "opt": self.opt, "sched": self.sched}

    def state(self):
        return {name: part.state_dict() for name, part in self.parts().items()} | {"step": self.step}

    def restore(self, state):
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]

    def digest(self):
        whole = hashlib.sha256(str(self.step).encode())
        for tensor in [*self.model.state_dict().values(), *tensors(self.opt.state_dict()["state"])]:
            whole.update(tensor.detach().contiguous().numpy().tobytes())
        return whole.hexdigest()


def tensors(tree):
    for _, value in sorted(tree.items()):
        if isinstance(value, dict):
            yield from tensors(value)
        else:
            yield value


def dataset():
    dice = torch.Generator().manual_seed(11)
    return torch.randn(SAMPLES, WIDTH, generator=dice), torch.randint(3, (SAMPLES,), generator=dice)


def losses(model, pause_s=0.0):
    inputs, wanted = dataset()
    due = [0.0]

    def loss_of(micro):
        due[0] = max(due[0], time.monotonic() - pause_s) + pause_s  # whatever the rest takes is within the pause
        at = torch.arange(micro.start, micro.stop) % SAMPLES
        noise = torch.from_numpy(np.random.normal(size=(len(at), WIDTH))).float() * random.random()  # noqa: NPY002  # the global state is the point
        loss = functional.cross_entropy(model(inputs[at] + 0.1 * noise), wanted[at])
        if pause_s:
            time.sleep(max(0.0, due[0] - time.monotonic()))
        return loss

    return loss_of


def note(order, rank, **said):
    with (order.folder / f"rank-{rank}.jsonl").open("a") as file:
        file.write(json.dumps(said) + "\n")


def train(rank, world, port, order):
    """One attempt: until all steps are done, or the gang agrees to stop, or a peer is lost."""
    torch.set_num_threads(1)
    shelf, run = Shelf(order.folder), Run()
    if rank in order.dies_restoring:
        os.kill(os.getpid(), 9)
    try:
        gang = Gang.open(
            Seat(rank=rank, world=world, master=("127.0.0.1", port)), backend="gloo",
            timeout_s=order.timeout_s, silent_s=order.silent_s,
        )  # fmt: skip
    except Unavailable as refused:
        note(order, rank, refused=refused.message, code=refused.code)
        os._exit(REFUSED)
    newest = shelf.newest()
    if newest is not None:
        run.restore(shelf.load(newest))
    code = 0
    try:
        code = loop(run, gang, shelf, order)
    except PeerLost as lost:
        seen = time.time()
        kept = gang.keep(run.step, save=lambda: shelf.save(run.step, run.state()), newest=shelf.newest, patience_s=0.3)
        note(
            order,
            rank,
            lost=lost.message,
            silent=list(gang.silent),
            seen=seen,
            durable=time.time(),
            step=run.step,
            kept=kept,
        )
        os._exit(EVICTED)
    if code == 0 and rank == 0:
        (order.folder / "digest").write_text(run.digest())
    gang.close()
    os._exit(code)


def loop(run, gang, shelf, order):
    virtual = VirtualRanks(order.virtual, order.batch, seed=3)
    gradients = Gradients(run.model, virtual=virtual, gang=gang, reproducible=order.mode)
    if order.shares:
        gradients.plan = Plan(order.shares)
    shares = Shares(order.virtual, world=gang.world, rank=gang.rank, balances=bool(order.speeds) and order.balances)
    lap_us, began_at = 0, run.step
    speed = order.speeds[gang.rank] if order.speeds else 1.0
    loss_of = losses(run.model, pause_s=order.pause_s / speed)
    while run.step < order.steps:
        stop = gang.rank == order.asked and order.stop_after is not None and run.step - began_at >= order.stop_after
        agreement = gang.agree(stop=stop, lap_us=lap_us)
        computed = gradients.compute(run.step, loss_of)
        lap_us = computed.lap_us
        nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.opt.step()
        run.sched.step()
        note(
            order,
            gang.rank,
            did=run.step,
            vranks=list(gradients.plan.block(gang.rank)),
            loss=computed.loss,
            at=time.time(),
        )
        run.step += 1
        verdict = agreement.wait()
        shares.observe(run.step, verdict.laps_us)
        if order.speeds and order.balances:
            gradients.plan = shares.plan(run.step, order.virtual)
        if verdict.stop and run.step < order.steps:
            gang.keep(run.step, save=lambda: save(run, gang, shelf, order), newest=shelf.newest, patience_s=0.3)
            return EVICTED
    return 0


def save(run, gang, shelf, order):
    if gang.rank in order.dies_saving:
        os.kill(os.getpid(), 9)
    if gang.rank in order.hangs_saving:
        os.kill(os.getpid(), 19)
    shelf.save(run.step, run.state())


def reduced_grads(rank, world, port, order):
    """One step's gradients only, to compare ways."""
    torch.set_num_threads(1)
    gang = Gang.open(Seat(rank=rank, world=world, master=("127.0.0.1", port)), backend="gloo")
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    if order.sharded:
        shard(model, world)
    inputs, wanted = dataset()
    gradients = Gradients(model, virtual=VirtualRanks(order.virtual, order.batch), gang=gang, reproducible=order.mode)
    gradients.plan = Plan(order.shares) if order.shares else gradients.plan

    def loss_of(micro):
        at = torch.arange(micro.start, micro.stop)
        return functional.cross_entropy(model(inputs[at].double()), wanted[at])

    computed = gradients.compute(0, loss_of)
    grads = [parameter.grad for parameter in model.parameters()]
    whole = torch.cat([(grad.full_tensor() if order.sharded else grad).reshape(-1) for grad in grads])
    torch.save({"grads": whole, "loss": computed.loss}, order.folder / f"grads-{rank}")
    if world > 1:
        dist.barrier()
    gang.close()
    os._exit(0)


def shard(model, world):
    mesh = init_device_mesh("cpu", (world,))
    for part in model:
        if isinstance(part, nn.Linear):
            fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def reshard(rank, world, port, order):
    """Load what there is onto this many ranks, note the whole state's digest, train `steps` more, save."""
    torch.set_num_threads(1)
    gang = Gang.open(
        Seat(rank=rank, world=world, master=("127.0.0.1", port)), backend="gloo", timeout_s=order.timeout_s
    )
    checkpoints = Checkpoints(
        DirectoryStore(order.folder), prefix="run", epoch=order.epoch, attempt_id=f"a{order.epoch}"
    )
    torch.manual_seed(rank)  # nobody begins with the weights of another
    model = nn.Sequential(nn.Linear(WIDTH, 17), nn.ReLU(), nn.Linear(17, 3))
    model = shard(model, world) if world > 1 else model
    opt = torch.optim.AdamW(model.parameters(), lr=0.01)
    loss_of = losses(model)
    keep = Sharded(checkpoints, gang)
    state = state_of(model, opt)
    step = keep.load(state)
    if step is not None:
        restore(model, opt, state)
        note(order, rank, epoch=order.epoch, loaded=step, digest=whole_digest(model, opt))
    gradients = Gradients(model, virtual=VirtualRanks(8, 24), gang=gang, reproducible=Reproducible.FAST)
    step = step or 0
    for _ in range(order.steps):
        gradients.compute(step, loss_of)
        opt.step()
        step += 1
    if rank in order.dies_saving:
        Draft.put = lambda *_: os.kill(os.getpid(), 9)
    try:
        keep.save(step + 1, state_of(model, opt))
    except PeerLost as lost:
        note(order, rank, lost=lost.message)
        os._exit(REFUSED)
    note(order, rank, epoch=order.epoch, saved=step + 1, digest=whole_digest(model, opt))
    gang.close()
    os._exit(0)


def whole_digest(model, opt):
    options = StateDictOptions(full_state_dict=True)
    weights, moments = get_state_dict(model, opt, options=options)
    whole = hashlib.sha256()
    for tensor in tensors({"w": weights, "m": moments["state"]}):
        whole.update(tensor.contiguous().numpy().tobytes())
    return whole.hexdigest()
