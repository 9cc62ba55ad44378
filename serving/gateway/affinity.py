"""Which replica answers: the one that has the prompt's beginning in its cache already, unless it has too much to do.

A prompt's *trail* is a chain of hashes over its leading blocks, so that two prompts share as many hashes as they share
leading blocks. The replica that last served the longest part of the trail is taken; for a trail that nobody knows,
rendezvous hashing (Thaler & Ravishankar 1998) of its first block gives every gateway the same order of replicas without
their talking. Either way only replicas within the load bound are looked at (consistent hashing with bounded loads,
Mirrokni et al. 2017). Pure but for its own memory; knows neither HTTP nor who runs the replicas.
"""

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

BLOCK_BYTES: Final = 512
"""About 128 LLM tokens of English: vLLM's cache block on a CPU, eight of them on a GPU."""
BLOCKS_MAX: Final = 32
_LOAD_PERCENT: Final = 125
"""A replica may have this share of the mean load before its neighbours are asked."""
_REMEMBERED_MAX: Final = 65_536

Trail = tuple[int, ...]


def trail_of(prompt: bytes, *, root: bytes) -> Trail:
    """The chain of hashes over a prompt's leading blocks.

    Args:
        prompt: the prompt in a form in which what comes first in the engine comes first.
        root: what separates those whose caches are apart, such as an account's salt.

    Returns:
        One hash for each whole block up to `BLOCKS_MAX`; of a prompt shorter than a block, one for all of it.
    """
    if not prompt:
        return ()
    chain = root
    hashes: list[int] = []
    for start in range(0, max(len(prompt) - BLOCK_BYTES + 1, 1), BLOCK_BYTES):
        if len(hashes) == BLOCKS_MAX:
            break
        chain = blake2b(prompt[start : start + BLOCK_BYTES], digest_size=8, key=chain[:64]).digest()
        hashes.append(int.from_bytes(chain))
    return tuple(hashes)


class Trails:
    """Which replica served which trail last. Bounded: what was not used longest is forgotten."""

    def __init__(self, *, most: int = _REMEMBERED_MAX) -> None:
        self._most = most
        self._replicas: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replicas)

    def remember(self, trail: Trail, replica: str) -> None:
        """The replica has the trail's blocks in its cache now."""
        for mark in trail:
            self._replicas[mark] = replica
            self._replicas.move_to_end(mark)
        while len(self._replicas) > self._most:
            self._replicas.popitem(last=False)

    def choose(self, trail: Trail, loads: Mapping[str, int]) -> str:
        """One of the replicas in `loads` (requests each has in hand), of which there must be one."""
        bound = -(-_LOAD_PERCENT * (sum(loads.values()) + 1) // (100 * len(loads)))
        within = {replica: load for replica, load in loads.items() if load < bound}
        assert within, "the least loaded is below the mean"
        for mark in reversed(trail):
            replica = self._replicas.get(mark)
            if replica in within:
                return replica
        if trail:
            return max(within, key=lambda replica: _draw(trail[0], replica))
        return min(within, key=lambda replica: (within[replica], replica))


def _draw(mark: int, replica: str) -> int:
    return int.from_bytes(blake2b(replica.encode(), digest_size=8, key=mark.to_bytes(8)).digest())
