"""Training that can be evicted at any instant, and loses nothing: two lines more than a plain torch loop.

    fabric submit --tokens 0.2 --accelerators H100:1 --follow -- python examples/train.py --steps 600

Pause and resume it (`fabric pause ID`, `fabric resume ID`) and it ends with the same weights. `python examples/train.py` runs it
without the fabric.
"""

import argparse
import hashlib

import torch

from training import session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Dropout(0.1), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, given.steps)

    run = session(model=model, opt=opt, sched=sched)  # the first line
    for step in run.steps(given.steps):  # the second: goes on after the last step that is durable
        x = torch.randn(64, 32)
        loss = ((model(x) - x[:, :8].tanh()) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
        run.log(loss=loss)

    weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    print("weights", hashlib.sha256(weights).hexdigest()[:16])


if __name__ == "__main__":
    main()
