"""Objects as loops change them in place, each as a call whose answer depends on all that was called before."""

import collections
import copy
import dataclasses
import heapq
import itertools

import numpy as np
import pytest
import torch
from torch import nn


@dataclasses.dataclass
class Transition:
    seen: np.ndarray
    reward: float


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    reward: float


Pair = collections.namedtuple("Pair", "seen reward")  # noqa: PYI024  # as scripts write it


class Replay:
    """A ring of arrays, as CleanRL's."""

    def __init__(self, size=6):
        self.seen, self.at, self.is_full = np.zeros((size, 2), np.float32), 0, False
        self.dice = np.random.default_rng(3)

    def __call__(self):
        self.seen[self.at] = np.random.rand(2)  # noqa: NPY002
        self.at = (self.at + 1) % len(self.seen)
        self.is_full |= self.at == 0
        return float(self.seen[: len(self.seen) if self.is_full else self.at].mean() + self.dice.random())


class Averages:
    """Weights averaged by hand."""

    def __init__(self, model):
        self.model, self.shadow = model, {key: weight.detach().clone() for key, weight in model.named_parameters()}

    def __call__(self):
        for key, weight in self.model.named_parameters():
            self.shadow[key].lerp_(weight.detach(), 0.1)
        return 1 + float(self.shadow["0.bias"].sum())


class Meter:
    def __init__(self):
        self.total, self.count, self.worst = 0.0, 0, None

    def __call__(self):
        self.total += float(torch.rand(()))
        self.count += 1
        self.worst = max(self.worst or 0.0, self.total)
        return self.total / self.count + self.worst


class Nested:
    """Whose parts are objects too, of which one is in two places."""

    def __init__(self):
        self.inner, self.__count = Meter(), 0
        self.parts = [self.inner, {"meter": self.inner}]

    def __call__(self):
        self.__count += 1
        return self.parts[1]["meter"]() + self.__count + self.inner.count


class Slots:
    __slots__ = ("__hidden", "count")

    def __init__(self):
        self.count, self.__hidden = 0, 1.0

    def __call__(self):
        self.count += 1
        self.__hidden *= 1.1
        return self.count + self.__hidden


class Cycle:
    """Something that holds itself, and replaces what it was made with."""

    def __init__(self):
        self.own, self.zero = self, torch.zeros(2)
        self.best = self.zero

    def __call__(self):
        self.own.best = self.best + float(torch.rand(()))
        return float(self.best.sum() + self.zero.sum())


def deque_of(make):
    def use(_model):
        held = collections.deque(maxlen=5)

        def push():
            held.append(make(float(torch.rand(()))))
            return sum(float(getattr(each, "reward", each)) for each in held)

        return push

    return use


def heap(_model):
    rows, number = [], itertools.count()

    def push():
        heapq.heappush(rows, (float(torch.rand(())), next(number)))
        return sum(key * at for key, at in rows)

    return push


def container(kind, put):
    def use(_model):
        held = kind()

        def push():
            put(held, len(held))
            return 1 + len(held) + sum(float(each) for each in held) / 1_000

        return push

    return use


def averaged(model):
    mean = copy.deepcopy(model)

    def push():
        with torch.no_grad():
            for own, now in zip(mean.parameters(), model.parameters(), strict=True):
                own.lerp_(now, 0.1)
        return 1 + float(sum(own.detach().sum() for own in mean.parameters()))

    return push


def adversary(_model):
    """Another model with its optimizer, which nobody has named."""
    other = nn.Linear(2, 1)
    opt = torch.optim.Adam(other.parameters(), lr=0.05)

    def push():
        opt.zero_grad()
        loss = other(torch.rand(1, 2)).square().sum()
        loss.backward()
        opt.step()
        return 1 + loss.item()

    return push


def counter(_model):
    count = 0

    def push():
        nonlocal count
        count += 1
        return count

    return push


def metric(_model):
    torchmetrics = pytest.importorskip("torchmetrics")
    mean = torchmetrics.MeanMetric()

    def push():
        mean.update(torch.rand(()))
        return float(mean.compute())

    return push


def environments(_model):
    gym = pytest.importorskip("gymnasium")
    made = gym.vector.SyncVectorEnv(
        [lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1")) for _ in range(2)]
    )
    made.reset(seed=5)

    def push():
        seen, *_ = made.step(np.random.randint(2, size=2))  # noqa: NPY002
        return float(np.abs(seen).sum())

    return push


def tensor_by_hand(_model):
    held = torch.zeros(3)

    def push():
        held.data.add_(1)
        held.numpy()[1] += 0.5  # neither of which torch counts
        return float(held.sum())

    return push


KINDS = {
    "meter": lambda _: Meter(),
    "replay": lambda _: Replay(),
    "averages": Averages,
    "averaged module": averaged,
    "nested": lambda _: Nested(),
    "slots": lambda _: Slots(),
    "cycle": lambda _: Cycle(),
    "deque": deque_of(float),
    "deque of arrays": deque_of(np.float32),
    "deque of records": deque_of(lambda reward: Transition(np.zeros(2), reward)),
    "deque of slotted": deque_of(Slotted),
    "deque of pairs": deque_of(lambda reward: Pair(np.zeros(2), reward)),
    "heap": heap,
    "set": container(set, lambda held, size: held.add(size)),
    "dict": container(dict, lambda held, size: held.update({size: 1})),
    "ordered": container(collections.OrderedDict, lambda held, size: held.update({size: 1})),
    "counter": container(collections.Counter, lambda held, size: held.update([size])),
    "default": container(lambda: collections.defaultdict(list), lambda held, size: held[size].append(size)),
    "long list": container(lambda: list(range(500)), lambda held, size: held.append(size)),
    "adversary": adversary,
    "cell": counter,
    "metric": metric,
    "environments": environments,
    "tensor": tensor_by_hand,
}
