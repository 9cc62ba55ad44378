"""What a check has found, and why it stops: the first thing that is wrong."""

from collections import Counter
from dataclasses import dataclass, field


class Wrong(Exception):
    """A reason why the export proves nothing, and its kind, as `Report.code` has it."""

    def __init__(self, why: str, code: str = "not_verified") -> None:
        super().__init__(why)
        self.code = code


@dataclass
class Report:
    """What was found. `ok` only if every check passed."""

    problem: str = ""
    code: str = ""
    """Of the problem: no_export | export_cut_short | another_key | no_policy | not_witnessed | another_history |
    not_verified"""
    line: int = 0
    """Of the problem: where it was met; 0 = in the whole."""
    origin: str = ""
    key: str = ""
    account: str | None = None
    size: int = 0
    root: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    trusted: bool = False
    """Whether it was signed with the key that the reader trusts, and not only with the one that it names itself."""

    @property
    def ok(self) -> bool:
        return not self.problem

    def __str__(self) -> str:
        if not self.ok:
            return f"NOT VERIFIED: {f'line {self.line}: ' if self.line else ''}{self.problem}"
        found = ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
        notes = "".join(f"\n  note    {note}" for note in self.notes)
        signed = f"  signed  {self.size} entries, root {self.root}, key {self.key}"
        said = "VERIFIED" if self.trusted else "WHOLE, BUT NOT VERIFIED: no trusted key was given,"
        return f"{said} {self.origin} {self.account or ''}\n{signed}\n  found   {found}{notes}"


def require(holds: object, otherwise: str, code: str = "not_verified") -> None:
    if not holds:
        raise Wrong(otherwise, code)
