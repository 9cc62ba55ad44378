"""What a run tracks: by name, every object whose state a checkpoint brings back, and how each is read.

Between two optimizer steps weights and optimizer moments don't change, so they are read where they lie when a save wants
them (`live`). What changes in a forward pass or in the script's own lines, buffers, hyperparameters, scheduler, scaler, is
copied at the step boundary (`copied`): kilobytes. A weight that was changed outside of an optimizer step all the same is
noticed by torch's version counters and named. Knows nothing of files, threads or the fabric.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Final, Protocol

from fabric.errors import Conflict, InvalidRequest
from training.state.cadence import again_in_s
from training.state.generators import access_to
from training.state.module_state import ModuleState
from training.state.optimizer_state import OptimizerState
from training.state.plain import (  # fmt: skip
    Taken,
    first_line,
    holds_parts,
    like,
    placed,
    plain,
    restored,
    shared,
)
from training.state.unreadable import refuse_flat, refuse_scattered

_SHARE: Final = 0.0005
"""Of the time, that looking for other layers may take."""


class Tracked(Protocol):
    """One object of the run."""

    def copied(self) -> Any:
        """What must be copied at the boundary, as plain values that later steps don't change."""

    def live(self, copied: Any, *, tensor: Taken) -> Any:
        """The whole state at the boundary where `copied` was taken; only while nothing may change it."""

    def load(self, state: Any) -> None:
        """Bring the state back."""

    def versions(self) -> list[int]:
        """Counters that move when what is read live is changed in place."""

    def weights(self) -> dict[int, str]:
        """What is trained, by where it lies in memory."""

    def is_sharded(self) -> bool:
        """Whether other ranks hold parts of it."""


class Registry:
    """The tracked objects of a run, in the order they were named."""

    def __init__(self) -> None:
        self._tracked: dict[str, Tracked] = {}
        self._look_due_at = 0.0
        self.objects: list[Any] = []
        """What the script has named."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._tracked)

    def track(self, name: str, value: Any) -> None:
        """Take `value` into every checkpoint from now on.

        Args:
            name: in the checkpoint; two objects can't share one.
            value: a module, an optimizer, anything with `state_dict` and `load_state_dict`, a generator of random
                numbers (torch, numpy, Python), or a dict of plain values, which is read and updated in place.

        Raises:
            InvalidRequest: `untrackable_state`: the object says nothing of its state, or says what can't be kept.
            Conflict: `name_taken`.
        """
        if name in self._tracked:
            raise Conflict(
                f"this run tracks something called {name!r} already: name this one differently", code="name_taken"
            )
        tracked = _tracked(name, value, self._named)
        tracked.copied()  # what can't be kept is named now, not at the first eviction
        self._tracked[name] = tracked
        self.objects.append(value)

    def modules(self) -> list[Any]:
        """The modules among what is tracked."""
        return list(self.named_modules().values())

    def named_modules(self) -> dict[str, Any]:
        """The same, by name."""
        return {name: tracked.module for name, tracked in self._tracked.items() if isinstance(tracked, ModuleState)}

    def _named(self) -> dict[str, Any]:
        """All weights by name."""
        modules = ((own, tracked) for own, tracked in self._tracked.items() if isinstance(tracked, ModuleState))
        return {f"{own}.{key}": weight for own, module in modules for key, weight in module.weights_now()}

    def frozen(self) -> list[str]:
        """The weights that nothing trains."""
        return [key for module in self._modules() for key in module.frozen()]

    def frozen_versions(self) -> dict[str, int]:
        """The same, tied ones by each of their names, with torch's counters of changes in place."""
        return {
            f"{own}.{key}": weight._version  # noqa: SLF001  # the one counter torch has
            for own, module in self.named_modules().items()
            for key, weight in module.named_parameters(remove_duplicate=False)
            if not weight.requires_grad
        }

    def freeze(self, frozen: Iterable[str]) -> None:
        """Train all weights but these: a script that sets weights free as it goes does not do it again."""
        frozen = set(frozen)
        for name, weight in self._named().items():
            if weight.is_leaf and weight.requires_grad == (name in frozen):
                weight.requires_grad_(name not in frozen)

    def copied(self) -> dict[str, Any]:
        """The part of every state that is copied at a boundary."""
        return {name: tracked.copied() for name, tracked in self._tracked.items()}

    def look(self, *, at_once: bool = False) -> None:
        """For the training thread, at a boundary: take in other layers that modules have now, where it is time to look."""
        began = time.monotonic()
        if at_once or began >= self._look_due_at:
            for tracked in self._modules():
                tracked.look()
            self._look_due_at = began + again_in_s(time.monotonic() - began, share=_SHARE)

    def rearranged(self) -> str | None:
        """The name of a module that has other layers than were taken in; None = none has."""
        return next(
            (name for name, one in self._tracked.items() if isinstance(one, ModuleState) and not one.has_same_layers()),
            None,
        )

    def _modules(self) -> list[ModuleState]:
        return [tracked for tracked in self._tracked.values() if isinstance(tracked, ModuleState)]

    def versions(self) -> dict[str, list[int]]:
        """The version counters of everything that is read live."""
        return {name: tracked.versions() for name, tracked in self._tracked.items()}

    def changed_since(self, versions: Mapping[str, list[int]]) -> str | None:
        """The name of an object that was changed outside of its optimizer's step since; None = none was."""
        now = self.versions()
        return next((name for name, counted in versions.items() if now.get(name) != counted), None)

    def whole(self, copied: Mapping[str, Any], *, tensor: Taken = shared) -> dict[str, Any]:
        """All states at the boundary of `copied`; `tensor` says how what lies on a device or may change is taken."""
        return {name: tracked.live(copied.get(name), tensor=tensor) for name, tracked in self._tracked.items()}

    def owned(self, copied: Mapping[str, Any]) -> dict[str, Any]:
        """Of what is copied at a boundary, what a rank may have of its own: all but what optimizers have."""
        owned = {name: part for name, part in copied.items() if not isinstance(self._tracked[name], OptimizerState)}
        modules = self.named_modules().keys() & owned.keys()
        return owned | {
            name: plain(owned[name], name) for name in modules
        }  # each by itself, as who pickles it needs them

    def disowned(self, objects: dict[str, Any], owned: Mapping[str, Any]) -> dict[str, Any]:
        """The states of a checkpoint with what a rank has of its own."""
        mine = {name: part for name, part in owned.items() if name in objects and name in self._tracked}
        is_whole = {name: not isinstance(self._tracked[name], ModuleState) for name in mine}
        return objects | {name: part if is_whole[name] else objects[name] | part for name, part in mine.items()}

    @property
    def is_sharded(self) -> bool:
        """Whether this rank holds only a part of something tracked."""
        return any(tracked.is_sharded() for tracked in self._tracked.values())

    def counterpart(self, states: Mapping[str, Any]) -> Callable[[tuple[Any, ...]], Any]:
        """For a path in the states of a checkpoint, the tensor that takes what lies there, or is shaped as it is."""
        from training.state.sharded_state import tensors_of  # noqa: PLC0415  # needs torch

        now = tensors_of(self.whole(self.copied()))

        def found(path: tuple[Any, ...]) -> Any:
            tracked = self._tracked.get(path[0]) if path else None
            if path not in now and isinstance(tracked, OptimizerState):
                return tracked.weight_of(path[1:], states[path[0]])
            return now.get(path)

        return found

    def weights(self) -> dict[int, str]:
        """The weights' names by where they lie in memory."""
        return {address: name for tracked in self._tracked.values() for address, name in tracked.weights().items()}

    def digests(self) -> dict[str, Any]:
        """By module, what changes when a weight does, however it was changed."""
        return {name: tracked.digest() for name, tracked in self._tracked.items() if isinstance(tracked, ModuleState)}

    def untrained(self, optimizers: Iterable[Any]) -> str | None:
        """A module that has weights to be trained while no optimizer is tracked; None = there is none."""
        if any(True for _ in optimizers):
            return None
        modules = self.named_modules().items()
        return next((name for name, module in modules if any(own.requires_grad for own in module.parameters())), None)

    def not_finite(self) -> dict[str, int]:
        """How many values of each weight are not finite; those without any are left out."""
        return {name: count for module in self._modules() for name, count in module.not_finite().items()}

    def is_frozen(self, name: str) -> bool:
        """Whether nothing trains the weight of that name."""
        return name in self.frozen()

    def load(self, states: Mapping[str, Any]) -> None:
        """Bring all tracked objects back to the states of a checkpoint.

        Raises:
            Conflict: `checkpoint_of_another_run`: it holds other names, or other shapes.
        """
        states = {name: state for name, state in states.items() if name in self._tracked or not _is_ours(name)}
        missing = sorted(name for name in set(self._tracked) - set(states) if not _is_ours(name))
        unknown = sorted(set(states) - set(self._tracked))
        if missing or unknown:
            raise Conflict(
                f"the checkpoint holds {', '.join(sorted(states)) or 'nothing'}, this run tracks "
                f"{', '.join(sorted(self._tracked)) or 'nothing'}: track the same objects, or begin in another directory",
                code="checkpoint_of_another_run",
                missing=", ".join(missing),
                unknown=", ".join(unknown),
            )
        for name, state in states.items():
            try:
                self._tracked[name].load(state)
            except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
                raise Conflict(
                    f"the checkpoint is of another {name}: {first_line(error)}. Build it as it was when it was saved, or "
                    "begin in another directory",
                    code="checkpoint_of_another_run",
                    name=name,
                ) from error


def _tracked(name: str, value: Any, named: Callable[[], dict[str, Any]]) -> Tracked:  # a table
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.nn.Module):
        refuse_flat(name, value.parameters())
        return ModuleState(name, value)
    if (access := access_to(value)) is not None:
        return _Generator(name, *access)
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        groups = getattr(value, "param_groups", None)
        if _is_ours(name):
            return _Replaced(name, value)
        if not isinstance(groups, list) or not hasattr(value, "state"):
            return _Stateful(name, value)
        refuse_flat(name, (weight for group in groups for weight in group["params"]))
        refuse_scattered(name, value)
        return OptimizerState(name, value, named)
    if isinstance(value, MutableMapping):
        return _Values(name, value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise InvalidRequest(
        f"{name} is a {kind}, which has no state_dict() and load_state_dict(): give it both, pass a dict of plain values, "
        "or leave it out if it never changes",
        code="untrackable_state",
        path=name,
        kind=kind,
    )


class _Stateful:
    """A scheduler, a scaler, a metric: copied whole."""

    def __init__(self, name: str, value: Any) -> None:
        self._name, self._value = name, value

    def copied(self) -> Any:
        return plain(self._value.state_dict(), self._name)

    def live(self, copied: Any, *, tensor: Taken) -> Any:  # noqa: ARG002  # nothing of it is read late
        return copied

    def load(self, state: Any) -> None:
        self._value.load_state_dict(restored(state))

    def versions(self) -> list[int]:
        return []

    def weights(self) -> dict[int, str]:
        return {}

    def is_sharded(self) -> bool:
        return holds_parts(self.copied())


class _Replaced(_Stateful):
    """Something of our own whose tensors are replaced and never changed, so that they need not be copied."""

    def copied(self) -> Any:
        return plain(self._value.state_dict(), self._name, tensor=shared)


class _Generator(_Stateful):
    """A generator of random numbers that isn't the process's own."""

    def __init__(self, name: str, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        super().__init__(name, None)
        self._read, self._write = read, write

    def copied(self) -> Any:
        return plain(self._read(), self._name)

    def load(self, state: Any) -> None:
        self._write(restored(state))


class _Values(_Stateful):
    """A dict of the script's own: best loss so far, counters."""

    def copied(self) -> Any:
        return plain(self._value, self._name, tensor=placed)

    def load(self, state: Any) -> None:
        found = {key: like(item, self._value.get(key), state[key]) for key, item in restored(state).items()}
        self._value.clear()
        self._value.update(found)


def _is_ours(name: str) -> bool:
    """Whether it is something that the session tracks by itself, and only where it has a use for it."""
    return name.startswith("fabric.")


def named(kind: str, given: Any, *, many: bool = True) -> dict[str, Any]:
    """One object as `kind`, several as `kind.name`."""
    if given is None:
        return {}
    if many and isinstance(given, Mapping) and not hasattr(given, "state_dict"):
        return {f"{kind}.{name}": value for name, value in given.items()}
    return {kind: given}
