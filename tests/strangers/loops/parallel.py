"""Data-parallel training under torchrun: DistributedDataParallel, and a share of each batch for every rank."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# fabric: from training import session

STEPS = 120

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(18)
dice = torch.Generator().manual_seed(19)
x, y = torch.randn(256, 6, generator=dice), torch.randint(3, (256,), generator=dice)
net = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.1), nn.ReLU(), nn.Linear(32, 3))
model = DistributedDataParallel(net)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
torch.manual_seed(20 + rank)
# fabric: run = session(model=net, opt=optimizer)
for step in range(STEPS):  # fabric: for step in run.steps(STEPS):
    batch = torch.randint(256 // world, (8,)) * world + rank
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
    loss.backward()
    optimizer.step()
    if rank == 0:
        print("step", step, loss.item(), flush=True)

if rank == 0:
    torch.save(
        {"model": net.state_dict(), "optimizer": optimizer.state_dict()}, os.path.join(os.environ["OUT"], "final.pt")
    )
dist.destroy_process_group()
