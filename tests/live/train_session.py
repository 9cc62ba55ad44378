"""A script on a session, whose source of data stalls once: it must be saved there. Prints the digest of what it trained.

train_session.py FOLDER
"""

import hashlib
import sys
import time
from pathlib import Path

import torch
from torch import nn

from training import session

STALLED = Path(sys.argv[1]) / "stalled"


class Samples:
    """Reads well, but for one time."""

    def __len__(self):
        return 400

    def __getitem__(self, index):
        if index == 123 and not STALLED.exists():
            STALLED.touch()
            time.sleep(600)
        return torch.full((4,), index / 400), index % 3


torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
opt = torch.optim.AdamW(model.parameters(), lr=0.01)
with session(model=model, opt=opt) as run:
    for samples, classes in run.batches(Samples(), global_batch=8, epochs=2):
        loss = nn.functional.cross_entropy(model(samples), classes)
        run.step(loss)
        run.log(loss=loss)
whole = hashlib.sha256()
for tensor in model.state_dict().values():
    whole.update(tensor.numpy().tobytes())
print("resumed at", run.resumed_at)
print("digest", whole.hexdigest())
