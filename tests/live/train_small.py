"""A small training script, two lines away from a plain one: what the live tests run, in a fabric and without.

train_small.py STEPS STEP_S [FILE]: steps take no time any more once the file is there.
"""

import hashlib
import sys
import time
from pathlib import Path

import torch

from training import session

steps, step_s, hurry = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
torch.set_num_threads(1)
torch.manual_seed(7)
model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Dropout(0.1), torch.nn.ReLU(), torch.nn.Linear(64, 8))
opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
run = session(model=model, opt=opt)
for _step in run.steps(steps):
    x = torch.randn(64, 32)
    loss = ((model(x) - x[:, :8].tanh()) ** 2).mean()
    loss.backward()
    opt.step()
    opt.zero_grad()
    run.log(loss=loss)
    time.sleep(0.0 if hurry and Path(hurry[0]).exists() else step_s)
state = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
print("digest", hashlib.sha256(state).hexdigest(), flush=True)
