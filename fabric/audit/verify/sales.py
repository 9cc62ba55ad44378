"""What is sold, and to whom: reckoned again by the price list that was in force."""

from typing import Any

from .report import require

_UHS_PER_CT = 3_600_000_000
_BOUGHT = {"top_up", "bundle", "sale"}
_NEVER_ISSUE = {
    "tick", "metered", "authorize", "update_hold", "settle_hold", "release_hold", "submit", "lease_started", "lease_finished",
    "lease_removed",
}  # fmt: skip


class Sales:
    """No tokens but for accounts that were opened, and none that were bought but at the price of the time."""

    def __init__(self) -> None:
        self.catalogue: dict[str, Any] = {}
        self.plans: dict[str, str] = {}

    def learn(self, seq: int, event: dict[str, Any]) -> None:
        """Hear of an event that was accepted."""
        if event["event"] == "configure":
            self.catalogue = event["catalogue"]
        elif event["event"] == "open_account":
            self.plans[event["account_id"]] = event["plan"]
            known = not self.catalogue or event["plan"] in self._offers("plans")
            require(known, f"entry {seq} opens account {event['account_id']} on {event['plan']}, which is no plan")

    def post(self, seq: int, event: dict[str, Any], transfers: list[dict[str, Any]]) -> None:
        """Hold an entry's transfers against what it asks for; `event` is {"event": ""} where it continues another."""
        for transfer in transfers:
            owner, kind = transfer["account_id"], transfer["kind"]
            nobodys = not owner and not any(
                each[0].startswith(("cust/", "receivable/")) for each in transfer["postings"]
            )
            known = owner in self.plans or nobodys  # money that came in with nobody's name
            require(known, f"in entry {seq} a {kind} is of account {owner}, which was never opened")
            asked = kind not in (*_BOUGHT, "grant") or event["event"] not in _NEVER_ISSUE
            require(asked, f"in entry {seq} a {event['event']} makes a {kind}, which nobody asked for")
        if event["event"] == "top_up":
            self._top_up(seq, event, [each for each in transfers if each["kind"] == "top_up"])
        elif event["event"] == "buy_bundle":
            self._bundle(seq, event, [each for each in transfers if each["kind"] in _BOUGHT])

    def _offers(self, kind: str) -> dict[str, Any]:
        return {each["name"]: each for each in self.catalogue.get(kind, ())}

    def _top_up(self, seq: int, event: dict[str, Any], bought: list[dict[str, Any]]) -> None:
        plan = self._offers("plans").get(self.plans.get(event["account_id"], ""))
        if not bought or plan is None:
            return
        rate, amount = plan["price_microcny_per_ct"], event["amount_uhs"]
        due, rest = divmod(amount * rate, _UHS_PER_CT)
        due += 2 * rest > _UHS_PER_CT or (2 * rest == _UHS_PER_CT and due % 2)
        due = max(due, 1) if rate else due
        _paid(f"in entry {seq} {amount} µHs on plan {plan['name']}", due if event["channel"] else 0, bought)

    def _bundle(self, seq: int, event: dict[str, Any], bought: list[dict[str, Any]]) -> None:
        offer = self._offers("bundles").get(event["bundle"])
        if not bought or offer is None:
            return
        name = f"in entry {seq} bundle {event['bundle']}"
        _paid(name, offer["price_microcny"] if event["channel"] else 0, bought)
        for asset in {part["asset"] for part in offer["components"]} | {"CT"}:
            given = sum(amount for each in bought for account, what, amount in each["postings"]
                        if what == asset and account.startswith("cust/"))  # fmt: skip
            sold = sum(part["amount"] for part in offer["components"] if part["asset"] == asset)
            counted = asset == "CT" or asset.startswith("llm:")
            require(given == sold or not counted, f"{name} gives {given} of {asset}, and {sold} were offered")


def _paid(name: str, due: int, bought: list[dict[str, Any]]) -> None:
    """Money that came in, or that is owed from now on, for what was bought."""
    legs = [leg for each in bought for leg in each["postings"] if leg[0].startswith(("cash/", "receivable/"))]
    paid = sum(amount for _, _, amount in legs)
    require(paid == due, f"{name} costs {due} by the price list, and {paid} (10⁻⁶ CNY) were taken")
