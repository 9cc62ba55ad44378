"""Lightning's `Trainer` on capacity that may be taken away: one changed line.

    from training.integrations.lightning import fit

    fit(trainer, module, loader)  # instead of trainer.fit(module, loader)

Before the next batch is fetched after the fabric asks for it, Lightning's own checkpoint is written and committed, and the
next attempt resumes from it. There all of the batch before is over, the validation and the end of the epoch after it too,
so an epoch's last batch is a place like any other. Three things that Lightning leaves out of its checkpoints are added:
random numbers, the place within an epoch, for which the loader is wrapped (`Resumable`), and gradients that are still being
accumulated. The loader must know its length, because for others Lightning reads one batch ahead. `lightning` and
`pytorch_lightning` are both fine. A validation that is under way is finished before the save: keep it shorter than the grace.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from fabric.errors import InvalidRequest
from training.integrations.folder_run import FolderRun
from training.loop.map_loader import MapLoader
from training.state import randomness
from training.state.plain import plain, restored


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
        source = Resumable(loader)
        callback = callback_of(run, Path(folder) / "checkpoint", trainer, source)
        trainer.callbacks.append(callback)
        failed: BaseException | None = None
        try:
            resumed = run.restored(Path(folder) / "resumed")
            if resumed is not None:
                options["ckpt_path"] = str(resumed / _FILE)
            trainer.fit(module, source, **options)
        except BaseException as error:
            failed = error
            raise
        finally:
            trainer.callbacks.remove(callback)
            run.close(failed)


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
        self.given = 0
        """Batches of the epoch under way that were given out."""
        self.before_batch: Callable[[], None] = lambda: None
        """Called before each batch, when nothing of the one before is left to do."""
        self._at_start: dict[str, Any] = {}
        self._resumes: dict[str, Any] | None = None
        self._map = MapLoader.of(loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        resumes, self._resumes = self._resumes, None
        if resumes is not None:
            randomness.restore(resumes["at_start"])
        self._at_start, self.given = randomness.capture(), 0
        batches = self._reopened(resumes) if resumes is not None else self._begun()
        while True:
            self.before_batch()
            batch = next(batches, _END)
            if batch is _END:
                return
            self.given += 1
            yield batch

    def _begun(self) -> Iterator[Any]:
        return iter(self._loader) if self._map is None else self._map.begin()

    def _reopened(self, resumes: dict[str, Any]) -> Iterator[Any]:
        batches = None if self._map is None else self._map.resumed(resumes.get("place", {}), given=resumes["given"])
        self.given = resumes["given"]
        if batches is None:
            randomness.restore(resumes["at_start"])
            batches = self._begun()
            self.given = sum(1 for _ in islice(batches, resumes["given"]))
        randomness.restore(resumes["now"])
        return batches

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the epoch were given, and random numbers at its start and now."""
        place = {} if self._map is None else self._map.place()
        kept: dict[str, Any] = plain(
            {"given": self.given, "at_start": self._at_start, "now": randomness.capture(), "place": place}, "loader"
        )
        return kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next epoch goes on from there."""
        self._resumes = restored(state)


_END: Final = object()


def callback_of(run: FolderRun, folder: Path, trainer: Any, source: Resumable) -> Any:  # noqa: C901  # one class, made where its base is known
    """The Lightning `Callback` for a run of this trainer, which writes its checkpoints into `folder`."""
    lightning = sys.modules.get("lightning.pytorch") or sys.modules["pytorch_lightning"]

    class Fabric(lightning.Callback):  # type: ignore[misc, name-defined]  # whichever of both the script uses
        """Saves when the fabric asks, and tells how far it is."""

        def __init__(self) -> None:
            self._gradients: dict[str, Any] = {}
            self._has_new = False
            source.before_batch = self._between

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            _take_signal(run, trainer)
            _give_back(pl_module, self._gradients)

        on_sanity_check_start = on_train_start  # at the very start, where there are no gradients

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
            self._has_new = True
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            run.job.report({"step": trainer.global_step, "loss": loss, **_total(trainer)})
            _leave_if_unwanted(run)

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
            if self._is_between and _is_counted_again(trainer.fit_loop):
                checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

        def state_dict(self) -> dict[str, Any]:
            return {"gradients": _partial_gradients(trainer) if self._is_between else {}}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self._gradients = state_dict["gradients"]

        _is_between = False
        """Whether what is saved is saved here, and not by a callback of the script's in the midst of a batch."""

        def _between(self) -> None:
            if self._has_new and run.is_save_wanted:
                self._save()
            run.leave_if_asked()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
            if run.is_kept:  # what comes after it may be cut off
                self._save()

        def _save(self) -> None:
            folder.mkdir(exist_ok=True)
            self._is_between = True
            trainer.save_checkpoint(folder / _FILE)
            self._is_between = self._has_new = False
            run.keep(folder, step=trainer.global_step)

    return Fabric()


def _take_signal(run: FolderRun, trainer: Any) -> None:
    """Lightning takes SIGTERM when it begins, ends amid an epoch then, saves nothing, and exits with 0."""
    run.listen()
    trainer._signal_connector.received_sigterm = False  # noqa: SLF001  # whenever it has heard it, so have we


def _leave_if_unwanted(run: FolderRun) -> None:
    """Who is asked to stop and needs no save need not wait for a place to save at."""
    if not run.is_save_wanted:
        run.leave_if_asked()


def _give_back(module: Any, gradients: dict[str, Any]) -> None:
    for name, weight in module.named_parameters():
        if (kept := gradients.pop(name, None)) is not None:
            weight.grad = kept.to(weight.device)


def _is_counted_again(loop: Any) -> bool:
    """Whether Lightning, which passes over a validation that is over when it resumes, counts the step before it once more."""
    epoch = loop.epoch_loop
    return epoch._should_check_val_fx(loop._data_fetcher) and not epoch._should_accumulate()  # noqa: SLF001


def _partial_gradients(trainer: Any) -> dict[str, Any]:
    """What was accumulated for an optimizer step that is still to come; who steps by hand may have some at any time."""
    module = trainer.lightning_module
    if module.automatic_optimization and not trainer.fit_loop._should_accumulate():  # noqa: SLF001
        return {}
    return {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}


def _total(trainer: Any) -> dict[str, int]:
    total = trainer.estimated_stepping_batches
    return {"steps_total": int(total)} if total and total != float("inf") else {}
