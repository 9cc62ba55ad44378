"""A script whose gang may be of several kinds: it says on every rank what it ends with."""

import hashlib
import os
import sys
import time

import torch

from training import session

step_s = float(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(7)
inputs = torch.randn(480, 16)
data = torch.utils.data.TensorDataset(inputs, inputs[:, :4].tanh())
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
seen = 0
with session(model=model, opt=opt) as run:
    for x, wanted in run.batches(data, global_batch=12, virtual=6, epochs=2):
        run.step(((model(x) - wanted) ** 2).mean())
        seen += len(x)
        time.sleep(step_s)
state = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
kind, digest = os.environ["FABRIC_ACCELERATOR"], hashlib.sha256(state).hexdigest()
print(f"rank {os.environ['RANK']} on {kind} saw {seen} and ends with {digest}", flush=True)
