"""What Hugging Face's and TRL's trainers sum up between two lines of their log, which their checkpoints leave out.

A run that was evicted between two lines would log means over fewer steps than it says, and count its tokens from nothing.
"""

import json
from pathlib import Path
from typing import Any, Final

_FILE: Final = "fabric_meters.json"
_NUMBERS: Final = ("_total_loss_scalar", "_globalstep_last_logged", "_total_train_tokens")
_LOSS: Final = "_tr_loss"
_MEANS: Final = "_metrics"


class Meters:
    """Those of a trainer alone; where several processes train, each has its own and they begin anew."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer if trainer is not None and trainer.args.world_size == 1 else None
        self.resumed: Path | None = None
        """The checkpoint that the run goes on from."""

    def keep(self, folder: Path) -> None:
        """Write them into a checkpoint's folder."""
        if self._trainer is None or not folder.is_dir():
            return
        known = vars(self._trainer)
        kept: dict[str, Any] = {name: known[name] for name in _NUMBERS if isinstance(known.get(name), int | float)}
        if (loss := known.get(_LOSS)) is not None:
            kept[_LOSS] = float(loss)
        if isinstance(known.get(_MEANS), dict):
            kept[_MEANS] = {mode: dict(means) for mode, means in known[_MEANS].items()}
        (folder / _FILE).write_text(json.dumps(kept, default=float), encoding="utf-8")

    def is_all_done(self, state: Any) -> bool:
        """Whether no step is left; `Trainer` would do one more before it sees that, where its last epoch is not over."""
        is_done = bool(state.global_step >= state.max_steps > 0)
        if is_done and self._trainer is not None and hasattr(self._trainer, "_run_epoch"):
            self._trainer._run_epoch = lambda *_, **__: None  # noqa: SLF001
        return is_done

    def bring_back(self) -> None:
        """Once the trainer has begun, and has set them to nothing."""
        if self._trainer is None or self.resumed is None or not (self.resumed / _FILE).is_file():
            return
        kept = json.loads((self.resumed / _FILE).read_text(encoding="utf-8"))
        known = vars(self._trainer)
        for name in set(_NUMBERS) & kept.keys() & known.keys():
            setattr(self._trainer, name, kept[name])
        if known.get(_LOSS) is not None and _LOSS in kept:
            known[_LOSS].fill_(kept[_LOSS])
        for mode, means in kept.get(_MEANS, {}).items():
            known[_MEANS][mode].update(means)
