"""Cross-validation: a model for each of k folds, trained one after the other, and the mean of what they reach."""

import torch
from torch import nn

# fabric: from training import session

FOLDS, STEPS = 4, 15

dice = torch.Generator().manual_seed(13)
x, y = torch.randn(80, 5, generator=dice), torch.randint(3, (80,), generator=dice)
found, models = [], {}
torch.manual_seed(14)
for fold in range(FOLDS):
    held_out = torch.arange(80) % FOLDS == fold
    train_x, train_y = x[~held_out], y[~held_out]
    model = nn.Sequential(nn.Linear(5, 8 + fold), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8 + fold, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    # fabric: run = session(model=model, opt=optimizer)
    for step in range(STEPS):  # fabric: for step in run.steps(STEPS):
        batch = torch.randint(len(train_x), (8,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])
        loss.backward()
        optimizer.step()
        print("step", fold, step, loss.item(), flush=True)
    model.eval()
    found.append((model(x[held_out]).argmax(1) == y[held_out]).float().mean().item())
    models[f"fold {fold}"] = model.state_dict()

torch.save({"models": models, "found": found}, "final.pt")
