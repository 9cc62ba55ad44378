"""A script of a gang, whose ranks leave their process's number in a folder and say what they end with.

train_gang.py FOLDER STEP_S
"""

import hashlib
import os
import sys
import time
from pathlib import Path

import torch

from training import session

folder, step_s = Path(sys.argv[1]), float(sys.argv[2])
rank, attempt = os.environ.get("RANK", "0"), os.environ.get("FABRIC_ATTEMPT", "1")
torch.set_num_threads(1)
torch.manual_seed(7)
inputs = torch.randn(480, 16)
data = torch.utils.data.TensorDataset(inputs, inputs[:, :4].tanh())
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
with session(model=model, opt=opt) as run:
    for at, (x, wanted) in enumerate(run.batches(data, global_batch=12, virtual=6, epochs=3)):
        run.step(((model(x) - wanted) ** 2).mean())
        if at == 6:
            (folder / f"{attempt}-{rank}.new").write_text(str(os.getpid()))
            (folder / f"{attempt}-{rank}.new").rename(folder / f"{attempt}-{rank}")
        time.sleep(step_s)
state = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
print(f"rank {rank} resumed at {run.resumed_at} and ends with {hashlib.sha256(state).hexdigest()}", flush=True)
