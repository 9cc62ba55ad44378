"""A language model in nanoGPT's manner: a `while` loop, the next batch drawn ahead, gradients of several, evaluations."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

# fabric: from training import session

MAX_ITERS, EVAL_EVERY, ACCUMULATION, BLOCK, BATCH, VOCABULARY, WIDTH = 60, 16, 2, 16, 4, 32, 16

torch.manual_seed(1337)
text = np.random.default_rng(1).integers(0, VOCABULARY, 4_000).astype(np.uint16)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.token.weight

    def forward(self, x, y):
        mask = nn.Transformer.generate_square_subsequent_mask(BLOCK)
        logits = self.head(self.block(self.token(x) + self.place(torch.arange(BLOCK)), src_mask=mask))
        return functional.cross_entropy(logits.view(-1, VOCABULARY), y.view(-1))


def get_batch(split):
    data = text[:3_000] if split == "train" else text[3_000:]
    starts = torch.randint(len(data) - BLOCK, (BATCH,))
    x = torch.stack([torch.from_numpy(data[at : at + BLOCK].astype(np.int64)) for at in starts])
    y = torch.stack([torch.from_numpy(data[at + 1 : at + 1 + BLOCK].astype(np.int64)) for at in starts])
    return x, y


def get_lr(at):
    return 1e-2 * (at + 1) / 5 if at < 5 else 1e-3 + 0.5 * (1 + math.cos(math.pi * at / MAX_ITERS)) * 9e-3


@torch.no_grad()
def estimate_loss():
    model.eval()
    found = {split: torch.stack([model(*get_batch(split)) for _ in range(3)]).mean() for split in ("train", "val")}
    model.train()
    return found


model = Model()
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, betas=(0.9, 0.95))
scaler = torch.amp.GradScaler("cpu", enabled=False)
x, y = get_batch("train")
iter_num, best_val_loss = 0, 1e9
# fabric: run = session(model=model, opt=optimizer, scaler=scaler)
while True:  # fabric: for _ in run.steps(None):
    for group in optimizer.param_groups:
        group["lr"] = get_lr(iter_num)
    if iter_num % EVAL_EVERY == 0:
        losses = estimate_loss()
        best_val_loss = min(best_val_loss, losses["val"].item())
    for _micro in range(ACCUMULATION):
        loss = model(x, y) / ACCUMULATION
        x, y = get_batch("train")
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    print("step", iter_num, loss.item(), flush=True)
    iter_num += 1
    if iter_num > MAX_ITERS:
        break

torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": best_val_loss}, "final.pt")
