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
batch is drawn ahead) are kept too, as they are when the body ends, and so is what a body changes in place: environments, replay buffers,
metrics, averages of weights. One that can't be kept is named in the log, with the remedy. Weights change in a
tracked optimizer's step, or after it before the body ends; others are noticed, said, and saved at the ends of bodies only. An
evaluation belongs at the top of the body, or inside `with run.evaluation()`.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from fabric import context
from training.gang.peers import Peers, joined
from training.loop.feeding import Feeding
from training.loop.measuring import untouched
from training.loop.stepping import Stepping, is_out_of_memory, out_of_memory
from training.session_loop import Loop
from training.state.loop_variables import caller, has_left
from training.state.registry import Registry, named
from training.timers import Timers


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
    peer_copies: bool | str | None = None,
) -> "Run":
    """Open a session, and bring everything to the newest durable state of this job, if there is one.

    Args:
        model: a module, or several by name in a dict.
        opt: an optimizer, or several by name in a dict.
        sched: a learning rate scheduler; `run.step` steps it once an optimizer step. Where a loop's own loaders make batches that
            grow with the gang, `training.learning_rate.ScaledRate` lets the rate follow.
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
        peer_copies: whether each rank of a model that no rank holds whole copies its part into the memory of a rank on another
            node, so that a lost node costs no step, or those since the last copy: True (as often as it costs at most 5 % of the
            time), "each-step", or False; None = FABRIC_PEER_COPIES. It takes 4 times a rank's part in host memory.

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
    peers, every = joined(job, mix=mix, peer_copies=peer_copies), list(optimizers.values())
    for name, value in peers.tracks(registry).items():
        registry.track(name, value)
    return Run(job, registry, stepping, every, peers, directory=directory, snapshot_every_s=snapshot_every_s)


class Run:
    """What a script says to its loop. One per process at a time."""

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
        self._stepping, self._peers = stepping, peers
        self._loop = Loop(
            job, registry, optimizers, peers, finite=stepping.finite, timers=self.timers,
            directory=directory, snapshot_every_s=snapshot_every_s,
        )  # fmt: skip
        self._feeding = Feeding(stepping, self.timers)

    @property
    def done(self) -> int:
        """Steps that are complete, counted from the very first attempt."""
        return self._loop.done

    @property
    def resumed_at(self) -> int:
        """How many were complete when this attempt began."""
        return self._loop.resumed_at

    def steps(self, total: int | None) -> Iterator[int]:
        """The numbers of the steps that are still to be done, up to `total` in all (None = until the script breaks off)."""
        loop = self._loop
        loop.open()
        try:
            loop.begin(caller(), total=total)
            while (total is None or loop.done < total) and not loop.was_left:
                yield loop.done
                loop.end_body(samples=0)
            self.finish()
        except GeneratorExit:
            loop.break_off(is_error=not has_left(caller()))
            raise
        finally:
            loop.leave()

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
            global_batch: samples an optimizer step sees, over all processes, however many there are: the same in all
                attempts, so that no learning rate need follow the gang.
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
        from training.loop.data import feed_of  # noqa: PLC0415  # not loaded for jobs without a dataset
        from training.loop.virtual import VirtualRanks  # noqa: PLC0415

        ranks = self._feeding.ranks = None if global_batch is None else VirtualRanks(virtual or 1, global_batch, seed)
        if ranks is not None:
            self._stepping.way = self._peers.way(self.state, ranks, reproducible=reproducible, workers=workers)
        share = self._peers.share
        feed = feed_of(data, ranks, share=share, epochs=epochs, shuffle=shuffle, collate=collate, workers=workers)
        loop = self._loop
        loop.open()
        try:
            loop.begin(caller(), total=feed.steps_total, cursor_of=feed.cursor)
            portions = feed.portions(loop.done, loop.cursor)
            while not loop.was_left and (portion := self._feeding.next(portions)) is not None:
                if not portion.is_idle:
                    yield portion.batch
                self._pass_over()
            self.finish()
        except GeneratorExit:
            loop.break_off(is_error=not has_left(caller()))
            raise
        finally:
            loop.leave()

    def step(self, loss: Any) -> None:
        """The mean loss over the batch given out last: backward, and with a step's last micro-batch the optimizer's step.

        Raises:
            JobFailed: `loss_not_finite`; nothing was changed by it, and the state before it is durable.
        """
        portion = self._feeding.taken()
        weight = portion.samples / portion.step_samples
        self._loop.guarded(lambda: self._stepping.add(loss, step=self.done, weight=weight))
        if portion.is_last:
            self._update()
            self._loop.close_early(samples=portion.step_samples)

    def boundary(self) -> None:
        """The step is complete here, rather than at the end of the loop's body.

        What the rest of the body changes is added at its end. A stop that can't wait for that keeps what there is here: leave for
        after it what may be missing then, such as an evaluation.
        """
        self._loop.boundary()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """For measuring at the end of a body: the step is complete before it, and it leaves no trace in the training.

        Modules are in `eval` mode and torch keeps no gradients inside; modes and random numbers are put back after it. If the run
        is evicted inside, the step is kept and this evaluation isn't made again.
        """
        if self._loop.is_changing:
            self.boundary()
        with untouched(self.state.modules()):
            yield

    def log(self, **values: Any) -> None:
        """Numbers of this step, for the fabric (`loss` is shown in `fabric top`) and the trackers.

        Raises:
            JobFailed: `loss_not_finite`, if `loss` isn't a finite number; the last good step is durable then.
        """
        if "loss" in values:
            self._loop.guarded(lambda: self._stepping.finite.look(values["loss"], step=self.done))
        self._loop.progress.log(self.done, values)

    def finish(self) -> None:
        """The run is complete: its last boundary becomes durable, and nobody asks it to stop any more."""
        self._loop.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        self._loop.leave()
        if is_out_of_memory(error):
            self._loop.give_back()
            raise out_of_memory(error, step=self.done, kept=self._loop.kept) from error

    def _pass_over(self) -> None:
        """A body over a batch has ended. The script may have given no loss for it, and have stepped by itself."""
        portion = self._feeding.passed_over()
        if portion is not None and portion.is_last:
            self._update()
            self._loop.end_body(samples=portion.step_samples)
        elif self._loop.is_closed_early:
            self._loop.end_body(samples=0)

    def _update(self) -> None:
        if self._feeding.end_step():
            self._loop.guarded(self._stepping.update)
        if self._feeding.ranks is not None:
            self._feeding.ranks.leave(self.done)
