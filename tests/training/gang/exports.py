"""A user's script that begins from a Hugging Face folder, trains a model that no rank holds whole, and exports it."""

import os
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from tests.training.gang.work import note
from training.session import session


def export_script(rank, world, port, order):
    warnings.simplefilter("ignore")  # of transformers, as it is imported
    from tests.training.kinds import adapted, built
    from training.export import export
    from training.pretrained import load_weights

    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "FABRIC_TENSORBOARD_DIR": str(order.folder / "tensorboard"),
    }  # fmt: skip
    dist.init_process_group("gloo", rank=rank, world_size=world)
    for case in order.sharding.split():
        folder = order.folder / case
        way, kind = case.split("-")
        model = adapted(seed=1) if kind == "adapter" else built(kind, seed=50 + rank)
        mesh = init_device_mesh("cpu", (world,))
        if way == "tp":
            plan = {"model.layers.*.mlp.up_proj": ColwiseParallel(output_layouts=Replicate())}
            parallelize_module(model, mesh, plan)
        else:
            fully_shard(model, mesh=mesh)
        if kind != "adapter":
            load_weights(model, folder / "base")
        export(model, folder / "begun")
        opt = torch.optim.SGD([own for own in model.parameters() if own.requires_grad], lr=0.1)
        run = session(model=model, opt=opt, directory=folder / "run")
        for _ in run.steps(order.steps):
            export(model, folder / "amid")  # as the session's own threads talk, too
            for own in opt.param_groups[0]["params"]:
                own.grad = own.detach().sign()
            opt.step()
        export(model, folder / "live")
        note(order, rank, case=case, is_sharded=any(hasattr(own, "device_mesh") for own in model.parameters()))
        dist.barrier()
