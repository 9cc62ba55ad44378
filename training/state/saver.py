"""Saves step boundaries: captured by the training thread in microseconds, written by any thread that finds time.

A boundary (`Moment`) is the step's number, the data cursor, the generators' states and copies of what a forward pass
changes. Weights and moments are read when a save wants them, while `training.state.boundary` keeps optimizers away. On CUDA the
copies to the host run on a stream of their own, after an event that was recorded at the boundary, beside what the device
computes next. (That path has had no device to run on in our tests; the CPU path has.)
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from fabric.errors import FabricError, InvalidRequest, JobFailed
from training.progress import say
from training.state import randomness
from training.state.boundary import Boundary
from training.state.cadence import smoothed
from training.state.frozen import Frozen, FrozenWeights, shard_of
from training.state.loop_objects import KEPT
from training.state.loop_variables import OVER
from training.state.model_kind import kind_of
from training.state.moment import Copy, Moment, beside, recorded
from training.state.plain import is_plain, may_diverge, not_finite, plain, restored
from training.state.rank_parts import RankParts
from training.state.registry import Registry
from training.state.vault import Vault, decoded, gathered, planned

_BODY_S: Final = 2.0
"""How long a save for a stop waits for the end of a body amid which a boundary was."""
_RESERVED_S: Final = 1.0
"""How long a boundary at which ranks have told what is their own is kept for the side thread to save."""
_BODY_SHARE: Final = 0.25
"""And at most this share of the time that is left."""


@dataclass(frozen=True, slots=True)
class Save:
    """A boundary that became durable."""

    step: int
    bytes: int
    took_s: float
    """From the wish to durable."""
    blocked_s: float
    """How long no optimizer step could begin."""
    ends: bool = False
    """Whether a peer was lost, and the attempt ends with it."""


class Saver:
    """Captures and keeps the boundaries of one run. `capture` is the training thread's; the rest is anyone's."""

    def __init__(self, registry: Registry, boundary: Boundary, vault: Vault) -> None:
        self._registry, self._boundary, self._vault = registry, boundary, vault
        self._writing = threading.Lock()
        self._memory: memoryview | None = None
        self._frozen = FrozenWeights(registry)
        self._excused: dict[str, int] = {}
        """How many values of a weight are infinite because the script wants them so."""
        self.ranks = RankParts(registry)
        self.moment: Moment | None = None
        self.is_last = False
        """Whether no boundary follows the newest one, as the script has left its loop."""
        self.durable_step: int | None = None
        self._is_over_durable = False
        self.save_s: float | None = None
        self.blocked_s: float | None = None
        self.after_save: Callable[[], None] = lambda: None
        """Called when a boundary has become durable, by the thread that saved it."""
        self.poisoned: Callable[[], bool] = lambda: False
        """Whether a loss since the last save was not finite, for who only knows it late (a device computes ahead)."""

        self.unannounced: Callable[[], str | None] = lambda: None
        """What changes at times that nobody tells: it is saved by the training thread, at boundaries."""
        self.late: Callable[[], dict[str, Any]] = dict
        """Of the loop's variables, those that are only read there."""

        self.learned: Callable[[], dict[str, Any]] = dict
        """What the run has learned of what it runs on: kept beside its state, and no part of it."""
        self.left_out: Callable[[str, Any], None] = lambda _name, _value: None
        """Told of a variable that was captured and can't be kept all the same."""

    @property
    def has_new(self) -> bool:
        """Whether there is a boundary that is not durable."""
        if self.moment is None:
            return False
        return self.moment.step != self.durable_step or (OVER in self.moment.variables and not self._is_over_durable)

    @property
    def newest_step(self) -> int:
        """Of the newest boundary; 0 if there is none."""
        return 0 if self.moment is None else self.moment.step

    @property
    def is_step_half_done(self) -> bool:
        """Whether a newer boundary is on its way."""
        return self._boundary.is_changing

    @property
    def needs_boundary(self) -> bool:
        """Whether only the training thread can save, at a boundary."""
        return self.unannounced() is not None

    @property
    def is_waiting(self) -> bool:
        """Whether a boundary was copied that is still to be written."""
        return False

    @property
    def kept(self) -> str:
        """What there is to resume from, in words."""
        return "nothing was saved before" if self.durable_step is None else f"step {self.durable_step} is kept"

    def await_leave(self, timeout_s: float) -> None:
        """Wait at a boundary until the run leaves, and end the training thread."""
        self._boundary.await_leave(timeout_s)

    def leave(self) -> None:
        """No further step begins."""
        self._boundary.leave()

    @property
    def has_changed(self) -> bool:
        """Whether weights were changed since the last boundary, by whatever."""
        return self.moment is not None and self._registry.changed_since(self.moment.versions) is not None

    def capture(
        self, step: int, cursor: Callable[[], dict[str, Any]] = dict, variables: Callable[[], dict[str, Any]] = dict
    ) -> None:
        """Remember this boundary: `step` steps are complete. Costs nothing where nothing is kept."""
        if not self._vault.is_kept:
            return
        self._registry.look()
        self.moment = Moment(
            step=step,
            cursor=dict(cursor()),
            copied=self._registry.copied(),
            random=randomness.capture(),
            versions=self._registry.versions(),
            frozen=self._registry.frozen(),  # right after: what is touched again costs little, and at first a cache miss each
            variables=variables(),
            device_event=recorded(),
        )

    def load(self) -> dict[str, Any] | None:
        """Bring all tracked objects to the newest state; the rest of it (step, cursor, random) is for the caller."""
        data = self._vault.load()
        if data is None:
            return None
        state = self.ranks.taken(decoded(data))
        if (frozen := state.pop("frozen", None)) is not None:
            self._registry.freeze(frozen)
        self._registry.load(self._vault.joined(state.pop("objects"), self._registry))
        self.durable_step, self._is_over_durable = state["step"], OVER in state.get("variables", {})
        return {key: restored(value) for key, value in state.items()}

    def rehearse(self, *, excuses: Callable[[str], bool]) -> None:
        """All of a save but the writing: what can't be kept is named now, and not at an eviction.

        Weights that hold infinities, as masks do, are noted if `excuses` says so of their name; more of them are divergence.

        Raises:
            InvalidRequest: `untrackable_state` or `state_not_kept`.
            JobFailed: `not_finite`.
        """
        if not self._vault.is_kept:
            return
        self._frozen.note()
        try:
            planned({"objects": self._whole(self._registry.copied())})
            if self.moment is not None:
                self._laid_out(self.moment)
        except FabricError:
            raise
        except Exception as error:
            raise unreadable(error) from error
        self._rehearsed()
        found = self._registry.not_finite()
        self._excused |= {name: count for name, count in found.items() if excuses(name)}
        bad = next((name for name, count in found.items() if count > self._excused.get(name, 0)), None)
        if bad is not None:
            raise self._diverged(self.newest_step, bad)

    def save(self, *, timeout_s: float | None = None, leaving: bool = False, at_boundary: bool = False) -> Save | None:
        """Make the last boundary durable; None if a step was half done for longer than `timeout_s`.

        A snapshot copies the state and lets training go on while it is written; who is `leaving` writes it where it lies,
        and no further step begins. `at_boundary`: this is the training thread, and the boundary is now. A snapshot that has not
        for ever comes again (None) where the other ranks are still to tell what they have of their own.

        Raises:
            JobFailed: `not_finite` or `changed_outside`: this state must not replace the one before.
            FabricError: the vault could not keep it, or a newer attempt of the run has begun.
        """
        began = time.monotonic()
        with self._writing:
            if (before := self._saved_before(leaving=leaving)) is not None:
                return before
            is_snapshot = timeout_s is not None and not (leaving or at_boundary)
            if is_snapshot and not self.ranks.are_told(self.newest_step):
                return None
            with self._boundary.held(timeout_s, provisional_after_s=_patience(timeout_s, leaving=leaving)) as held:
                if not held or self.moment is None:
                    return None
                if leaving and self._boundary.is_provisional:
                    say(_saved_amid(self.moment))
                moment, held_at = self.moment, time.monotonic()
                copy = self._copied(moment, at_boundary=at_boundary)
                if leaving:
                    self._keep(moment, copy)
                    self._boundary.leave()
            blocked_s = time.monotonic() - held_at
            if not leaving:
                self._keep(moment, copy)
            saved = self._became_durable(moment, copy, took_s=time.monotonic() - began, blocked_s=blocked_s)
        self.after_save()
        return saved

    def _saved_before(self, *, leaving: bool) -> "Save | None":  # noqa: ARG002
        """A save that makes this one needless."""
        return None

    def _became_durable(self, moment: Moment, copy: Copy, *, took_s: float, blocked_s: float) -> Save:
        self.durable_step, self._is_over_durable = moment.step, OVER in moment.variables
        self.save_s, self.blocked_s = smoothed(self.save_s, took_s), smoothed(self.blocked_s, blocked_s)
        return Save(step=moment.step, bytes=len(copy.data), took_s=took_s, blocked_s=blocked_s)

    def _whole(self, copied: dict[str, Any]) -> Any:
        """All states at the boundary of `copied`, of what they are made of when they are kept."""
        return self._registry.whole(copied)

    def _rehearsed(self) -> None:
        """What else is to be found out when a save is rehearsed."""

    def _copied(self, moment: Moment, *, at_boundary: bool) -> Copy:
        """The whole state at the moment as bytes on the host: one copy, into memory that is used again."""
        plan, frozen = self._laid_out(self._readable(moment, at_boundary=at_boundary))
        with beside(moment.device_event):
            data = gathered(plan, into=self._memory)
            part, bad = self._frozen_part(frozen)
        if self._memory is None or len(data) > len(self._memory):
            self._memory = data
        return Copy(data, plan, self._registry.weights(), part, bad)

    @property
    def is_rearranged(self) -> bool:
        """Whether a module has other layers than when it was copied last."""
        return self._registry.rearranged() is not None

    def _looked_at(self, moment: Moment) -> Moment:
        """The moment, which is now, with the layers that modules have now."""
        if not self.is_rearranged:
            return moment
        self._registry.look(at_once=True)
        return replace(
            moment, copied=self._registry.copied(), versions=self._registry.versions(), frozen=self._registry.frozen()
        )

    def _readable(self, moment: Moment, *, at_boundary: bool) -> Moment:
        """The moment with what is only read at a boundary, unless it can't be read now."""
        unannounced = None if at_boundary else self.unannounced()
        if (changed := self._registry.changed_since(moment.versions) or unannounced) is not None:
            raise JobFailed(
                f"{changed} changes outside of an optimizer's step, so step {moment.step} can be saved at the end of a body only: "
                "change weights after the optimizer's step and before the loop's body ends",
                code="changed_outside",
                name=changed,
                step=moment.step,
            )
        if at_boundary:
            moment = self._looked_at(moment)
        elif (other := self._registry.rearranged()) is not None:
            raise JobFailed(
                f"{other} has other layers than it had lately, so step {moment.step} can be saved at the end of a body only",
                code="changed_outside",
                name=other,
                step=moment.step,
            )
        late = self.late() if at_boundary else {}
        return replace(moment, variables=moment.variables | late) if late else moment

    def _without_frozen(self, objects: Any) -> tuple[Any, dict[str, Any]]:
        """What is kept in one shard with the rest of the state, and the tensors that have one of their own."""
        return self._frozen.taken_out(objects)

    def _frozen_part(self, frozen: dict[str, Any]) -> tuple[Frozen | None, str | None]:
        """What nothing trains; read now, while the boundary is held, unless it is kept already. And what is not finite in it."""
        part = self._frozen.part(frozen)
        if part is None or self._vault.holds(part.digest):
            return part, None
        whole, names = shard_of(frozen), set(self._registry.weights().values())
        bad = (
            name
            for name, weight in frozen.items()
            if name in names and may_diverge(weight) and is_plain(weight)
            if not_finite(weight) > self._excused.get(name, 0)
        )
        return part._replace(read=lambda: whole), next(bad, None)

    def _laid_out(self, moment: Moment) -> tuple[Any, dict[str, Any]]:
        """The state at the moment as a shard that is still to be copied, without variables that can't be kept, and what is
        frozen of it.
        """
        objects, frozen = self._without_frozen(self._whole(moment.copied))
        state = {
            "step": moment.step,
            "cursor": plain(moment.cursor, "cursor"),
            "random": plain(moment.random, "random"),
            "learned": plain(self.learned(), "learned"),
            "variables": moment.variables,
            "ranks": self.ranks.kept(moment.step),
            "frozen": moment.frozen,
            "models": {name: kind_of(module) for name, module in self._registry.named_modules().items()},
            "objects": objects,
        }
        try:
            return planned(state), frozen
        except Exception:  # noqa: BLE001  # what a script hands on may raise anything; if it was not that, it does again
            kept = {name: value for name, value in moment.variables.items() if self._can_be_kept(name, value)}
            return planned(state | {"variables": kept}), frozen

    def reserve(self) -> None:
        """For the training thread, at a boundary: the snapshot that is due is of this one."""
        self._boundary.reserve(_RESERVED_S)

    def own_part(self) -> dict[str, Any] | None:
        """What this rank has of its own at the boundary where its training thread is."""
        if self.moment is None or not self.ranks.is_needed:
            return None
        self.moment = self._looked_at(self.moment)
        return self.ranks.own(self.moment, late=self.late(), is_kept=self._can_be_kept)

    def _can_be_kept(self, name: str, value: Any) -> bool:
        try:
            planned({name: value})
        except Exception:  # noqa: BLE001  # as above
            self.left_out(name, value)
            return False
        return True

    def _keep(self, moment: Moment, copy: Copy) -> None:
        self._check_finite(moment, copy)
        self._vault.save(copy.data, step=moment.step, frozen=copy.frozen)

    def _check_finite(self, moment: Moment, copy: Copy) -> None:
        bad = "the loss" if self.poisoned() else copy.not_finite(self._excused)
        if bad is not None:
            raise self._diverged(moment.step, bad)

    def _diverged(self, step: int, what: str) -> JobFailed:
        return JobFailed(
            f"at step {step} {what} is not finite, so it isn't saved: {self.kept}",
            code="not_finite",
            step=step,
            kept_step=self.durable_step,
        )


def _patience(timeout_s: float | None, *, leaving: bool) -> float | None:
    """How long to wait for the end of a body amid which a boundary was; None = a snapshot, which has time to come again."""
    if leaving:
        return _BODY_S if timeout_s is None else min(_BODY_S, timeout_s * _BODY_SHARE)
    return 0.0 if timeout_s is None else None


def _saved_amid(moment: Moment) -> str:
    names = sorted({name.removeprefix(KEPT) for name in moment.variables})
    named = f", such as {', '.join(names)}" if names else ""
    return f"step {moment.step} is saved amid its body: what the rest of the body changes{named}, is not part of it"


def unreadable(error: Exception) -> InvalidRequest:
    """What to say of a state that does not let itself be read."""
    return InvalidRequest(
        f"the state of this run can't be read for a checkpoint ({type(error).__name__}: {error}): see what state_dict() of "
        "each tracked object does, or leave the object out",
        code="untrackable_state",
    )
