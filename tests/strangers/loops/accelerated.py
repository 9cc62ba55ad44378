"""A loop of accelerate's, with gradients that are accumulated over N batches (the first argument, 1) and a schedule."""

import sys

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# fabric: from training import session

ACCUMULATED = int(sys.argv[1]) if len(sys.argv) > 1 else 1
torch.manual_seed(11)
inputs = torch.randn(192, 12)
data = TensorDataset(inputs, (inputs.sum(1) > 0).long())
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 72)
loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
# fabric: run = session(model=model, opt=optimizer, sched=schedule)

step = 0
for _epoch in range(3):  # fabric: for _epoch in range(1):
    for x, y in loader:  # fabric: for x, y in run.batches(loader, epochs=3):
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        step += 1
        print("batch", step, loss.item(), flush=True)
torch.save(accelerator.unwrap_model(model).state_dict(), "final.pt")
