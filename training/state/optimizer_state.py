"""The state of an optimizer in a checkpoint, and back: also groups that were added later, and moments in more bits than weights.

Its groups are kept with the names of their weights, so that a group that a script added as it went can be added again.
"""

from collections.abc import Callable
from typing import Any, Final

from training.state.plain import Taken, is_sharded, plain, restored

_NAMES: Final = "fabric.names"
_SIMPLE: Final = frozenset({bool, int, float, str, type(None)})


class OptimizerState:
    """Moments live, hyperparameters copied: a script may set the learning rate in any line."""

    def __init__(self, name: str, optimizer: Any, named: Callable[[], dict[str, Any]]) -> None:
        self._name, self._optimizer, self._named = name, optimizer, named

    def copied(self) -> Any:
        return [self._kept(group, at) for at, group in enumerate(self._optimizer.param_groups)]

    def _kept(self, group: dict[str, Any], at: int) -> dict[str, Any]:
        """The hyperparameters of one group."""
        kept = dict(group)
        kept.pop("params", None)
        if _SIMPLE.issuperset(map(type, kept.values())):
            return kept
        path = f"{self._name}.param_groups[{at}]"
        return {key: value if type(value) in _SIMPLE else plain(value, f"{path}.{key}") for key, value in kept.items()}

    def live(self, copied: Any, *, tensor: Taken) -> Any:
        whole, names = self._optimizer.state_dict(), self._names()
        groups = [  # one that was added since the boundary is no part of it
            {**plain(group, f"{self._name}.param_groups"), **kept, _NAMES: self._names_of(at, names)}
            for at, (group, kept) in enumerate(zip(whole["param_groups"], copied, strict=False))
        ]
        rest = {key: part for key, part in whole.items() if key != "param_groups"}
        if len(groups) < len(whole["param_groups"]) and isinstance(rest.get("state"), dict):
            known = {number for group in groups for number in group["params"]}
            rest["state"] = {key: part for key, part in rest["state"].items() if key in known or type(key) is not int}
        return {**plain(rest, self._name, tensor=tensor), "param_groups": groups}

    def load(self, state: Any) -> None:
        state = restored(state)
        groups = [
            ({key: part for key, part in group.items() if key != _NAMES}, group.get(_NAMES))
            for group in state["param_groups"]
        ]
        for group, names in groups[len(self._optimizer.param_groups) :]:
            self._add(group, names)
        state["param_groups"] = [group for group, _ in groups]
        self._optimizer.load_state_dict(state)
        self._put_back_types(state)

    def _names_of(self, at: int, names: dict[int, str]) -> list[str] | None:
        """What the weights of a group are called; None if some are of no tracked module."""
        found = [names.get(id(weight)) for weight in self._optimizer.param_groups[at]["params"]]
        return None if None in found else [str(name) for name in found]

    def _names(self) -> dict[int, str]:
        return {id(weight): name for name, weight in self._named().items()}

    def _add(self, group: dict[str, Any], names: list[str] | None) -> None:
        """A group that was added while it trained."""
        known = self._named()
        if names is None or not set(names) <= known.keys():
            raise ValueError("it has a group of weights that were added later and are of no tracked module")
        self._optimizer.add_param_group({**group, "params": [known[name] for name in names]})

    def _put_back_types(self, state: dict[str, Any]) -> None:
        """Torch loads moments in the type of their weights, which has fewer bits than some are kept in."""
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        for number, weight in zip(numbers, weights, strict=False):
            kept, now = state.get("state", {}).get(number), self._optimizer.state.get(weight)
            for key in kept if isinstance(kept, dict) and isinstance(now, dict) else ():
                was, found = kept[key], now.get(key)
                if hasattr(was, "dtype") and hasattr(found, "dtype") and was.dtype != found.dtype:
                    now[key] = was.to(found.device)

    def weight_of(self, path: tuple[Any, ...], state: Any) -> Any:
        """The weight that a moment of a checkpoint's state belongs to; None = it belongs to none."""
        match path:
            case ("state", int(number), *_):
                numbers = [known for group in state["param_groups"] for known in group["params"]]
                names = [
                    name
                    for group in state["param_groups"]
                    for name in group.get(_NAMES) or [None] * len(group["params"])
                ]
                weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
                at = numbers.index(number) if number in numbers else len(numbers)
                if at < len(weights):
                    return weights[at].detach()
                return self._named().get(names[at]) if at < len(names) else None
        return None

    def is_sharded(self) -> bool:
        return any(is_sharded(weight) for group in self._optimizer.param_groups for weight in group["params"])

    def versions(self) -> list[int]:
        return []

    def weights(self) -> dict[int, str]:
        return {}
