"""Two exports of one log held against each other: what the earlier one has is in the later one, unchanged."""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from .report import Wrong, require
from .strict_json import loads

_CODE = "another_history"


@dataclass
class View:
    """An export whose seal is right: whose it is, and of which tree."""

    lines: Iterable[str]
    count: int
    account: str | None
    size: int
    root: str

    def entries(self) -> Iterator[tuple[int, bytes, bool]]:
        """Number, leaf hash and whether its content is shown, of each entry in order."""
        before = -1
        for text in islice(self.lines, 1, self.count - 1):
            line = loads(text.removesuffix("\n"))
            if "consistent_since" in line:
                continue
            seq = line["seq"]
            require(before < seq < self.size, f"entry {seq} is out of order or beyond the signed tree")
            before, shown = seq, "leaf" in line
            leaf = base64.b64decode(line["leaf"]) if shown else b""
            yield seq, hashlib.sha256(b"\0" + leaf).digest() if shown else bytes.fromhex(line["leaf_hash"]), shown

    def has_all_of(self, other: "View") -> bool:
        """Whether every entry that the other shows must be here too, where this tree has it."""
        return self.account is None or self.account == other.account


def compare(now: View, before: View) -> Counter[str]:
    """Hold a later export against an earlier one, of the same log and of any accounts; how many entries of what kind are the same.

    Raises:
        Wrong: they can't be of one history, with the first entry by which that shows. Code `another_history`.
    """
    one_view = now.has_all_of(before) or before.has_all_of(now)
    two = "" if one_view else " It is a split view: two customers are shown two histories"
    cut = f"the earlier export is of {before.size} entries, and this one of {now.size}: the log was cut, or they are given the wrong way round"
    require(before.size <= now.size, cut, _CODE)
    found, earlier, later = Counter[str](), before.entries(), now.entries()
    old, new = next(earlier, None), next(later, None)
    while old is not None or (new is not None and new[0] < before.size):
        seq = min(each[0] for each in (old, new) if each is not None)
        if new is None or new[0] > seq:
            _missing(now, before, seq)
        elif old is None or old[0] > seq:
            inserted = (
                f"entry {seq} was inserted: the earlier export of the first {before.size} entries does not have it"
            )
            require(not before.has_all_of(now), inserted, _CODE)
        else:
            rewritten = f"entry {seq} was rewritten: it is another one in the earlier export.{two}"
            require(old[1] == new[1], rewritten, _CODE)
            found["entries as in the earlier export"] += 1
            found["of these now withheld"] += old[2] and not new[2] and now.account == before.account
        old = next(earlier, None) if old is not None and old[0] == seq else old
        new = next(later, None) if new is not None and new[0] == seq else new
    if before.size == now.size and before.root != now.root:
        same = f"{now.size} entries are signed with two roots, {before.root} and {now.root}."
        raise Wrong(f"{same} It is a split view: two histories are shown", _CODE)
    return +found


def _missing(now: View, before: View, seq: int) -> None:
    lost = f"entry {seq} is missing: the earlier export has it"
    require(not now.has_all_of(before), lost, _CODE)
