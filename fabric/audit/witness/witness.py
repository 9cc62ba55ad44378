"""The witness itself: which checkpoints it cosigns, and what it answers to the others."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fabric.audit.verify.notes import opened, public_key, signed
from fabric.audit.verify.report import Wrong
from fabric.audit.verify.tree import EMPTY, consistent
from fabric.audit.witness.cosigner import Cosigner
from fabric.audit.witness.kept import Kept
from fabric.audit.witness.requests import Asked, read
from fabric.errors import InvalidConfig

SIZE_TYPE = "text/x.tlog.size"
_LOGS_KEY = b"\x01"


@dataclass(frozen=True)
class Answer:
    """An HTTP status and a body."""

    status: int
    body: str
    content_type: str = "text/plain; charset=utf-8"


class Witness:
    """Cosigns checkpoints of some logs, each only if it goes on from the one before. May be asked by many threads at once."""

    def __init__(self, cosigner: Cosigner, logs: Iterable[str], kept: Kept, say: Callable[[str], None]) -> None:
        """Watch these logs.

        Args:
            cosigner: its own key.
            logs: their verifier keys; the name of a key is the origin of its log, and a log may have several.
            kept: what it has cosigned before.
            say: is told of what others should look at: two histories of one log, a disk that doesn't keep.

        Raises:
            InvalidConfig: a key is none, or what was kept of a log isn't what that log signed: it would begin anew, and may
                have cosigned another history.
        """
        self.cosigner, self._kept, self._say = cosigner, kept, say
        self._turn = threading.Lock()
        self.logs: dict[str, list[str]] = {}
        for key in logs:
            self.logs.setdefault(key.partition("+")[0], []).append(_checked(key))
        self._newest = {origin: self._read(origin) for origin in self.logs}

    def add_checkpoint(self, body: bytes, *, at_s: int) -> Answer:
        """Answer a request to cosign; `at_s` is now, in seconds since the epoch."""
        try:
            asked = read(body)
        except ValueError as error:
            return Answer(400, f"{error}\n")
        if asked.origin not in self.logs:
            return Answer(404, f"this witness doesn't know the log {asked.origin!r}\n")
        if not self._signatures(asked):
            return Answer(403, "no key that is known for this log has signed the checkpoint\n")
        if asked.old > asked.size:
            return Answer(400, f"the old size {asked.old} is beyond the checkpoint's, {asked.size}\n")
        with self._turn:
            return self._extended(asked, at_s)

    def _extended(self, asked: Asked, at_s: int) -> Answer:
        size, root = self._newest[asked.origin]
        if asked.old != size:
            return Answer(409, f"{size}\n", SIZE_TYPE)
        if asked.size == size and asked.root != root:
            self._contradiction(asked, f"another root of {size} entries was cosigned before: {root.hex()}")
            return Answer(409, f"{size}\n", SIZE_TYPE)
        try:
            grown = _grown(asked, root)
        except Wrong as wrong:
            return Answer(422, f"{wrong}\n")
        if not grown:
            self._contradiction(asked, f"its proof does not lead on from the {size} entries that were cosigned before")
            return Answer(422, "the proof does not lead from the tree that was cosigned before to this one\n")
        try:
            self._kept.write(asked.origin, f"{asked.text}\n{self._signatures(asked)}")
        except OSError as error:
            self._say(f"{asked.origin}: can't keep its checkpoint, so it is not cosigned: {error}")
            return Answer(500, "the checkpoint can't be kept\n")
        self._newest[asked.origin] = asked.size, asked.root
        return Answer(200, self.cosigner.cosign(asked.text, at_s=at_s))

    def _signatures(self, asked: Asked) -> str:
        """The signature lines of known keys of this log, each of them right."""
        lines = asked.note.rpartition("\n\n")[2].split("\n")
        found = []
        for line in (each for each in lines if each.startswith(f"\u2014 {asked.origin} ")):
            note = f"{asked.text}\n{line}\n"
            found += [line for key in self.logs[asked.origin] if _is_signed(note, key)]
        return "".join(f"{line}\n" for line in dict.fromkeys(found))

    def _contradiction(self, asked: Asked, why: str) -> None:
        self._say(f"{asked.origin}: {why}. The log signed: {asked.text!r} {self._signatures(asked)!r}")

    def _read(self, origin: str) -> tuple[int, bytes]:
        note = self._kept.read(origin)
        for key in self.logs[origin] if note else ():
            if _is_signed(note, key):
                return opened(note, key=key, origin=origin)
        if note:
            where = f"what was kept of {origin} in {self._kept.folder}"
            raise InvalidConfig(
                f"{where} is no checkpoint that one of its keys signed: restore it from a backup", log=origin
            )
        return 0, EMPTY


def _checked(key: str) -> str:
    try:
        public_key(key, _LOGS_KEY)
    except (Wrong, ValueError, IndexError) as error:
        raise InvalidConfig(f"{key!r} is no key of a log: {error}", log=key) from None
    return key


def _grown(asked: Asked, root: bytes) -> bool:
    """Whether the proof shows it. Raises Wrong where it is too long or too short for any."""
    if asked.old == 0:
        return not asked.proof and (asked.size > 0 or asked.root == EMPTY)
    return consistent(asked.old, asked.size, asked.proof, root) == (root, asked.root)


def _is_signed(note: str, key: str) -> bool:
    try:
        signed(note, key=key, what="checkpoint")
    except (Wrong, ValueError):
        return False
    return True
