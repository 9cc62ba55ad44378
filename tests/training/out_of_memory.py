"""Losses for which there is too little memory, without a device that has too little."""

from contextlib import suppress

import torch
from torch import nn

from training import session


class Large:
    """A loss whose gradients don't fit."""

    device = torch.device("cpu")

    def detach(self):
        return 0.5

    def backward(self):
        raise MemoryError


def begun_around_a_loss_that_does_not_fit(**options):
    """Where each of two sessions begins, of which the first comes to such a loss in its third step."""
    begun = []
    for _ in range(2):
        model = nn.Linear(6, 3)
        run = session(model=model, opt=torch.optim.SGD(model.parameters(), lr=0.1), **options)
        begun.append(run.resumed_at)
        with suppress(MemoryError):
            for at, _ in enumerate(run.batches(range(24), global_batch=4), run.resumed_at):
                fits = at != 2 or len(begun) > 1
                run.step(model(torch.ones(4, 6)).square().mean() if fits else Large())
    return begun
