"""Virtual ranks: a step is always the same V micro-batches, whoever computes them.

The samples of a micro-batch, and every random number drawn while it is computed, belong to (step, virtual rank) and to
nothing else: not to the worker, the size of the gang or what ran before. A gang of any size takes contiguous blocks of
virtual ranks, even or uneven, and sees every sample exactly once. With gradients folded in a fixed tree (`training.loop.fold`)
the weights are then the same bits for any sequence of gangs, within one kind of device. Knows torch's, numpy's and
Python's random numbers; does not know processes, networks or checkpoints. (Ideas: EasyScale's virtual workers, SC'23;
MosaicML's canonical nodes.)
"""

import hashlib
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch

from fabric.errors import InvalidRequest
from training.loop.fold import Node, cover

PER_WORKER: Final = 8
"""Micro-batches a worker should have on average, so that uneven speeds can be matched to about 3 %."""
_BETWEEN: Final = 2**32 - 1
"""The virtual rank that draws what is drawn outside of micro-batches."""


@dataclass(frozen=True, slots=True)
class Micro:
    """One micro-batch: the samples [start, stop) of the run's order, as computed by this virtual rank in this step."""

    step: int
    vrank: int
    start: int
    stop: int

    @property
    def samples(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class VirtualRanks:
    """V micro-batches a step. All of it is part of a checkpoint: another V or seed is another run."""

    count: int
    global_batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.global_batch:
            raise InvalidRequest(
                f"{self.count} virtual ranks for a global batch of {self.global_batch}: each needs at least one sample, "
                f"so use between 1 and {self.global_batch}",
                code="virtual_ranks_invalid",
                virtual_ranks=self.count,
                global_batch=self.global_batch,
            )

    def micro(self, step: int, vrank: int) -> Micro:
        """Which samples it is; sizes differ by at most one where V does not divide the batch."""
        first = step * self.global_batch
        begin, end = (first + self.global_batch * edge // self.count for edge in (vrank, vrank + 1))
        return Micro(step, vrank, begin, end)

    def weight(self, micro: Micro) -> float:
        """What its mean loss counts for in the batch's: Σ = 1. Never a mean of means over unequal parts."""
        return micro.samples / self.global_batch

    def seed_of(self, step: int, vrank: int) -> int:
        """63 bits that no other (seed, step, vrank) has."""
        told = f"{self.seed}/{step}/{vrank}".encode()
        return int.from_bytes(hashlib.sha256(told).digest()[:8], "big") >> 1

    def enter(self, step: int, vrank: int) -> None:
        """From now on random numbers are those of this micro-batch."""
        reseed(self.seed_of(step, vrank))

    def leave(self, step: int) -> None:
        """From now on random numbers are those between this step and the next: the same on all workers."""
        reseed(self.seed_of(step, _BETWEEN))


def reseed(seed: int) -> None:
    """Seed torch (all devices), Python, and numpy where it is in use."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed([seed >> 32, seed & 0xFFFFFFFF])


def fitting_count(world_max: int, global_batch: int) -> int:
    """A good V for gangs of up to `world_max`: the smallest power of two ≥ 8 · world_max that divides the batch.

    Where none divides it, the largest power of two that does and still gives everybody something, or the batch itself.
    """
    wanted = 1 << (PER_WORKER * world_max - 1).bit_length()
    dividing = [1 << power for power in range(global_batch.bit_length()) if global_batch % (1 << power) == 0]
    fit = [count for count in dividing if world_max <= count <= wanted]
    return max(fit) if fit else min(global_batch, wanted)


@dataclass(frozen=True, slots=True)
class Plan:
    """Who computes which virtual ranks: contiguous blocks in order of rank."""

    shares: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(self.shares, default=-1) < 0 or not any(self.shares):
            raise InvalidRequest(f"shares {self.shares}: use at least 0 for each and 1 in all", code="shares_invalid")

    @classmethod
    def even(cls, count: int, world: int) -> "Plan":
        """As even as it goes, rank 0 never without; whole subtrees where `world` and `count` are powers of two."""
        edges = [-(-count * rank // world) for rank in range(world + 1)]
        return cls(tuple(stop - start for start, stop in pairwise(edges)))

    @property
    def count(self) -> int:
        return sum(self.shares)

    @property
    def world(self) -> int:
        return len(self.shares)

    def block(self, rank: int) -> range:
        """The virtual ranks that this worker computes."""
        start = sum(self.shares[:rank])
        return range(start, start + self.shares[rank])

    def nodes(self, rank: int) -> Sequence[Node]:
        """The subtrees this worker folds its block into, and sends."""
        block = self.block(rank)
        return cover(block.start, block.stop, self.count)
