"""When a folder that a command writes to is worth a checkpoint, and how one is made of it while the command goes on.

It does not know who writes, nor how these are made to stand still.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from fabric.checkpoints.checkpoints import Checkpoints
from fabric.checkpoints.cut import Cut
from fabric.checkpoints.folders import committed, opened, packed, parts, taken
from fabric.checkpoints.holes import extents_of
from fabric.checkpoints.listing import SPARSE, Entry, entries_of
from fabric.checkpoints.records import Manifest
from fabric.errors import Conflict

_SENT_FROM: Final = 10_000_000
"""Files that are sent before the folder is listed are counted from here on; more than that no folder has."""


@dataclass(slots=True)
class Watch:
    """Tells when a folder is worth a commit: it has changed, and nobody has written to it for a while."""

    folder: Path
    quiet_s: float = 2.0
    _committed: tuple[Entry, ...] = ()
    _seen: tuple[Entry, ...] = ()
    _since: float = 0.0

    def is_due(self) -> bool:
        """Look at the folder: true when it has been the same for `quiet_s`, and isn't what was committed last."""
        now, found = time.monotonic(), entries_of(self.folder)[0]
        if found != self._seen:
            self._seen, self._since = found, now
        return found not in {self._committed, ()} and now - self._since >= self.quiet_s

    def changed(self) -> bool:
        """Whether it holds something that isn't what was committed last, quiet or not."""
        return entries_of(self.folder)[0] not in {self._committed, ()}

    @property
    def is_unsaved(self) -> bool:
        """Whether the last look has shown something that isn't what was committed last."""
        return self._seen not in {self._committed, ()}

    def commit(self, checkpoints: Checkpoints, *, step: int = 0, meta: Mapping[str, Any] | None = None) -> Manifest:
        """`commit_directory`; what is written to the folder from its reading on counts as changed."""
        manifest, self._committed = taken(checkpoints, self.folder, step=step, meta=meta)
        return manifest

    def commit_quiet(self, checkpoints: Checkpoints, *, step: int = 0) -> Manifest:
        """Commit what the folder held when it was found to be due.

        Raises:
            Conflict: somebody has begun to write since (`directory_busy`): then there is no telling what is half written. Or
                this attempt is fenced.
            Unavailable: the store refuses; what was committed before is untouched.
        """
        manifest, self._committed = taken(checkpoints, self.folder, step=step, seen=self._seen)
        return manifest

    def begin_cut(self, checkpoints: Checkpoints, *, beside: Path, go_on: Callable[[], bool]) -> "DraftedCut":
        """Copy the folder while others write; `finish_cut` while they stand still, then `commit_cut`, or `abandon`.

        Raises:
            Unavailable: there is no room for it (`node_full`), or the store refuses.
            Conflict: it is given up.
        """
        drafted = DraftedCut(checkpoints, self.folder, beside=beside, go_on=go_on)
        try:
            drafted.cut.copy()
        except BaseException:
            drafted.abandon()
            raise
        return drafted

    def commit_cut(self, drafted: "DraftedCut", *, step: int = 0) -> Manifest:
        """Commit what the folder held when the cut was finished: durable on return.

        Raises:
            Conflict: this attempt is fenced.
            Unavailable: the store refuses; what was committed before is untouched.
        """
        manifest = drafted.commit(step=step)
        self._committed = drafted.cut.entries
        return manifest

    def restored(self) -> None:
        """The folder is what was committed last, and nobody has begun to write to it."""
        self._committed = entries_of(self.folder)[0]


class DraftedCut:
    """A cut of a folder, and the checkpoint that it will be."""

    def __init__(self, checkpoints: Checkpoints, folder: Path, *, beside: Path, go_on: Callable[[], bool]) -> None:
        """Nothing is copied yet; see `Cut` for `beside` and `go_on`."""
        self.cut = Cut(folder, beside=beside, go_on=go_on, send=self._send)
        self._checkpoints, self._go_on = checkpoints, go_on
        self._draft = checkpoints.begin(0)
        self._count = 0

    def commit(self, *, step: int) -> Manifest:
        """Make it the newest checkpoint."""
        self._draft.step = step
        sent = self.cut.sent
        names = {entry.shard for entry in sent.values()}
        for shard in self._draft.shards:
            if shard.name.rpartition("-")[0] not in names:
                self._draft.drop(shard.name)
        placed = packed(self._draft, self.cut.place, self.cut.entries, sent=sent)
        return committed(self._checkpoints, self._draft, placed, self.cut.left_out)

    def abandon(self) -> None:
        """Forget it, and what was sent."""
        self._checkpoints.abandon(self._draft)

    def _send(self, path: Path, entry: Entry) -> Entry:
        """Put a file in parts, between which it can be given up."""
        name, self._count = f"{SPARSE}{_SENT_FROM + self._count:08d}", self._count + 1
        with opened(path) as file:
            extents = extents_of(file.fileno(), entry.size)
            for number, part in enumerate(parts(file, extents, path)):
                if not self._go_on():
                    raise Conflict("the copy was given up", code="directory_busy")
                self._draft.put(f"{name}-{number:06d}", part)
        return msgspec.structs.replace(entry, shard=name, extents=extents)
