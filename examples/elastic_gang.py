"""A gang that takes what there is at every start, of one type or another, and reaches the same weights whatever it was.

    python examples/elastic_gang.py

The function runs once for each device, as under torchrun. `virtual=8` makes every step of the same eight micro-batches, so
that 1, 2 or 4 devices compute the same.
"""

import argparse

import fabric


def train(epochs: int) -> str:
    """One rank. It is imported on the node, so torch isn't needed where it is submitted."""
    import hashlib  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from training import session  # noqa: PLC0415

    torch.manual_seed(7)
    x = torch.randn(1_024, 16)
    data = torch.utils.data.TensorDataset(x, x[:, :4].tanh())
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with session(model=model, opt=opt) as run:
        for inputs, wanted in run.batches(data, global_batch=64, virtual=8, epochs=epochs):
            run.step(((model(inputs) - wanted) ** 2).mean())  # backward, the gang's sum, the optimizer
    weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(weights).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--accelerators", nargs="+", default=["H100:1-4", "A100:1-4"])
    given = parser.parse_args()

    fabric.connect()
    job = fabric.submit(
        train, given.epochs, tokens="0.5", accelerators=given.accelerators, ranks="device", name="elastic"
    )
    print("weights", job.result(), "on", job.timeline)
    print(job.cost().burned_ct, "tokens")


if __name__ == "__main__":
    main()
