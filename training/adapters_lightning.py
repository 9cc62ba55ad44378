"""Lightning's `Trainer` on capacity that may be taken away: one changed line.

    from training.adapters_lightning import fit

    fit(trainer, module, loader)  # instead of trainer.fit(module, loader)

At the end of the batch in which the fabric asks for it, Lightning's own checkpoint is written and committed, and the next
attempt resumes from it. Two things that Lightning leaves out of its checkpoints are added: random numbers, and the place
within an epoch, for which the loader is wrapped (`Resumable`). The loader must know its length, because for others
Lightning reads one batch ahead. `lightning` and `pytorch_lightning` are both fine.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fabric.errors import InvalidRequest
from training import randomness
from training.folder_run import FolderRun
from training.plain import plain, restored


def fit(
    trainer: Any, module: Any, loader: Any, *, directory: str | os.PathLike[str] | None = None, **options: Any
) -> None:
    """`trainer.fit(module, loader, **options)`, begun or resumed.

    Args:
        trainer: a Lightning `Trainer`.
        module: a `LightningModule`.
        loader: its training data, of a known length.
        directory: where checkpoints go outside the fabric; None = FABRIC_CHECKPOINT_DIR, or nowhere.
        options: of `Trainer.fit`; `ckpt_path` is used where nothing was saved yet.

    Raises:
        InvalidRequest: `dataset_unusable`: the loader does not know its length.
    """
    run = FolderRun(directory)
    with tempfile.TemporaryDirectory(prefix="fabric-lightning-") as folder:
        callback = callback_of(run, Path(folder) / "checkpoint")
        trainer.callbacks.append(callback)
        try:
            resumed = run.restored(Path(folder) / "resumed")
            if resumed is not None:
                options["ckpt_path"] = str(resumed / _FILE)
            trainer.fit(module, Resumable(loader), **options)
        finally:
            trainer.callbacks.remove(callback)
            run.close()


_FILE = "lightning.ckpt"


class Resumable:
    """A loader that says where it is, and goes on from there with the random numbers it had."""

    def __init__(self, loader: Any) -> None:
        """Take a loader of a known length."""
        if not hasattr(loader, "__len__"):
            raise InvalidRequest(
                f"{type(loader).__qualname__} does not know its length, and Lightning would read ahead of what it trained "
                "on: use training.session, or give it a length",
                code="dataset_unusable",
            )
        self._loader = loader
        self._given = 0
        self._at_start: dict[str, Any] = {}
        self._resumes: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        resumes, self._resumes = self._resumes, None
        if resumes is not None:
            randomness.restore(resumes["at_start"])
        self._at_start, self._given = randomness.capture(), 0
        batches = iter(self._loader)
        if resumes is not None:
            self._given = sum(1 for _ in islice(batches, resumes["given"]))
            randomness.restore(resumes["now"])
        for batch in batches:
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        kept: dict[str, Any] = plain(
            {"given": self._given, "at_start": self._at_start, "now": randomness.capture()}, "loader"
        )
        return kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resumes = restored(state)


def callback_of(run: FolderRun, folder: Path) -> Any:
    """The Lightning `Callback` for a run, which writes its checkpoints into `folder`."""
    lightning = sys.modules.get("lightning.pytorch") or sys.modules["pytorch_lightning"]

    class Fabric(lightning.Callback):  # type: ignore[misc, name-defined]  # whichever of both the script uses
        """Saves when the fabric asks, and tells how far it is."""

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
            step = trainer.global_step
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            run.job.report({"step": step, "loss": loss, **_total(trainer)})
            if run.is_save_wanted:
                folder.mkdir(exist_ok=True)
                trainer.save_checkpoint(folder / _FILE)
                run.keep(folder, step=step)
            run.leave_if_asked()

    return Fabric()


def _total(trainer: Any) -> dict[str, int]:
    total = trainer.estimated_stepping_batches
    return {"steps_total": int(total)} if total and total != float("inf") else {}
