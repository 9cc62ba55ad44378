"""The state of a module: weights are read where they lie when a save wants them, buffers are copied at every boundary.

It is made of the layers that it had when it was taken in. That is looked at again now and then, as walking through them all costs more
than copying what they hold; whoever saves asks whether they are still the same.
"""

from collections.abc import Hashable
from operator import attrgetter, is_
from typing import Any, Final

from training.state.buffers import Buffers
from training.state.digests import digests
from training.state.plain import Taken, held, is_plain, is_sharded, may_diverge, not_finite, plain

_VERSION: Final = attrgetter("_version")
"""The one counter of changes that torch has."""
_IS_TRAINED: Final = attrgetter("requires_grad")


class ModuleState:
    """Weights live, persistent buffers copied. A module with an `extra_state` of its own has that copied too."""

    def __init__(self, name: str, module: Any) -> None:
        self._name, self.module = name, module
        self._take_in()

    def _take_in(self) -> None:
        """Note what it is made of."""
        module = self.module
        self._layers = list(module.modules())
        for part in self._layers:
            if hasattr(part, "set_requires_gradient_sync") and hasattr(part, "reshard"):
                part.reshard()  # FSDP2 leaves weights gathered after a forward pass, and these are not what is trained
        self._buffers = Buffers(module)
        self._extra = [key for key in module.state_dict() if key.endswith("_extra_state")]
        self.named = list(module.named_parameters())
        self._weights = [weight for _, weight in self.named]
        self._are_trained, self._frozen = list[bool](), list[str]()
        self._own = self._of_parts()

    def _of_parts(self) -> dict[str, Any]:
        """What to read of a sharded module: its weights are others while it computes, so those of now are noted."""
        if not any(is_sharded(weight) for weight in self._weights):
            return {}
        return dict(self.module.state_dict(keep_vars=True))

    def is_sharded(self) -> bool:
        return bool(self._own)

    def look(self) -> None:
        """Take in what a script has put in the place of some of its layers."""
        if not self.has_same_layers():
            self._take_in()

    def has_same_layers(self) -> bool:
        """Whether it is made of what was taken in."""
        now = list(self.module.modules())
        return len(now) == len(self._layers) and all(map(is_, now, self._layers))

    def frozen(self) -> list[str]:
        """The weights that aren't trained now, by the name of the module and their own."""
        are_trained = list(map(_IS_TRAINED, self._weights))
        if are_trained != self._are_trained:  # names of thousands are not made at each boundary
            names = (f"{self._name}.{key}" for key, _ in self.named)
            self._are_trained = are_trained
            self._frozen = [name for name, is_trained in zip(names, are_trained, strict=True) if not is_trained]
        return self._frozen

    def weights_now(self) -> list[tuple[str, Any]]:
        """By name; the same objects as long as they are trained."""
        return self.named if self._own else list(self.module.named_parameters())

    def copied(self) -> Any:
        kept = self._buffers.copied()
        if self._extra:
            whole = self.module.state_dict()
            return {**kept, **{key: plain(whole[key], f"{self._name}.{key}") for key in self._extra}}
        return kept

    def live(self, copied: Any, *, tensor: Taken) -> Any:
        states = self._own or self.module.state_dict()
        return {
            key: copied[key] if key in copied else plain(state, f"{self._name}.{key}", tensor=tensor)
            for key, state in states.items()
        }

    def load(self, state: Any) -> None:
        self.module.load_state_dict(state)

    def versions(self) -> list[int]:
        return list(map(_VERSION, self._weights))

    def weights(self) -> dict[int, str]:
        return {
            held(weight).data_ptr(): f"{self._name}.{key}"
            for key, weight in self.weights_now()
            if may_diverge(weight) and is_plain(held(weight))
        }

    def digest(self) -> list[Hashable]:
        return digests(own for weight in self._weights if is_plain(own := held(weight)) and own.numel())

    def not_finite(self) -> dict[str, int]:
        found = {f"{self._name}.{key}": held(weight) for key, weight in self.weights_now() if may_diverge(weight)}
        return {name: count for name, weight in found.items() if is_plain(weight) and (count := not_finite(weight))}
