"""Ray Train (v2) on capacity that may be taken away: in a job no line changes, elsewhere one.

    from training.integrations.ray import fit

    result = fit(trainer)  # what trainer.fit() is in a job

A run is kept with the job, under a name that its next attempt has too, unless the script names a storage of its own. There Ray
goes on by itself: `ray.train.get_checkpoint()` is what was reported last. When the fabric asks for it, the next report
with a checkpoint becomes durable, its workers are held, and the attempt ends; a script that asks for
`ray.train.get_preemption_info()` is told at once, and can report earlier. What comes after the last report that had a
checkpoint is made again. Step and loss go to `fabric top`.

A trainer that is fitted within a task, an actor or a trial of Tune's is Ray's alone.
"""

import dataclasses
import functools
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fabric import context
from fabric.worker.lease_ray_settings import told_ray
from training.integrations.ray_storage import Asked, Place, forget_unfinished, place_of, renamed_from, reports_in
from training.progress import say
from training.state.stopping import Stop, stop_of
from training.state.vault import DIRECTORY_VARIABLE

_LOOK_S: Final = 0.2
_LOG_S: Final = 1.0
"""What workers have printed comes to this process's log a moment later."""
_LAST_S: Final = 1.0
_runs: Final[Counter[str]] = Counter()
"""How many runs of each function this process has had."""
_claimed: Final[set[str]] = set()


def fit(trainer: Any, *, directory: str | os.PathLike[str] | None = None) -> Any:
    """`trainer.fit()`, begun or resumed; its result.

    Args:
        trainer: a `TorchTrainer`, or another of Ray Train's v2.
        directory: where runs are kept; None = FABRIC_CHECKPOINT_DIR, or as Ray does it.

    Raises:
        InvalidRequest: `storage_not_shared`: several nodes would write into a folder that one of them has.
    """
    plain = getattr(type(trainer).fit, "__wrapped__", type(trainer).fit)
    return _fitted(trainer, functools.partial(plain, trainer), directory or os.environ.get(DIRECTORY_VARIABLE))


def install() -> None:
    """In a job's processes `trainer.fit()` is `fit(trainer)`."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # noqa: PLC0415  # takes seconds

    if hasattr(DataParallelTrainer.fit, "__wrapped__"):
        return

    @functools.wraps(DataParallelTrainer.fit)
    def own_fit(trainer: Any) -> Any:
        return fit(trainer)

    DataParallelTrainer.fit = own_fit


def _fitted(trainer: Any, call: Callable[[], Any], directory: str | os.PathLike[str] | None) -> Any:
    if directory is None or _is_in_worker():
        return call()
    if trainer.scaling_config.num_workers == 0:
        say(
            "ScalingConfig(num_workers=0) keeps no checkpoints: what it trains in this process begins anew after an eviction"
        )
        return call()
    job, kept = context.current(), Path(directory)
    watch = _adapted(trainer, kept, job)
    try:
        return call()
    finally:
        watch.close()


def _is_in_worker() -> bool:
    """Whether this is a process of Ray's, which others may be beside."""
    import ray  # noqa: PLC0415  # whoever has a trainer has it

    worker = ray._private.worker  # noqa: SLF001
    return bool(ray.is_initialized() and worker.global_worker.mode == worker.WORKER_MODE)


def _adapted(trainer: Any, kept: Path, job: context.Context) -> "_Watch":
    """Have the trainer keep its run where it is found again, and tell of it; whoever waits for the notice meanwhile."""
    from ray.train.constants import DEFAULT_STORAGE_PATH  # noqa: PLC0415
    from ray.train.v2._internal.util import get_callable_name  # noqa: PLC0415

    from training.integrations.ray_reports import Holds, Reports, Words  # noqa: PLC0415  # it imports Ray Train

    config, function = trainer.run_config, get_callable_name(trainer.train_loop_per_worker)
    asked = Asked(str(config.storage_path), config.name, has_filesystem=config.storage_filesystem is not None)
    own_ray = told_ray(os.environ)
    place = place_of(
        asked, default=DEFAULT_STORAGE_PATH, kept=kept, job_id=job.job_id, function=function,
        number=_runs[function] + 1, nodes=own_ray.nodes if own_ray is not None else 1,
    )  # fmt: skip
    if place.name != config.name:
        _runs[function] += 1
    _say_how(place)
    before = reports_in(place.run) if place.is_kept else 0
    words = Words(secrets.token_hex(8))
    told = Reports(words, before=before, step_file=kept / "step" if place.is_own else None)
    others = [each for each in config.callbacks if not isinstance(each, Reports | Holds)]  # of a fit before
    changed = dataclasses.replace(
        config, storage_path=place.storage_path, name=place.name, callbacks=[*others, told, Holds(words)]
    )
    trainer.run_config = changed
    trainer.train_run_context = dataclasses.replace(trainer.train_run_context, run_config=changed)
    return _Watch(words, job, place.name)


def _say_how(place: Place) -> None:
    if place.note:
        say(place.note)
    if place.is_kept:
        forget_unfinished(place.run)
        if others := renamed_from(place.run, claimed=_claimed):
            say(
                f"{place.name} begins, and {', '.join(others[:3])} of an earlier attempt is left: if that was this run, give"
                " RunConfig a name that stays the same"
            )
        if reports := reports_in(place.run):
            say(f"{place.name} goes on after report {reports}")
    _claimed.add(place.name)


class _Watch:
    """From the beginning of a run to its end: tells the fabric of it, and waits for the notice."""

    def __init__(self, words: Any, job: context.Context, name: str) -> None:
        self._words, self._job, self._name = words, job, name
        self._over = threading.Event()
        self._stop: Stop = stop_of(job, is_kept=True)
        self._thread = threading.Thread(target=self._look, name="fabric-ray-train", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The run is over: a notice that comes now finds the script as it finds any."""
        self._over.set()
        self._thread.join()
        self._stop.close()
        self._job.listen_no_more()

    def _look(self) -> None:
        told = None
        while not self._over.wait(_LOOK_S):
            news = self._words.news() if _is_up() else None
            if news is not None and news != told:
                told = news
                self._job.report({"step": news.step, **({} if news.loss is None else {"loss": news.loss})})
            if self._stop.wait(0):
                self._leave(news)
                return

    def _leave(self, heard: Any) -> None:
        """Wait for the next report with a checkpoint, and end the process; at once if nothing would be lost by that."""
        from training.integrations.ray_reports import Wish  # noqa: PLC0415

        began, reason = time.monotonic(), self._stop.reason
        if heard is None or not self._stop.is_save_wanted():
            self._end(f"{reason} before its workers had begun: 0 steps lost" if heard is None else reason)
            return
        left_s = self._stop.seconds_left()
        self._words.ask(Wish(deadline_ms=None if left_s is None else round(1000 * (time.time() + left_s))))
        while not self._over.wait(_LOOK_S):
            left_s, held = self._stop.seconds_left(), self._words.held()
            if held is not None:
                took_ms = 1000 * (time.monotonic() - began)
                self._job.report({"step": held.step})
                self._end(f"{reason} at step {held.step}: its report was kept after {took_ms:.0f} ms, 0 steps lost")
                return
            if left_s is not None and left_s < _LAST_S + _LOG_S:
                say(f"{reason}: no report with a checkpoint came in time; {self._name} goes on from the one before")
                return

    def _end(self, said: str) -> None:
        say(said)
        if not self._over.wait(_LOG_S):
            self._stop.end_process()


def _is_up() -> bool:
    import ray  # noqa: PLC0415

    return bool(ray.is_initialized())
