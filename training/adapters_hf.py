"""Hugging Face's `Trainer` on capacity that may be taken away: one changed line.

    from training.adapters_hf import train

    train(trainer)  # instead of trainer.train()

At the end of the step in which the fabric asks for it, and of the last one, `Trainer` saves as it always does (weights, optimizer, schedule,
random numbers, place in the data); that folder is committed, and the next attempt resumes from it. What `save_steps` saves
is committed too. Loss, step and total go to `fabric top`. Outside the fabric, `trainer.train()` and nothing else, unless
FABRIC_CHECKPOINT_DIR is set.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

from training.folder_run import FolderRun
from training.meters_hf import Meters


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
    is_complete = False
    try:
        resumed = run.restored(Path(trainer.args.output_dir) / "checkpoint-fabric")
        if resumed is not None:
            _bring_back_best(resumed, Path(trainer.args.output_dir))
            options["resume_from_checkpoint"] = str(resumed)
            meters.resumed = resumed
        found = trainer.train(**options)
        is_complete = True
    finally:
        trainer.remove_callback(callback)
        run.close(is_complete=is_complete)
    return found


_BEST: Final = "fabric-best"
_STATE: Final = "trainer_state.json"


def _take_best_along(folder: Path, best: str | None) -> None:
    """`load_best_model_at_end` looks for an older checkpoint's model at the end, which another node has not."""
    if best is None or not Path(best).is_dir() or Path(best).resolve() == folder.resolve():
        return
    left_out = shutil.ignore_patterns("optimizer*", "scheduler*", "rng_state*", _BEST)
    shutil.copytree(best, folder / _BEST, ignore=left_out, dirs_exist_ok=True)


def _bring_back_best(resumed: Path, output: Path) -> None:
    """Put the best model where `Trainer` looks for it, if that place is not on this node."""
    state = json.loads((resumed / _STATE).read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    if not best or Path(best).is_dir():
        return
    place = output / Path(best).name
    shutil.copytree(resumed / _BEST if (resumed / _BEST).is_dir() else resumed, place, dirs_exist_ok=True)
    state["best_model_checkpoint"] = str(place)
    (resumed / _STATE).write_text(json.dumps(state), encoding="utf-8")


def callback_of(run: FolderRun, meters: Meters | None = None) -> Any:
    """The `TrainerCallback` for a run, for who builds a loop of their own around it."""
    from transformers import TrainerCallback  # noqa: PLC0415  # takes seconds, and only who uses it has it

    class Fabric(TrainerCallback):
        """Saves when the fabric asks, commits what was saved, tells how far it is."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            run.listen()
            if meters is not None:
                meters.bring_back()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if run.is_save_wanted or (run.is_kept and state.global_step >= state.max_steps):
                control.should_save = True  # after the last step, too: what comes then may be cut off
            elif run.is_asked_to_stop:
                run.leave_if_asked()
            run.job.report(step=state.global_step, steps_total=state.max_steps)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            _take_best_along(folder, state.best_model_checkpoint)
            if meters is not None:
                meters.keep(folder)
            run.keep(folder, step=state.global_step)
            run.leave_if_asked()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
            if logs and "loss" in logs:
                run.job.report(step=state.global_step, loss=logs["loss"])

    return Fabric()
