"""A session: two lines that make a torch loop over steps one that can be evicted at any instant and loses nothing.

    from training import session

    run = session(model=model, opt=opt, sched=sched)  # anything with state_dict and load_state_dict
    for step in run.steps(600):  # begins, or goes on at the step after the last durable one
        loss = loss_of(model, batch_of(step))
        loss.backward()
        opt.step(), sched.step(), opt.zero_grad()
        run.log(loss=loss)

When the fabric wants the job to end, for whatever reason, a side thread saves the last step boundary, wherever the script
is: mid-forward, in an evaluation, waiting for data. The job resumes at that boundary with the same bits: weights, moments,
buffers, schedule, scaler, and the random numbers of Python, numpy and torch. With a dataset the session also knows which
samples were seen:

    with session(model=model, opt=opt, sched=sched) as run:
        for batch in run.batches(dataset, global_batch=256, epochs=3):
            run.step(loss_of(model, batch))

Each sample is seen exactly once an epoch, in any sequence of evictions. `virtual=8` makes a step of eight micro-batches
(`batch` is then one of them), and with it any number of processes can share the work and reach the same weights.

Several sessions one after the other, as for k folds, each have their own state, in the order in which they are opened.

Outside the fabric the same script runs unchanged: it keeps nothing, or what `directory=` or FABRIC_CHECKPOINT_DIR names;
then SIGTERM saves and ends it with exit code 75, and starting it again resumes it.

Models of which each rank holds a part (`fully_shard`, HSDP, tensor parallelism) are kept by all ranks together.

A loop of epochs over a loader becomes one over `run.batches(loader, epochs=N)`, in which a body may call `opt.step()` itself.

What a script must keep to: what has state is tracked, by `extra` what has no place of its own; a loader of its own is given to
`run.batches`, or follows the step's number. Plain variables and batches that a body hands on to the next (as when the next
batch is drawn ahead) are kept too, as they are when the body ends; one that can't be kept is named in the log. Weights change in a
tracked optimizer's step, or after it before the body ends; others are noticed, said, and saved at the ends of bodies only. An
evaluation belongs at the top of the body, or inside `with run.evaluation()`.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self

from fabric import context
from fabric.errors import FabricError, InvalidRequest, JobFailed
from training import randomness
from training.boundary import Boundary, watch_changes
from training.cadence import LOSS_EVERY_S
from training.eviction import Watch
from training.feeding import Feeding
from training.loop_variables import OVER, LoopVariables, caller, has_left
from training.measuring import untouched
from training.peers import Peers, joined
from training.progress import Progress, say
from training.registry import Registry, named
from training.stepping import Stepping, device_refusals, is_out_of_memory, out_of_memory
from training.stopping import stop_of
from training.timers import Timers
from training.trackers import Trackers, folder_of
from training.vault import SessionNumber
from training.weight_watch import WeightWatch

LOSS_EVERY_VARIABLE: Final = "FABRIC_LOSS_EVERY_S"


def session(
    *,
    model: Any = None,
    opt: Any = None,
    sched: Any = None,
    scaler: Any = None,
    extra: Mapping[str, Any] | None = None,
    directory: str | os.PathLike[str] | None = None,
    snapshot_every_s: float | None = None,
    clip_norm: float | None = None,
    before_update: Callable[[], None] | None = None,
    mix: str | None = None,
) -> "Run":
    """Open a session, and bring everything to the newest durable state of this job, if there is one.

    Args:
        model: a module, or several by name in a dict.
        opt: an optimizer, or several by name in a dict.
        sched: a learning rate scheduler; `run.step` steps it once an optimizer step.
        scaler: a `torch.amp.GradScaler`.
        extra: more state by name: anything with `state_dict` and `load_state_dict`, generators of random numbers, and
            dicts of plain values, which are read and updated in place.
        directory: where checkpoints go outside the fabric; None = FABRIC_CHECKPOINT_DIR, or nowhere. Sessions that a process
            opens there one after the other have a state each, in their order: in a notebook, too, until it is restarted.
        snapshot_every_s: seconds between snapshots beside those at a stop, which only matter when a machine is lost without
            notice; None = by Young and Daly from what they cost and FABRIC_LOSS_EVERY_S; `math.inf` = none.
        clip_norm: for `run.step`: the largest norm of an optimizer's gradients.
        before_update: for `run.step`: called when all gradients of a step are there, before the optimizer.
        mix: accelerators of a gang: never (all of one kind), same-vendor (shares follow speeds), islands (experimental: an
            island for each kind, which meet now and then); None = FABRIC_MIX.

    Raises:
        InvalidRequest: `untrackable_state`, `state_not_kept`, `sharded_model`: something given here has no state that can be
            kept; named. What comes with the first step, such as an optimizer's own state, is looked at after that.
        Unavailable: `gang_incomplete`: not all ranks came.
        Conflict: `checkpoint_of_another_run` or `checkpoint_of_another_kind`: resume with what was saved.
    """
    job = context.current()
    registry = Registry()
    optimizers = named("opt", opt)
    for name, value in {**named("model", model), **optimizers, **named("sched", sched, many=False)}.items():
        registry.track(name, value)
    for name, value in {**named("scaler", scaler, many=False), **(extra or {})}.items():
        registry.track(name, value)
    stepping = Stepping(
        optimizers=optimizers.values(), scheduler=sched, scaler=scaler, clip_norm=clip_norm, before_update=before_update
    )
    peers, every = joined(job, mix=mix), list(optimizers.values())
    for name, value in peers.tracks(registry).items():
        registry.track(name, value)
    return Run(job, registry, stepping, every, peers, directory=directory, snapshot_every_s=snapshot_every_s)


class Run:
    """A loop under way. One per process at a time; all but the side thread's work happens in the thread that loops."""

    def __init__(
        self,
        job: context.Context,
        registry: Registry,
        stepping: Stepping,
        optimizers: list[Any],
        peers: Peers,
        *,
        directory: str | os.PathLike[str] | None = None,
        snapshot_every_s: float | None = None,
    ) -> None:
        """Use `session`."""
        self.state = registry
        """What is tracked, by name."""
        self.timers = Timers()
        self.done = 0
        """Steps that are complete, counted from the very first attempt."""
        self._job, self._stepping, self._optimizers, self._peers = job, stepping, optimizers, peers
        self._number = SessionNumber(job, directory)
        vault = peers.vault(job, directory, number=self._number.number, state=registry)
        self._stop = peers.stop(stop_of(job, is_kept=vault.is_kept), save_s=lambda: self._saver.save_s)
        self._boundary = Boundary(self._ending)
        self._saver = peers.saver(registry, self._boundary, vault)
        self._saver.poisoned = stepping.finite.is_poisoned
        self._saver.learned = peers.learned
        self._watch = Watch(
            self._saver,
            self._stop,
            snapshot_every_s=snapshot_every_s if peers.takes_snapshots else math.inf,
            loss_every_s=float(os.environ.get(LOSS_EVERY_VARIABLE) or LOSS_EVERY_S),
        )
        self._kept, self._undo = self._saver.load() or {}, list[Callable[[], None]]()
        self.done = self.resumed_at = int(self._kept.get("step", 0))
        self._saver.rehearse(excuses=lambda _name: True)
        self._is_rehearsed = False
        self._variables = LoopVariables(registry.weights())
        self._weights = WeightWatch(registry, is_needed=vault.is_kept)
        self._weights.changed = registry.untrained(optimizers)
        self._saver.unannounced = lambda: self._weights.changed
        self._saver.left_out = self._variables.say_left_out
        beside = job.checkpoints if peers.takes_snapshots else None
        self._trackers = Trackers(folder_of(directory), run=job.job_id or "run", step=self.done, beside=beside)
        self._saver.after_save = self._trackers.keep
        self._progress = Progress(job.report, self._trackers.scalars, self.timers)
        self._total: int | None = None
        self._cursor_of: Callable[[], dict[str, Any]] = dict
        self._feeding = Feeding(stepping, self.timers)
        self._is_open = self._is_over = self._closed_early = self._is_complete = False
        self._refusals, self._ran_out = device_refusals(), False

    def steps(self, total: int | None) -> Iterator[int]:
        """The numbers of the steps that are still to be done, up to `total` in all (None = until the script breaks off)."""
        self._open()
        try:
            self._variables.begin(caller(), self._kept.get("variables", {}))
            self._begin(total)
            while (total is None or self.done < total) and not self._was_left:
                yield self.done
                self._end_body(samples=0)
            self.finish()
        except GeneratorExit:
            self._broken_off(is_error=not has_left(caller()))
            raise
        finally:
            self._leave_loop()

    def batches(
        self,
        data: Any,
        *,
        global_batch: int | None = None,
        epochs: int | None = 1,
        virtual: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 0,
        reproducible: str = "bitwise",
    ) -> Iterator[Any]:
        """The batches that are still to be seen; give the mean loss of each to `run.step`.

        Args:
            data: samples by index (`__getitem__`, `__len__`), or an iterable of samples; or, without `global_batch`, an
                iterable of batches such as a DataLoader. Lengths need not be known.
            global_batch: samples an optimizer step sees, over all processes.
            epochs: how often all of them are seen; None = until the script breaks off. Unless it is 1, a loader, sampler or
                dataset with `set_epoch` is told the number of each.
            virtual: micro-batches a step is made of; what is given out is one of them. The same in all attempts.
            shuffle: each epoch in another order, which `seed` decides.
            seed: of the order, and of all random numbers drawn in a step.
            collate: makes a batch of a list of samples; None = torch's `default_collate`.
            workers: processes that read ahead.
            reproducible: bitwise (the same weights on any number of processes of a kind) or fast (to rounding).

        Raises:
            InvalidRequest: `dataset_unusable`, `virtual_ranks_invalid`, `shares_invalid`, `islands_need_batches`; `loss_missing`:
                with reproducible=fast each batch must have a loss where other processes share the step.
            Conflict: `checkpoint_of_another_run`, `dataset_changed`: it would not be the same samples.
        """
        from training.data import feed_of  # noqa: PLC0415  # not loaded for jobs without a dataset
        from training.virtual import VirtualRanks  # noqa: PLC0415

        ranks = self._feeding.ranks = None if global_batch is None else VirtualRanks(virtual or 1, global_batch, seed)
        if ranks is not None:
            self._stepping.way = self._peers.way(self.state, ranks, reproducible=reproducible, workers=workers)
        share = self._peers.share
        feed = feed_of(data, ranks, share=share, epochs=epochs, shuffle=shuffle, collate=collate, workers=workers)
        self._open()
        try:
            self._variables.begin(caller(), self._kept.get("variables", {}))
            self._begin(feed.steps_total, feed.cursor)
            portions = feed.portions(self.done, self._kept.get("cursor", {}))
            while not self._was_left and (portion := self._feeding.next(portions)) is not None:
                if not portion.is_idle:
                    yield portion.batch
                self._pass_over()
            self.finish()
        except GeneratorExit:
            self._broken_off(is_error=not has_left(caller()))
            raise
        finally:
            self._leave_loop()

    def step(self, loss: Any) -> None:
        """The mean loss over the batch given out last: backward, and with a step's last micro-batch the optimizer's step.

        Raises:
            JobFailed: `loss_not_finite`; nothing was changed by it, and the state before it is durable.
        """
        portion = self._feeding.taken()
        weight = portion.samples / portion.step_samples
        self._guarded(lambda: self._stepping.add(loss, step=self.done, weight=weight))
        if portion.is_last:
            self._update()
            self._close(samples=portion.step_samples, amid_body=True)
            self._closed_early = True

    def boundary(self) -> None:
        """The step is complete here, rather than at the end of the loop's body.

        What the rest of the body changes is added at its end. A stop that can't wait for that keeps what there is here: leave for
        after it what may be missing then, such as an evaluation.
        """
        if self._optimizers and self._boundary.is_provisional and not self._boundary.is_changing:
            return  # it was complete before
        if self._is_whole:
            self._close(samples=0, amid_body=True)
        elif not self._closed_early:
            self._count(samples=0)
        self._closed_early = True

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """For measuring at the end of a body: the step is complete before it, and it leaves no trace in the training.

        Modules are in `eval` mode and torch keeps no gradients inside; modes and random numbers are put back after it. If the run
        is evicted inside, the step is kept and this evaluation isn't made again.
        """
        if self._boundary.is_changing:
            self.boundary()
        with untouched(self.state.modules()):
            yield

    def log(self, **values: Any) -> None:
        """Numbers of this step, for the fabric (`loss` is shown in `fabric top`) and the trackers.

        Raises:
            JobFailed: `loss_not_finite`, if `loss` isn't a finite number; the last good step is durable then.
        """
        if "loss" in values:
            self._guarded(lambda: self._stepping.finite.look(values["loss"], step=self.done))
        self._progress.log(self.done, values)

    def finish(self) -> None:
        """The run is complete: its last boundary becomes durable, and nobody asks it to stop any more."""
        self._is_complete = True
        if self._is_open and not self._is_over:
            self._guarded(self._stepping.finite.settle)
            self._guarded(self._conclude)
            self._peers.end()
            if self._saver.has_new and not self._boundary.is_changing:
                with self.timers.within("checkpoint"):
                    self._saver.save(at_boundary=True)
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        self._leave_loop()
        if is_out_of_memory(error):
            self._give_back()
            raise out_of_memory(error, step=self.done, kept=self._saver.kept) from error

    @property
    def _was_left(self) -> bool:
        """Whether the script had left this loop by itself in an earlier attempt."""
        return OVER in self._kept.get("variables", {})

    def _broken_off(self, *, is_error: bool) -> None:
        """The script has left its loop in a body. By `break` that was its last; an error leaves a step half done."""
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

    def _conclude(self) -> None:
        """What the ranks still do to the weights together after the last step, as part of it."""
        if (change := self._peers.conclude()) is not None:
            self._boundary.change()
            change()
            self._saver.capture(self.done, self._cursor_of, self._variables.now)
            self._boundary.close()

    def _pass_over(self) -> None:
        """A body over a batch has ended. The script may have given no loss for it, and have stepped by itself."""
        portion = self._feeding.passed_over()
        if portion is not None and portion.is_last:
            self._update()
            self._end_body(samples=portion.step_samples)
        elif self._closed_early:
            self._end_body(samples=0)

    def _update(self) -> None:
        if self._feeding.end_step():
            self._guarded(self._stepping.update)
        if self._feeding.ranks is not None:
            self._feeding.ranks.leave(self.done)

    @property
    def _is_whole(self) -> bool:
        """Whether it is a boundary here: where no optimizer has stepped, gradients may be half collected."""
        return not self._optimizers or self._boundary.is_changing or self._weights.look() or self._saver.has_changed

    def _end_body(self, *, samples: int) -> None:
        """A body has ended: the step is complete, unless its boundary came before, or no optimizer has stepped."""
        if self._closed_early:
            self._settle()
        elif self._is_whole:
            self._close(samples=samples)
        else:
            self._count(samples=samples)
        self._closed_early = False

    def _count(self, *, samples: int) -> None:
        """The script has done a step, and the boundary before it is still the last."""
        self.done += 1
        self._pass_on(samples)

    def _ending(self) -> BaseException:
        self._watch.departed()
        return self._stop.ending()

    def _open(self) -> None:
        if self._is_open:
            raise InvalidRequest("this run has had its loop: open another session", code="session_used")
        self._is_open = True

    def _begin(self, total: int | None, cursor_of: Callable[[], dict[str, Any]] = dict) -> None:
        if "random" in self._kept:
            randomness.restore(self._kept["random"])
        self._total, self._cursor_of = total, cursor_of
        self._undo = [watch_changes(optimizer, self._change) for optimizer in self._optimizers]
        self._saver.capture(self.done, lambda: self._kept.get("cursor", {}), self._variables.now)
        self._weights.note()
        self._peers.check_resumed(self.done, self._kept.get("learned", {}))
        self._stop.listen()
        self._watch.start()
        self._watch.at_boundary()
        self._peers.begin_step()

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
            self._saver.rehearse(excuses=self.state.is_frozen)
        self._boundary.close(provisional=amid_body)
        if amid_body:
            self._weights.pause()
            self._watch.amid_body()
            self._pass_on(samples)
        else:
            self._weights.note()
            self._go_on(samples)

    def _settle(self) -> None:
        """The body amid which a boundary was has ended, or comes to another one."""
        if self._boundary.is_provisional:
            self._add_rest()
            self._go_on(None)

    def _go_on(self, samples: int | None) -> None:
        """From a boundary at which a body has ended: with the others, or away. `samples` of the step, if nobody heard of it."""
        self._guarded(lambda: self._peers.end_step(self.done))
        self._watch.at_boundary()
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
        self.timers.add("checkpoint", self._boundary.take_waited_s())
        self._progress.stepped(self.done, total=self._total, samples=samples)

    def _guarded(self, look: Callable[[], None]) -> None:
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
            self._keep_last()
            raise self._ending() from lost

    def _keep_last(self) -> None:
        """After a failure: the last boundary, if it is whole and good."""
        if self._is_over or not self._is_open or self._boundary.is_leaving:
            return
        if self._saver.has_new and not self._boundary.is_changing:
            try:
                self._saver.save(at_boundary=not (self._weights.look() or self._saver.has_changed))
            except FabricError as failed:  # it isn't good, or can't be kept: the one before stays
                say(failed.message)

    def _leave_loop(self) -> None:
        """The loop ended, by itself or by an error in its body: a bug costs no step that was done."""
        self._keep_last()
        self._end()

    def _give_back(self) -> None:
        """Who ran out of memory tries again with less, and goes on from here. After any other error the next session is another
        one, as the next trial of a search is: with this one's weights it would differ, and nothing would be said.
        """
        if self._number.give_back():
            say(f"out of memory in step {self.done}: the next session of this process goes on here; {self._saver.kept}")

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            if not self._is_complete and (self._ran_out or device_refusals() > self._refusals):
                self._give_back()
            self._boundary.abandon()
            self._watch.close()
            for undo in self._undo:
                undo()
            self._progress.flush()
            self._trackers.close()
            self._peers.close()
