"""Objects that a loop's body changes in place and nobody has named: environments, replay buffers, metrics, averages of one's own.

A resumed loop begins with what the script made before it. So what the body can reach is looked at before the loop, and now and
then at boundaries, as often as costs little; whatever has changed is kept from then on by its place (`envs.envs[0].state`), and
put back there. What can't be kept is said, once.
"""

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, Final

from training.progress import say
from training.state.cadence import again_in_s
from training.state.loop_look import Look, Place, Seen, changed, covering, has_no_state, is_iterator
from training.state.loop_roots import Root, Roots, is_own
from training.state.object_state import (  # fmt: skip
    MISSING,
    Putting,
    Taking,
    Unkept,
    attributes,
    is_module,
    is_tensor,
    name_of,
    set_attribute,
)
from training.state.plain import is_plain

KEPT: Final = "\0in place "
"""What the keys of kept places begin with, among a loop's variables."""
_FIRST: Final = 3
_SHARE: Final = 0.004
"""Of the time, that looking may take at most; and copying at each boundary."""
_QUICK_S: Final = 0.0004
"""A copy that takes less is none too much, however quick the loop is."""
_HANDED_ON: Final = ("optimizer", "base_optimizer", "scheduler", "module", "_orig_mod")


class LoopObjects:
    """Those of one loop. `begin`, then `now` at every boundary."""

    def __init__(self, tracked: Iterable[Any], weights: frozenset[int]) -> None:
        """`tracked` objects are kept anyway, and tensors that lie where their `weights` do."""
        self._alive = [*tracked]
        self._tracked, self._weights = {id(each) for each in _with_parts(self._alive)}, weights
        self._roots: dict[str, Root] = {}
        self._module = ""
        self._before = Seen()
        self._hot: list[Place] = []
        self._looks, self._due_at, self._came_at = 0, 0.0, 0.0
        self._costs_s = deque[float](maxlen=5)
        self._told: set[str] = set()
        self._unkept: set[Place] = set()
        self.is_late = False
        """Whether what has changed is too much to be copied at every boundary."""

    @property
    def is_any(self) -> bool:
        """Whether there is something to be looked at."""
        return bool(self._roots)

    @property
    def late(self) -> str | None:
        """What is only read when it is saved, and so by the loop's thread at the end of a body."""
        return self._hot[0][0] if self.is_late and self._hot else None

    def begin(
        self,
        frame: FrameType,
        names: Iterable[str],
        written: Iterable[str],
        known: dict[str, Any],
        kept: Mapping[str, Any],
    ) -> None:
        """The loop in `frame` asks for its first round, and reads `names`: note what is there, and put back what was `kept`."""
        self._roots = Roots(frame, known, without=frozenset(written)).reach(names)
        self._module = str(frame.f_globals.get("__name__", ""))
        self._before = Look(self._is_left).over((label, root.get(known)) for label, root in self._roots.items())
        for key, value in kept.items():
            if key.startswith(KEPT):
                label, *steps = value[0]
                self._put_back((label, *((kind, step) for kind, step in steps)), value[1], value[2], known)

    def now(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """What has changed in place since the loop began, as plain values by place."""
        began = time.monotonic()
        since_s, self._came_at = began - self._came_at, began
        self._looks += 1
        if self._looks == 1 and not self._hot:  # here the loop begins
            return {}
        cost = time.thread_time()  # a busy machine is none of its costs
        if self._looks <= _FIRST or began >= self._due_at:
            before = set(self._hot)
            self._note(known, self._roots)
            if self.is_late and before != set(self._hot):
                self.taken(known)  # to say what can't be kept
            self._due_at = time.monotonic() + again_in_s(time.thread_time() - cost, share=_SHARE)
        if self.is_late:
            return {}
        if self._hot:  # what else changes is most likely near it
            cost = time.thread_time()
            self._note(known, {place[0] for place in self._hot})
        found = self.taken(known)
        self._costs_s.append(time.thread_time() - cost)
        self._judge(since_s)
        return found

    def at_boundary(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """The same where it is `late`, for who saves now."""
        self._note(known, self._roots)
        return self.taken(known)

    def _note(self, known: Mapping[str, Any], labels: Iterable[str]) -> None:
        now = Look(self._is_left).over(
            (label, self._roots[label].get(known)) for label in labels if label in self._roots
        )
        self._hot = covering(
            [*self._hot, *(place for place in changed(self._before, now) if place not in self._unkept)]
        )

    def taken(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """What has changed, read now."""
        found: dict[str, Any] = {}
        for place in list(self._hot):
            shown = shown_as(place)
            try:
                value = self._at(place, known)
                if value is MISSING:
                    continue
                tree = Taking(is_left=self._is_left, is_known=self._is_known).take(value, shown)
                is_same = self._before.ids.get(place) == id(value)
                found[KEPT + shown] = [place[0], *(list(step) for step in place[1:])], is_same, tree
            except Unkept as refused:
                self.say_unkept(place, refused.path, refused.why, is_iterator(value))
            except Exception as error:  # noqa: BLE001  # objects of anybody's may raise anything, and end no run by it
                self.say_unkept(place, shown, f"{type(error).__name__}: {error}")
        return found

    def _judge(self, since_s: float) -> None:
        """Whether what is copied at each boundary costs too much."""
        is_full = len(self._costs_s) == self._costs_s.maxlen
        if self._hot and is_full and min(self._costs_s) > max(_QUICK_S, _SHARE * since_s):
            self.is_late = True
            names = ", ".join(dict.fromkeys(place[0] for place in self._hot))
            say(
                f"{names}: changed in place, and too much to be copied at every step. It is saved at the end of a step's body, not "
                "amid it, so keep a step shorter than the notice of a stop"
            )

    def say_unkept(self, place: Place, where: str, why: str, is_iterated: bool = False) -> None:
        """Say, once for each name, that what changes at a place is in no checkpoint."""
        self._unkept.add(place)
        if place in self._hot:
            self._hot.remove(place)
        name = place[0].rpartition(".")[2]
        if name not in self._told:
            self._told.add(name)
            remedy = (
                "Give what it goes over to run.batches(), or have it follow the step's number"
                if is_iterated
                else f'Name it, session(..., extra={{"{name}": {name}}}), with a state_dict() and load_state_dict(), or make it in the body'
            )
            say(
                f"{where} changes in place and can't be kept ({why[:200]}): a resumed run begins with a new one, and would differ. "
                f"{remedy}"
            )

    def _at(self, place: Place, known: Mapping[str, Any]) -> Any:
        root = self._roots.get(place[0])
        value = MISSING if root is None else root.get(known)
        for kind, step in place[1:]:
            if value is MISSING:
                return MISSING
            value = dict(attributes(value)).get(step, MISSING) if kind == "." else _item(value, step)
        return value

    def _put_back(self, place: Place, is_same: bool, tree: Any, known: dict[str, Any]) -> None:
        try:
            own = self._at(place, known)
            found = Putting(self._class_of).put(tree, own, is_renewed=not is_same)
            if found is not own:
                self._replace(place, found, known)
        except Exception as error:  # noqa: BLE001  # as in `taken`
            say(
                f"{shown_as(place)} could not be put back as it was ({type(error).__name__}: {error}): this run goes on with what "
                "the script has made, and may differ"
            )
        else:
            self._hot.append(place)

    def _replace(self, place: Place, found: Any, known: dict[str, Any]) -> None:
        if len(place) == 1:
            self._roots[place[0]].set(known, found)
            return
        holder, (kind, step) = self._at(place[:-1], known), place[-1]
        if kind == ".":
            set_attribute(holder, step, found)
        else:
            holder[step] = found

    def _is_left(self, value: Any) -> bool:
        """Whether it is kept anyway, or has no state of the loop's own."""
        if id(value) in self._tracked or has_no_state(value):
            return True
        return is_tensor(value) and is_plain(value) and value.data_ptr() in self._weights

    def _is_known(self, kind: type) -> bool:
        return self._class_of(name_of(kind)) is kind

    def _class_of(self, name: str) -> type | None:
        """A class that was seen before the loop, or of a module of the script."""
        if (seen := self._before.kinds.get(name)) is not None:
            return seen
        module, _, path = name.partition(":")
        found: Any = sys.modules.get(module)
        if found is None or not (module == self._module or is_own(found.__dict__)):
            return None
        for step in path.split("."):
            found = getattr(found, "__dict__", {}).get(step)
        return found if isinstance(found, type) else None


def shown_as(place: Place) -> str:
    """As a script would write it."""
    return str(place[0]) + "".join(f".{step}" if kind == "." else f"[{step!r}]" for kind, step in place[1:])


def _item(value: Any, step: Any) -> Any:
    try:
        return value[step]
    except (LookupError, TypeError):
        return MISSING


def _with_parts(tracked: Iterable[Any]) -> Iterator[Any]:
    """What is tracked, and what that only hands on."""
    for value in tracked:
        yield value
        yield from (part for name in _HANDED_ON if (part := getattr(value, "__dict__", {}).get(name)) is not None)
        if is_module(value):
            yield from value.modules()
            yield from value.parameters()
            yield from value.buffers()
