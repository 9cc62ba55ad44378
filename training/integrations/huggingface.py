"""Hugging Face's `Trainer` on capacity that may be taken away: one changed line.

    from training.integrations.huggingface import train

    train(trainer)  # instead of trainer.train()

At the end of the step in which the fabric asks for it, and of the last one, `Trainer` saves as it always does (weights,
optimizer, schedule, random numbers, place in the data); that folder is committed, and the next attempt resumes from it. What `save_steps` saves
is committed too. Loss, step and total go to `fabric top`. Outside the fabric nothing is kept beside what `Trainer` itself
saves, unless FABRIC_CHECKPOINT_DIR is set.
"""

import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from training.integrations.folder_run import FolderRun
from training.integrations.huggingface_meters import Meters
from training.progress import say


def train(trainer: Any, *, directory: str | os.PathLike[str] | None = None, **options: Any) -> Any:
    """`trainer.train(**options)`, begun or resumed; what it returns.

    Args:
        trainer: a `transformers.Trainer`, or of a class made from it (TRL's, for instance).
        directory: where checkpoints go outside the fabric; None = FABRIC_CHECKPOINT_DIR, or nowhere.
        options: of `Trainer.train`; `resume_from_checkpoint` is used where nothing was saved yet.
    """
    run = FolderRun(directory)
    meters = Meters(trainer)
    callback = callback_of(run, meters)
    trainer.add_callback(callback)
    failed: BaseException | None = None
    try:
        resumed = run.restored(Path(trainer.args.output_dir) / "checkpoint-fabric")
        if resumed is not None:
            _bring_back_best(resumed, Path(trainer.args.output_dir))
            options["resume_from_checkpoint"] = str(resumed)
            meters.resumed = resumed
        found = trainer.train(**options)
    except BaseException as error:
        failed = error
        raise
    finally:
        trainer.remove_callback(callback)
        run.close(failed)
    return found


_BEST: Final = "fabric-best"
_STATE: Final = "trainer_state.json"


def _take_best_along(folder: Path, best: str | None) -> None:
    """`load_best_model_at_end` looks for an older checkpoint's model at the end, which another node has not."""
    shutil.rmtree(folder / _BEST, ignore_errors=True)  # of an earlier attempt, which came as far
    if best is None or not Path(best).is_dir() or Path(best).resolve() == folder.resolve():
        return
    _copy(Path(best), folder / _BEST, left_out=("optimizer*", "scheduler*", "rng_state*", _BEST))


def _bring_back_best(resumed: Path, output: Path) -> None:
    """Put the best model where `Trainer` looks for it, if that place is not on this node; its ranks may all do so at once."""
    state = json.loads((resumed / _STATE).read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    if not best or Path(best).is_dir():
        return
    name = Path(best).name
    if (source := resumed / _BEST).is_dir() or name == f"checkpoint-{state.get('global_step')}":
        place = output / name
        _copy(source if source.is_dir() else resumed, place, left_out=())
        state["best_model_checkpoint"] = str(place)
    else:
        say(f"the best model so far, {name}, was not saved with this checkpoint: the best from here on counts")
        state |= {"best_model_checkpoint": None, "best_metric": None, "best_global_step": None}
    _replace(resumed / _STATE, json.dumps(state))


def _copy(source: Path, place: Path, *, left_out: tuple[str, ...]) -> None:
    """All files, without a second copy where the disk can do that; whole or not there, whoever else does the same."""
    beside = place.with_name(f".{place.name}.{secrets.token_hex(6)}")
    try:
        shutil.copytree(source, beside, ignore=shutil.ignore_patterns(*left_out), copy_function=_link)
        with suppress(OSError):  # it is there already
            beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _replace(path: Path, text: str) -> None:
    """Another file in the place of the one that is there: that may be linked to, or being read."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _keep(run: FolderRun, folder: Path, state: Any, meters: Meters | None) -> None:
    """What one rank commits for all."""
    _take_best_along(folder, state.best_model_checkpoint)
    if meters is not None:
        meters.keep(folder)
    run.keep(folder, step=state.global_step)


def callback_of(run: FolderRun, meters: Meters | None = None) -> Any:
    """The `TrainerCallback` for a run, for who builds a loop of their own around it."""
    from transformers import TrainerCallback  # noqa: PLC0415  # takes seconds, and only who uses it has it

    class Fabric(TrainerCallback):
        """Saves when the fabric asks, commits what was saved, tells how far it is."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            run.listen()
            if meters is not None:
                meters.bring_back()
                control.should_training_stop = meters.is_all_done(state)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if run.is_save_wanted or (run.is_kept and state.global_step >= state.max_steps):
                control.should_save = True  # after the last step, too: what comes then may be cut off
            elif run.is_asked_to_stop:
                run.leave_if_asked()
            run.job.report(step=state.global_step, steps_total=state.max_steps)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if run.is_kept and run.job.rank == 0 and state.is_world_process_zero:
                _keep(run, folder, state, meters)
            run.leave_if_asked()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
            if logs and "loss" in logs:
                run.job.report(step=state.global_step, loss=logs["loss"])

    return Fabric()
