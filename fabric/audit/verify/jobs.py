"""Jobs: what was taken for each is what its charging records say, to the µHs."""

from collections import Counter
from typing import Any

from .report import require


class Jobs:
    """A job's holds are called `<job>#<number>`. What they paid, less what came back, is charged by records."""

    def __init__(self) -> None:
        self.taken: Counter[tuple[str, str]] = Counter()
        self.charged: Counter[tuple[str, str]] = Counter()
        self.holds: dict[tuple[str, str], str] = {}
        self.changed: set[tuple[str, str]] = set()  # by the decision in hand, which may go on in the next entry

    def post(self, entry: dict[str, Any]) -> None:
        if entry.get("continues") is None:
            self.look()
        event = entry["event"] or {"event": ""}
        if event["event"] == "submit":
            self.holds.setdefault((event["account_id"], event["job_id"]), "")
        for transfer in entry["transfers"]:
            job = transfer["account_id"], transfer["ref"].rpartition("#")[0]
            if job in self.holds and transfer["kind"] in ("capture", "refund", "hold"):
                self.holds[job] = transfer["ref"]
                self.taken[job] += sum(
                    amount for account, _, amount in transfer["postings"] if account.endswith("/redeemed")
                )
        for record in (each for each in entry["records"] if not each.get("model")):
            job = record["account_id"], record["job_id"]
            self.charged[job] += record["charged_uhs"]
            self.changed.add(job)

    def look(self) -> None:
        """A lease's record is written when all of it has been taken."""
        for job in self.changed:
            self._same(job)
        self.changed.clear()

    def finish(self, ended: set[str]) -> None:
        """What a running lease has paid so far has no record yet; that of a job whose hold has ended has one."""
        self.look()
        for job, hold in self.holds.items():
            if hold in ended:
                self._same(job)

    def _same(self, job: tuple[str, str]) -> None:
        taken, charged = self.taken[job], self.charged[job]
        require(taken == charged, f"for job {job[1]} {taken} µHs were taken, and its records charge {charged}")
