"""Weights that nothing trains, as a shard of their own: a checkpoint that finds them as they were takes them over from the last.

Whether they are as they were is seen from a digest of all their bytes, as `p.data` is changed without a trace. What changes all
the same, as an average of trained weights does, is kept with what is trained from then on. `taken_out` replaces them in the
states of a run by their names, and `put_back` undoes it. Knows nothing of where a shard is kept.
"""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, Protocol

from fabric.checkpoints.directory import Buffer
from fabric.errors import CheckpointDamaged, Unavailable

_TAG: Final = "\0frozen"
_PARALLEL: Final = 4
_BYTES_MIN: Final = 64 * 1024
"""Less than that is written as quickly as it is taken over."""


class Frozen(NamedTuple):
    """What nothing trains, as a shard of its own."""

    digest: str
    """Of all names and bytes."""
    read: Callable[[], Buffer]
    """The shard.

    Raises:
        Unavailable: `frozen_changed`: it is not what the digest is of any more.
    """


class Trained(Protocol):
    """Who knows what is trained."""

    def frozen_versions(self) -> dict[str, int]:
        """The weights that nothing trains, by name, with counters that move when they are changed in place."""


class FrozenWeights:
    """Those of one run, from its first boundary on."""

    def __init__(self, state: Trained) -> None:
        self._state = state
        self._versions: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._changing: set[str] = set()

    def note(self) -> set[str]:
        """The names of what is frozen now. What changes from here on is not, whatever it says."""
        now = self._state.frozen_versions()
        for name, version in now.items():
            if self._versions.setdefault(name, version) != version:
                self._changing.add(name)
        return now.keys() - self._changing

    def taken_out(self, states: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The states with names in the place of what is frozen, and that, by name."""
        frozen = self.note()
        found = {
            name: value
            for own, state in states.items()
            if isinstance(state, dict)
            for key, value in state.items()
            if (name := f"{own}.{key}") in frozen and hasattr(value, "data_ptr")
        }
        if sum(value.numel() * value.element_size() for value in found.values()) < _BYTES_MIN:
            return dict(states), {}
        left = {
            own: {key: {_TAG: name} if (name := f"{own}.{key}") in found else value for key, value in state.items()}
            if isinstance(state, dict)
            else state
            for own, state in states.items()
        }
        return left, found

    def part(self, tensors: Mapping[str, Any]) -> Frozen | None:
        """The shard of what was taken out; only while nothing may change it. None = there is nothing."""
        if not tensors:
            return None
        digests = _digests(tensors)
        self._changing |= {name for name, digest in digests.items() if self._digests.get(name, digest) != digest}
        self._digests = digests
        said = "\n".join(f"{name} {digest}" for name, digest in digests.items())
        return Frozen(hashlib.sha256(said.encode()).hexdigest(), lambda: _read(tensors, digests))


def put_back(states: Mapping[str, Any], data: Buffer) -> dict[str, Any]:
    """The states with what was taken out of them.

    Raises:
        CheckpointDamaged: it isn't there.
    """
    from training.state import shards  # noqa: PLC0415  # needs torch, which not every job loads

    held = shards.load(data)

    def whole(value: Any) -> Any:
        if not isinstance(value, dict) or _TAG not in value:
            return value
        if value[_TAG] not in held:
            raise CheckpointDamaged(
                f"{value[_TAG]} is not among what was kept of frozen weights", code="shard_unreadable"
            )
        return held[value[_TAG]]

    return {
        own: {key: whole(value) for key, value in state.items()} if isinstance(state, dict) else state
        for own, state in states.items()
    }


def shard_of(tensors: Mapping[str, Any]) -> Buffer:
    """The shard of what was taken out, while nothing may change it."""
    from training.state import shards  # noqa: PLC0415

    return shards.dump(dict(tensors))


def _read(tensors: Mapping[str, Any], digests: Mapping[str, str]) -> Buffer:
    data = shard_of(tensors)
    if _digests(tensors) != digests:
        raise Unavailable(
            "weights that nothing trains were changed while they were written: the next save keeps them",
            code="frozen_changed",
        )
    return data


def _digests(tensors: Mapping[str, Any]) -> dict[str, str]:
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fabric-hash") as pool:
        return dict(zip(tensors, pool.map(_digest, tensors, tensors.values()), strict=True))


def _digest(name: str, tensor: Any) -> str:
    from training.state import shards  # noqa: PLC0415

    whole = memoryview(shards.bytes_of(tensor, name).numpy())
    return f"{type(tensor).__qualname__} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(whole).hexdigest()}"
