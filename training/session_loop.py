"""A loop under way, from its first boundary to its end: what `training.session` drives with each step a script has done.

It knows when a step is complete, what is captured then and who hears of it, and what becomes durable when the loop ends: by
itself, by a break, by an error, or as a peer is lost. It knows nothing of data, of losses, or of what a script calls. All but
the side thread's work happens in the thread that loops.
"""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from fabric import context
from fabric.errors import FabricError, InvalidRequest, JobFailed
from training.gang.peers import Peers
from training.loop.stepping import Finite, device_refusals, is_out_of_memory
from training.loop.trackers import Trackers, folder_of
from training.loop.weight_watch import WeightWatch
from training.progress import Progress, say
from training.state import randomness
from training.state.boundary import Boundary, watch_changes
from training.state.cadence import LOSS_EVERY_S
from training.state.eviction import Watch
from training.state.loop_variables import OVER, LoopVariables
from training.state.registry import Registry
from training.state.stopping import stop_of
from training.state.vault import SessionNumber
from training.timers import Timers

LOSS_EVERY_VARIABLE: Final = "FABRIC_LOSS_EVERY_S"


class Loop:
    """Counts steps, closes their boundaries, and ends with the last one durable."""

    def __init__(
        self,
        job: context.Context,
        registry: Registry,
        optimizers: list[Any],
        peers: Peers,
        *,
        finite: Finite,
        timers: Timers,
        directory: str | os.PathLike[str] | None = None,
        snapshot_every_s: float | None = None,
    ) -> None:
        """Bring all that is tracked to the newest durable state, and rehearse a save."""
        self._job, self._optimizers, self._peers, self._finite, self._timers = job, optimizers, peers, finite, timers
        self._number = SessionNumber(job, directory)
        vault = peers.vault(job, directory, number=self._number.number, state=registry)
        self._stop = peers.stop(stop_of(job, is_kept=vault.is_kept), save_s=lambda: self._saver.save_s)
        self._boundary = Boundary(self._ending)
        self._saver = peers.saver(registry, self._boundary, vault)
        self._saver.poisoned = finite.is_poisoned
        self._saver.learned = peers.learned
        self.watch = Watch(
            self._saver,
            self._stop,
            snapshot_every_s=snapshot_every_s if peers.takes_snapshots else math.inf,
            loss_every_s=float(os.environ.get(LOSS_EVERY_VARIABLE) or LOSS_EVERY_S),
        )
        """The side thread."""
        self._kept, self._undo = self._saver.load() or {}, list[Callable[[], None]]()
        self.done = self.resumed_at = int(self._kept.get("step", 0))
        """Steps that are complete, counted from the very first attempt; and how many were when this one began."""
        self._saver.rehearse(excuses=lambda _name: True)
        self._is_frozen, self._is_rehearsed = registry.is_frozen, False
        self._variables = LoopVariables(registry.weights(), registry.objects, is_needed=vault.is_kept)
        self._weights = WeightWatch(registry, is_needed=vault.is_kept)
        self._weights.changed = registry.untrained(optimizers)
        self._saver.unannounced = lambda: self._weights.changed or self._variables.late
        self._saver.late = self._variables.at_boundary
        self._saver.left_out = self._variables.say_left_out
        beside = job.checkpoints if peers.takes_snapshots else None
        self._trackers = Trackers(folder_of(directory), run=job.job_id or "run", step=self.done, beside=beside)
        self._saver.after_save = self._trackers.keep
        self.progress = Progress(job.report, self._trackers.scalars, timers)
        self._total: int | None = None
        self._cursor_of: Callable[[], dict[str, Any]] = dict
        self._is_open = self._is_over = self._is_complete = False
        self.is_closed_early = False
        """Whether the step's boundary came before its body ended."""
        self._refusals, self._ran_out = device_refusals(), False

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the data were at the boundary that it goes on from."""
        found: dict[str, Any] = self._kept.get("cursor", {})
        return found

    @property
    def kept(self) -> str:
        """What there is to resume from, in words."""
        return self._saver.kept

    @property
    def is_changing(self) -> bool:
        """Whether an optimizer has stepped and the step's boundary is not reached."""
        return self._boundary.is_changing

    @property
    def was_left(self) -> bool:
        """Whether the script had left this loop by itself in an earlier attempt."""
        return OVER in self._kept.get("variables", {})

    def open(self) -> None:
        """There is one loop a session.

        Raises:
            InvalidRequest: `session_used`.
        """
        if self._is_open:
            raise InvalidRequest("this run has had its loop: open another session", code="session_used")
        self._is_open = True

    def begin(
        self, frame: FrameType | None, *, total: int | None, cursor_of: Callable[[], dict[str, Any]] = dict
    ) -> None:
        """The loop in `frame` asks for its first step; `cursor_of` says where the data are at a boundary."""
        self._variables.begin(frame, self._kept.get("variables", {}))
        if "random" in self._kept:
            randomness.restore(self._kept["random"])
        self._total, self._cursor_of = total, cursor_of
        self._undo = [watch_changes(optimizer, self._change) for optimizer in self._optimizers]
        self._saver.capture(self.done, lambda: self.cursor, self._variables.now)
        self._weights.note()
        self._peers.check_resumed(self.done, self._kept.get("learned", {}))
        self._stop.listen()
        self.watch.start()
        self.watch.at_boundary()
        self._peers.begin_step()

    def end_body(self, *, samples: int) -> None:
        """A body has ended: the step is complete, unless its boundary came before, or no optimizer has stepped."""
        if self.is_closed_early:
            self._settle()
        elif self._is_whole:
            self._close(samples=samples)
        else:
            self._count(samples=samples)
        self.is_closed_early = False

    def close_early(self, *, samples: int) -> None:
        """The step is complete amid its body, as its last loss was given."""
        self._close(samples=samples, amid_body=True)
        self.is_closed_early = True

    def boundary(self) -> None:
        """The same where the script says so."""
        if self._optimizers and self._boundary.is_provisional and not self._boundary.is_changing:
            return  # it was complete before
        if self._is_whole:
            self._close(samples=0, amid_body=True)
        elif not self.is_closed_early:
            self._count(samples=0)
        self.is_closed_early = True

    def guarded(self, look: Callable[[], None]) -> None:
        """Look at a loss, or reach the peers; if it fails, what is good is made durable before the run ends."""
        try:
            look()
        except JobFailed:
            self._keep_last()
            self._end()
            raise
        except (RuntimeError, MemoryError) as error:
            self._ran_out = is_out_of_memory(error)
            raise
        except FabricError as lost:
            if not self._peers.is_loss(lost):
                raise
            say(lost.message)
            self._job.leave(f"{lost.code}: {lost.message}")
            self._peers.end()
            self._keep_last(is_lost=self._peers.find_lost())
            raise self._ending() from lost

    def finish(self) -> None:
        """The run is complete: its last boundary becomes durable, and nobody asks it to stop any more."""
        self._is_complete = True
        if self._is_open and not self._is_over:
            self.guarded(self._finite.settle)
            self.guarded(self._conclude)
            self._peers.end()
            if self._saver.has_new and not self._boundary.is_changing:
                with self._timers.within("checkpoint"):
                    saved = self._saver.save(at_boundary=True)
                if saved is not None and saved.ends:  # what the script does after its loop takes all ranks
                    raise self._ending()
        self._end()

    def break_off(self, *, is_error: bool) -> None:
        """The script has left its loop in a body. By `break` that was its last; an error leaves a step half done."""
        if is_error and not self._is_over and self._peers.find_lost():  # what failed in the body was a collective
            self._keep_last(is_lost=True)
            self._end()
            self._stop.end_process()
        self._is_complete = self._variables.is_over = self._is_complete or not is_error
        if self._is_over or (is_error and not self._boundary.is_changing):
            return
        if is_error:
            say(f"step {self.done} was half done when the script failed, and can't be kept; {self._saver.kept}")
            return
        self.done += self._boundary.is_changing and not self._boundary.is_provisional
        self._saver.is_last = True
        with suppress(SystemExit):  # asked to stop as well: if the boundary before is saved by now, that one counts
            self._add_rest()

    def leave(self) -> None:
        """The loop ended, by itself or by an error in its body: a bug costs no step that was done."""
        self._keep_last()
        self._end()

    def give_back(self) -> None:
        """Who ran out of memory tries again with less, and goes on from here. After any other error the next session is another
        one, as the next trial of a search is: with this one's weights it would differ, and nothing would be said.
        """
        if self._number.give_back():
            say(f"out of memory in step {self.done}: the next session of this process goes on here; {self._saver.kept}")

    def _ending(self) -> BaseException:
        self.watch.departed()
        return self._stop.ending()

    @property
    def _is_whole(self) -> bool:
        """Whether it is a boundary here: where no optimizer has stepped, gradients may be half collected."""
        return not self._optimizers or self._boundary.is_changing or self._weights.look() or self._saver.has_changed

    def _change(self) -> None:
        """An optimizer is about to change something, or a body has ended."""
        if not self._boundary.is_changing:
            self._weights.look()
        self._boundary.change()

    def _close(self, *, samples: int, amid_body: bool = False) -> None:
        """The step's boundary. Savers may have it from here on; one `amid_body`, if they can't wait for the body's end."""
        self._settle()
        self._change()
        self.done += 1
        self._saver.capture(self.done, self._cursor_of, self._variables.now)
        if not self._is_rehearsed:  # optimizers make their states in their first step
            self._is_rehearsed = True
            self.guarded(lambda: self._saver.rehearse(excuses=self._is_frozen))
        self._boundary.close(provisional=amid_body)
        if amid_body:
            self._weights.pause()
            self.watch.amid_body()
            self._pass_on(samples)
        else:
            self._weights.note()
            self._go_on(samples)

    def _count(self, *, samples: int) -> None:
        """The script has done a step, and the boundary before it is still the last."""
        self.done += 1
        self._pass_on(samples)

    def _settle(self) -> None:
        """The body amid which a boundary was has ended, or comes to another one."""
        if self._boundary.is_provisional:
            self._add_rest()
            self._go_on(None)

    def _go_on(self, samples: int | None) -> None:
        """From a boundary at which a body has ended: with the others, or away. `samples` of the step, if nobody heard of it."""
        self.guarded(lambda: self._peers.end_step(self.done))
        self.watch.at_boundary()
        if samples is not None:
            self._pass_on(samples)
        self._peers.begin_step()

    def _add_rest(self) -> None:
        """What the body has changed up to here is part of the last boundary."""
        self._boundary.reopen()
        self._saver.capture(self.done, self._cursor_of, self._variables.now)
        self._boundary.close()
        self._weights.note()

    def _pass_on(self, samples: int) -> None:
        self._timers.add("checkpoint", self._boundary.take_waited_s())
        self.progress.stepped(self.done, total=self._total, samples=samples)

    def _conclude(self) -> None:
        """What the ranks still do to the weights together after the last step, as part of it."""
        if (change := self._peers.conclude()) is not None:
            self._boundary.change()
            change()
            self._saver.capture(self.done, self._cursor_of, self._variables.now)
            self._boundary.close()

    def _keep_last(self, *, is_lost: bool = False) -> None:
        """After a failure: the last boundary, if it is whole and good; `is_lost`: of a peer, of whose part there are copies."""
        if self._is_over or not self._is_open or self._boundary.is_leaving:
            return
        if self._saver.has_new and (is_lost or not self._boundary.is_changing):
            try:
                is_other = self._weights.look() or self._saver.has_changed or self._saver.is_rearranged
                is_now = not (is_other or self._variables.late)
                self._saver.save(at_boundary=is_now)
            except FabricError as failed:  # it isn't good, or can't be kept: the one before stays
                say(failed.message)

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            if not self._is_complete and (self._ran_out or device_refusals() > self._refusals):
                self.give_back()
            self._boundary.abandon()
            self.watch.close()
            for undo in self._undo:
                undo()
            self.progress.flush()
            self._trackers.close()
            self._peers.close()
