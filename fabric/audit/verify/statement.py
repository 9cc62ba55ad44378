"""A statement, line by line, against the export: every transfer of its period, and nothing else."""

from typing import Any

from .report import require
from .strict_json import loads

_WHAT = ("transfer_id", "seq", "at_us", "kind", "ref")
_AMOUNTS = ("amount_uhs", "held_uhs", "cny_microcny", "paid_microcny", "written_off_uhs")


class Statement:
    """What `fabric statement --json` wrote. Its amounts are numbers, or strings of them."""

    def __init__(self, text: str) -> None:
        self.said = loads(text)
        self.account, self.from_us, self.until_us = (self.said[name] for name in ("account_id", "from_us", "until_us"))
        self.lines: list[dict[str, Any]] = []
        self.balances = {"free_uhs": 0, "held_uhs": 0, "debt_uhs": 0}
        self.opening: dict[str, int] | None = None
        self.closing: dict[str, int] | None = None

    def post(self, seq: int, at_us: int, transfers: list[dict[str, Any]]) -> None:
        """Hear of an entry's transfers: it belongs to the period in which it was written."""
        if at_us >= self.from_us and self.opening is None:
            self.opening = dict(self.balances)
        if self.until_us is not None and at_us >= self.until_us and self.closing is None:
            self.closing = dict(self.balances)
        for transfer in transfers:
            moved, line = self._side(transfer)
            if moved is not None and self.opening is not None and self.closing is None:
                self.lines.append({**line, "seq": seq})
            for name, amount in (moved or {}).items():
                self.balances[name] += amount

    def finish(self) -> None:
        """Hold all that was heard against what the statement says."""
        said = [
            {name: line.get(name) for name in _WHAT} | {n: int(line.get(n, 0)) for n in _AMOUNTS}
            for line in self.said["lines"]
        ]
        for number, (told, found) in enumerate(zip(said, self.lines, strict=False), 1):
            require(told == found, f"line {number} of the statement is {told}, and the export has {found}")
        require(len(said) == len(self.lines), f"the statement has {len(said)} lines, and the export {len(self.lines)}")
        for name, kept in (("opening", self.opening), ("closing", self.closing)):
            balances = {each: int(self.said[name].get(each, 0)) for each in self.balances}
            have = self.balances if kept is None else kept
            require(balances == have, f"the statement's {name} is {balances}, and the export's {have}")

    def _side(self, transfer: dict[str, Any]) -> tuple[dict[str, int] | None, dict[str, Any]]:
        """How the account's balances are changed by a transfer, and the line that says so; None where it isn't touched."""
        moved, mine = dict.fromkeys(self.balances, 0), transfer["account_id"] == self.account
        touched, charged = False, 0
        for account, asset, amount in transfer["postings"]:
            name = account.removeprefix(f"cust/{self.account}/")
            touched |= name != account
            if name != account and asset == "CT":
                moved[{"available": "free_uhs", "held": "held_uhs", "debt": "debt_uhs"}[name]] += (
                    -amount if name == "debt" else amount
                )
            charged += amount if mine and asset == "CNY" and account.startswith(("cash/", "receivable/")) else 0
        gained = sum(amount for _, _, amount in transfer["postings"] if amount > 0) if mine else 0
        paid = gained if transfer["kind"] == "payment" else 0
        lost = gained if transfer["kind"] == "write_off" else 0
        worth = moved["free_uhs"] + moved["held_uhs"] - moved["debt_uhs"]
        amounts = zip(_AMOUNTS, (worth, moved["held_uhs"], charged, paid, lost), strict=True)
        line = {name: transfer.get(name) for name in _WHAT} | dict(amounts)
        return (moved if touched or charged or paid or lost else None), line
