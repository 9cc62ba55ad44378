"""What every check of a file does: whose key it trusts, and what it reports."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from .notes import opened, size_of
from .policy import Policy
from .report import Report, Wrong, require


class Check:
    """A file that somebody signed, against the key that its reader trusts and an older checkpoint that was kept."""

    def __init__(
        self,
        report: Report,
        trusted_key: str | None,
        witnessed: str | None,
        policy: str | None = None,
        statement: str | None = None,
    ) -> None:
        self.report, self.trusted_key, self.policy_text = report, trusted_key, policy
        self.policy: Policy | None = None
        self.statement = statement
        self.witnessed = witnessed.rstrip("\n") + "\n" if witnessed else None
        report.trusted = bool(trusted_key)

    def run(self, lines: Iterable[str]) -> None:
        raise NotImplementedError

    def _trust(self, key: str) -> None:
        trusted = self.trusted_key.strip() if self.trusted_key else key
        require(key == trusted, f"it names the key {key}, not the trusted one", "another_key")
        self.report.key = key
        self.policy = Policy(self.policy_text) if self.policy_text else None
        if self.policy and self.policy.logs:
            require(key in self.policy.logs, f"it names the key {key}, which is no log of the policy", "another_key")
            self.report.trusted = True
        told = self.report.trusted or "compare the key with the one the operator publishes: --key" in self.report.notes
        self.report.notes += [] if told else ["compare the key with the one the operator publishes: --key"]

    def _quorum(self, note: str) -> None:
        """What the policy asks for of witnesses: of this checkpoint, or of the older one that was kept."""
        for seen in [note, *([self.witnessed] if self.witnessed else [])] if self.policy else []:
            cosigned = self.policy.cosigned(seen) if self.policy else []
            if self.policy and self.policy.met(cosigned):
                by = ", ".join(cosigned) or "none, as the policy has it"
                self.report.notes.append(f"the first {size_of(seen)} entries are as witnesses saw them: {by}")
                return
        require(
            not self.policy, "the witnesses that the policy asks for have not cosigned its checkpoint", "not_witnessed"
        )

    def _open(self, note: str) -> tuple[int, bytes]:
        return opened(note, key=self.report.key, origin=self.report.origin)


def reported(check: Check, lines: Iterable[str]) -> Report:
    """What the check finds, and never an exception: whatever stands in the file."""
    report = check.report
    try:
        check.run(lines)
    except Wrong as wrong:
        report.problem, report.code = str(wrong), wrong.code
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        report.problem, report.code = f"the export is malformed: {type(error).__name__}: {error}", "not_verified"
    return report


class Lines:
    """A file's lines, read anew each time: a file may be larger than the memory."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __iter__(self) -> Iterator[str]:
        with self.file.open(encoding="utf-8", newline="\n") as opened_file:
            try:
                yield from opened_file
            except UnicodeDecodeError as error:
                raise Wrong(f"it is no text: {error.reason}", "no_export") from None
