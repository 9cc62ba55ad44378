"""Where a gang of which each rank has the whole state keeps it: snapshots are rank 0's, the last one is whoever's lives."""

from collections.abc import Callable
from typing import Any

from fabric.checkpoints import Checkpoints
from fabric.checkpoints.directory import Buffer
from training.gang.members import Gang
from training.state.frozen import Frozen
from training.state.vault import Kept


class GangVault:
    """One rank saves for all."""

    is_kept = True

    def __init__(
        self, gang: Gang, checkpoints: Checkpoints, *, is_ending: Callable[[], bool], patience_s: Callable[[], float]
    ) -> None:
        """Keep it in `checkpoints`, which are all ranks'.

        Args:
            gang: this rank's.
            checkpoints: of one epoch and attempt on all ranks.
            is_ending: whether what is saved from now on is the last of this attempt.
            patience_s: how long one rank may take to save before the next one does.
        """
        self._gang, self._inner, self._checkpoints = gang, Kept(checkpoints), checkpoints
        self._is_ending, self._patience_s = is_ending, patience_s

    def save(self, data: Buffer, *, step: int, frozen: Frozen | None = None) -> None:
        if self._is_ending():
            self._gang.keep(
                step,
                save=lambda: self._inner.save(data, step=step, frozen=frozen),
                newest=self._newest,
                patience_s=self._patience_s(),
            )
        elif self._gang.rank == 0:
            self._inner.save(data, step=step, frozen=frozen)

    def holds(self, digest: str) -> bool:
        return self._inner.holds(digest)

    def load(self) -> bytes | None:
        return self._inner.load()

    def joined(self, objects: Any, state: Any) -> Any:
        return self._inner.joined(objects, state)

    def _newest(self) -> int | None:
        found = self._checkpoints.newest(verify=False)
        return None if found is None else found.step
