"""What a session asks of the other ranks of its job, and a job that has none. Loads nothing that one process doesn't need."""

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fabric import context, launched
from fabric.errors import FabricError
from training.loop.stepping import Alone, Way
from training.state.boundary import Boundary
from training.state.registry import Registry
from training.state.saver import Saver
from training.state.stopping import Stop
from training.state.vault import Kept, Vault, opened


class Peers(Protocol):
    """The gang of a run, as its loop sees it."""

    @property
    def share(self) -> Callable[[int, int], range] | None:
        """Which of a step's micro-batches are this process's, from the step and how many it has; None = all."""

    @property
    def takes_snapshots(self) -> bool:
        """Whether this rank saves between stops."""

    def vault(
        self, job: context.Context, directory: str | os.PathLike[str] | None, *, number: int, state: Registry
    ) -> Vault:
        """Where checkpoints of the job's session of that number go, of what is tracked."""

    def saver(self, state: Registry, boundary: Boundary, vault: Vault) -> Saver:
        """What saves there."""

    def stop(self, own: Stop, *, save_s: Callable[[], float | None]) -> Stop:
        """The wish to stop that counts, from this process's own; `save_s` tells how long a save takes."""

    def way(self, state: Registry, ranks: Any, *, reproducible: str, workers: int) -> Way:
        """How the gradients of the tracked models come about, for `training.loop.virtual.VirtualRanks`."""

    def tracks(self, state: Registry) -> dict[str, Any]:
        """What a checkpoint must bring back besides what the script named, by name."""

    def conclude(self) -> Callable[[], None] | None:
        """After the last step of all: what is still to be done to the weights, if anything."""

    def learned(self) -> dict[str, Any]:
        """What the gang knows by now of its devices, as plain values: kept with a checkpoint."""

    def check_resumed(self, step: int, learned: Mapping[str, Any]) -> None:
        """`Conflict` if the ranks would go on from different steps; `learned` is what came with the checkpoint."""

    def begin_step(self) -> None:
        """A step begins."""

    def end_step(self, done: int) -> None:
        """A step is over, `done` in all."""

    def end(self) -> None:
        """What is saved from now on is the last of this attempt."""

    def is_loss(self, error: FabricError) -> bool:
        """Whether it says that a peer is gone, so that this rank's last boundary is worth keeping."""

    def find_lost(self) -> bool:
        """After an error: whether it comes of the loss of a peer of which others hold a copy."""

    def close(self) -> None:
        """Leave."""


class Nobody:
    """A process alone."""

    share: Callable[[int, int], range] | None = None
    takes_snapshots = True

    def vault(
        self, job: context.Context, directory: str | os.PathLike[str] | None, *, number: int, state: Registry
    ) -> Vault:
        found = opened(job, directory, number=number)
        if not isinstance(found, Kept) or not state.is_sharded:
            return found
        from training.gang.members import Gang, Seat  # noqa: PLC0415  # needs torch
        from training.gang.part_vault import Parts  # noqa: PLC0415

        return Parts(Gang(Seat(), timeout_s=0.0), found.checkpoints)

    def saver(self, state: Registry, boundary: Boundary, vault: Vault) -> Saver:
        return saver_of(state, boundary, vault, is_ending=lambda: True)

    def stop(self, own: Stop, *, save_s: Callable[[], float | None]) -> Stop:  # noqa: ARG002
        return own

    def way(self, state: Registry, ranks: Any, *, reproducible: str, workers: int) -> Way:  # noqa: ARG002
        """One micro-batch after the other, in the order of additions that a gang would have."""
        modules = state.modules()
        if ranks.count == 1 or not modules or reproducible != "bitwise":
            return Alone()
        from training.gang.folded import Folded  # noqa: PLC0415  # needs torch

        return Folded(modules)

    def tracks(self, state: Registry) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def conclude(self) -> Callable[[], None] | None:
        """Nobody to meet."""
        return None

    def learned(self) -> dict[str, Any]:
        return {}

    def check_resumed(self, step: int, learned: Mapping[str, Any]) -> None:
        """With itself."""

    def begin_step(self) -> None:
        """Nobody to tell."""

    def end_step(self, done: int) -> None:
        """Nobody to ask."""

    def end(self) -> None:
        """Nobody waits."""

    def is_loss(self, error: FabricError) -> bool:  # noqa: ARG002
        return False

    def find_lost(self) -> bool:
        return False

    def close(self) -> None:
        """Nobody to leave."""


def saver_of(state: Registry, boundary: Boundary, vault: Vault, *, is_ending: Callable[[], bool]) -> Saver:
    """What saves there: each rank its part, where the vault is one of parts."""
    if not hasattr(vault, "gang"):
        return Saver(state, boundary, vault)
    from training.gang.part_vault import Parts  # noqa: PLC0415  # needs torch
    from training.gang.sharded_saver import ShardedSaver  # noqa: PLC0415

    assert isinstance(vault, Parts)
    return ShardedSaver(state, boundary, vault, is_ending=is_ending)


def joined(job: context.Context, *, mix: str | None, peer_copies: bool | str | None = None) -> Peers:
    """The ranks that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT tell of, once all have come."""
    if not job.job_id:
        launched.adopt(os.environ)
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return Nobody()
    from training.gang.session import Together  # noqa: PLC0415  # needs torch

    return Together.join(job, mix=mix, peer_copies=peer_copies)
