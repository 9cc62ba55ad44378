"""Lots of tokens: reckoned again."""

from collections import Counter
from typing import Any

from .assets import CT, asset_of
from .kinds import MOVES, ON_DEBT
from .report import require
from .strict_json import INT64

DAY_US = 86_400_000_000


class Lots:
    """Lots: none gives more than it was granted, and none expires before the time that it was sold for."""

    def __init__(self) -> None:
        self.catalogue: dict[str, Any] = {}
        self.plans: dict[str, str] = {}
        self.left: Counter[str] = Counter()
        self.good_until: dict[str, int] = {}
        self.on_credit: set[str] = set()
        self.assets: dict[str, str] = {}

    def learn(self, event: dict[str, Any]) -> None:
        if event["event"] == "configure":
            self.catalogue = event["catalogue"]
        elif event["event"] == "open_account":
            self.plans[event["account_id"]] = event["plan"]

    def post(self, seq: int, transfer: dict[str, Any], event: dict[str, Any], *, whole: bool) -> None:
        kind, shares, asset = transfer["kind"], transfer["lots"], asset_of(transfer)
        issued = any(account.endswith("/issued") and amount < 0 for account, _, amount in transfer["postings"])
        for lot, amount in shares:
            name = f"in entry {seq} lot {lot} of {transfer['account_id']}"
            lot_of = f"{transfer['account_id']}/{lot}"
            same = self.assets.setdefault(lot_of, asset)
            require(same == asset, f"{name} is of {same}, and {asset} are taken of it")
            if issued and kind != "invoice":
                self.left[lot_of] += amount
                self._sold(lot_of, transfer, event, asset)
            elif kind in ("capture", "expire", "repay", "void"):
                self.left[lot_of] -= amount
                covered = not whole or self.left[lot_of] >= 0 or lot.startswith("refund/")
                require(covered, f"{name} gives more than it had")
            elif kind == "refund":
                self.left[lot_of] += amount
            if kind == "expire":
                early = self.good_until.get(lot_of, 0) - transfer["at_us"]
                require(early <= 0, f"{name} expired {early} µs early")
        moved = sum(amount for _, each, amount in transfer["postings"] if each == asset and amount > 0)
        lots = sum(amount if amount >= 0 else INT64.stop for _, amount in shares)
        self.on_credit |= {transfer["account_id"] for name, _, _ in transfer["postings"] if name.endswith("/debt")}
        exact = issued or (whole and kind in MOVES and transfer["account_id"] not in self.on_credit)
        same = lots <= moved if not exact or kind in ON_DEBT else lots == moved
        require(same, f"in entry {seq} a {kind} moves {moved}, and its lots {lots}")
        if kind in ("top_up", "grant") and event["event"] == kind:
            asked = (event["account_id"], event["amount_uhs"]) == (transfer["account_id"], moved)
            require(asked, f"entry {seq} books {moved}, asked for is {event['amount_uhs']} for {event['account_id']}")

    def _sold(self, lot: str, transfer: dict[str, Any], event: dict[str, Any], asset: str) -> None:
        """The earliest that it may expire, where the export says what it was sold for."""
        said, days = event["event"], None
        if said == "top_up":
            plans = {each["name"]: each["lifetime_days"] for each in self.catalogue.get("plans", ())}
            days = plans.get(self.plans.get(transfer["account_id"]))
        elif said == "buy_bundle":
            sold = (each for each in self.catalogue.get("bundles", ()) if each["name"] == event["bundle"])
            parts = [part for each in sold for part in each["components"] if part["asset"] == asset]
            days = min((part["lifetime_days"] for part in parts), default=None)
            amounts = {part["amount"] for part in parts}
            offered = asset == CT or not amounts or {amount for _, amount in transfer["lots"]} <= amounts
            require(offered, f"{lot} of {asset} is of another amount than {event['bundle']} has: {sorted(amounts)}")
        elif said == "grant":
            self.good_until[lot] = transfer["at_us"] + (event["lifetime_us"] or INT64.stop)
        if days is not None:
            self.good_until[lot] = transfer["at_us"] + days * DAY_US
