"""Curves where people look at them: TensorBoard always, Weights & Biases and MLflow where they are set up.

A run that resumes at step k goes on in its curves at k: what an attempt drew beyond the last durable step is drawn over.
A tracker that fails is said once and left out from then on; no training ends because a curve can't be drawn. Event files
are kept beside the checkpoints too, below `tensorboard/<attempt>/`, with every checkpoint and at the end: TensorBoard
pointed at that folder, or at what was copied of it, shows the whole run over all its attempts.
"""

import importlib.util
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from fabric.checkpoints import Checkpoints
from fabric.errors import FabricError
from training.progress import say

TENSORBOARD_VARIABLE: Final = "FABRIC_TENSORBOARD_DIR"
_FLUSH_S: Final = 5


class Tracker(Protocol):
    """Draws numbers by step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step."""

    def close(self) -> None:
        """All that was drawn is kept."""


def folder_of(directory: str | os.PathLike[str] | None) -> Path:
    """Where the event files of a run go: FABRIC_TENSORBOARD_DIR, beside its checkpoints, or `runs`."""
    return Path(os.environ.get(TENSORBOARD_VARIABLE) or (Path(directory) / "tensorboard" if directory else "runs"))


class Trackers:
    """All trackers of a run, opened when there is something to draw."""

    def __init__(self, folder: Path, *, run: str, step: int, beside: Checkpoints | None = None) -> None:
        """Nothing is opened yet.

        Args:
            folder: where event files are written.
            run: as it is called elsewhere.
            step: where it begins or resumes.
            beside: checkpoints that event files are kept with; None = they stay in the folder only.
        """
        self._folder, self._run, self._step, self._beside = folder, run, step, beside
        self._opened: list[Tracker] | None = None
        self._kept: dict[Path, int] = {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Draw the values of a step in all of them."""
        if self._opened is None:
            self._opened = opened(self._folder, run=self._run, step=self._step)
        for tracker in list(self._opened):
            try:
                tracker.scalars(step, values)
            except Exception as error:  # noqa: BLE001  # whatever a tracker raises, the training is worth more
                self._opened.remove(tracker)
                say(f"{type(tracker).__name__} is left out from step {step} on: {error}")

    def keep(self) -> None:
        """What was drawn so far is written, and kept beside the checkpoints."""
        for board in self._opened or ():
            if isinstance(board, TensorBoard):
                board.flush()
        if self._beside is None or self._opened is None:
            return
        try:
            for file in sorted((self._folder / self._run).glob("events.*")):
                if self._kept.get(file) != (size := file.stat().st_size):
                    name = re.sub(r"[^A-Za-z0-9._-]", "-", file.name)
                    key = f"{self._beside.prefix}/tensorboard/{self._beside.epoch:08d}/{name}"
                    self._beside.store.put_file(key, file)
                    self._kept[file] = size
        except (OSError, FabricError) as error:
            say(f"the curves could not be kept: {error}")

    def close(self) -> None:
        """Nothing more is drawn."""
        for tracker in self._opened or ():
            try:
                tracker.close()
            except Exception as error:  # noqa: BLE001
                say(f"{type(tracker).__name__} did not close: {error}")
        self.keep()
        self._opened = []


def opened(folder: Path, *, run: str, step: int) -> list[Tracker]:
    """The trackers that are set up on this machine. W&B and MLflow want their own variable too, or they would ask."""
    wanted: list[tuple[type[Any], bool]] = [
        (TensorBoard, True),
        (WeightsAndBiases, _is_set_up("wandb", "WANDB_API_KEY", "WANDB_MODE")),
        (MLflow, _is_set_up("mlflow", "MLFLOW_TRACKING_URI")),
    ]
    found: list[Tracker] = []
    for kind, is_wanted in wanted:
        if is_wanted:
            try:
                found.append(kind(folder, run=run, step=step))
            except Exception as error:  # noqa: BLE001
                say(f"{kind.__name__} is left out: {error}")
    return found


class TensorBoard:
    """Event files, in a format that TensorBoard reads; no TensorBoard needed to write them."""

    def __init__(self, folder: Path, *, run: str, step: int) -> None:
        from tensorboardX import SummaryWriter  # noqa: PLC0415  # takes half a second, and not every run logs

        apart = f".{secrets.token_hex(4)}"  # two attempts within a second must not write one file
        self._writer = SummaryWriter(
            str(folder / run), purge_step=step or None, flush_secs=_FLUSH_S, filename_suffix=apart
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """All that was drawn is in the file."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One run of W&B for all attempts of a job."""

    def __init__(self, folder: Path, *, run: str, step: int) -> None:  # noqa: ARG002  # resumed by its id
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(id=run, name=run, resume="allow", dir=str(folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """One run of MLflow for all attempts of a job."""

    def __init__(self, folder: Path, *, run: str, step: int) -> None:  # noqa: ARG002
        self._client: Any = importlib.import_module("mlflow").MlflowClient()
        known = self._client.get_experiment_by_name(run)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(run)
        found = self._client.search_runs([experiment], max_results=1)
        self._run_id = (found[0] if found else self._client.create_run(experiment, run_name=run)).info.run_id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run_id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _is_set_up(module: str, *variables: str) -> bool:
    return any(os.environ.get(name) for name in variables) and importlib.util.find_spec(module) is not None
