"""A loop of Hugging Face's accelerate: everything prepared, gradients accumulated, a schedule over optimizer steps."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# fabric: from training import session

EPOCHS = 4

torch.manual_seed(3)
dice = torch.Generator().manual_seed(4)
data = TensorDataset(torch.randn(96, 8, generator=dice), torch.randn(96, 1, generator=dice), torch.arange(96))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))
        self.register_buffer("seen", torch.zeros(96, dtype=torch.int64))

    def forward(self, x, which):
        self.seen[which] += 1
        return self.layers(x)


accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
loader = DataLoader(data, batch_size=8, shuffle=True)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
# fabric: run = session(model=model, opt=optimizer, sched=scheduler)
for _ in range(EPOCHS):  # fabric: if True:
    for x, y, which in loader:  # fabric: for x, y, which in run.batches(loader, epochs=EPOCHS):
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(x, which), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        print("step", int(model.seen.sum()), loss.item(), flush=True)

kept = {"model": accelerator.unwrap_model(model).state_dict(), "optimizer": optimizer.state_dict()}
torch.save({**kept, "seen": model.seen, "rate": scheduler.get_last_lr()}, "final.pt")
