"""Which kinds of transfers there are, and which accounts each may book on."""

PLACES = {
    "cust": ("available", "held", "debt"),
    "op": ("issued", "redeemed", "breakage", "written_off", "revenue", "rounding"),
}
PLACES |= dict.fromkeys(("receivable", "cash", "suspense"), ("",))
ISSUES = {"top_up", "bundle", "subscription", "grant"}
MOVES = {"hold", "release", "capture", "refund", "expire", "void"}
MONEY = {
    "repay",
    "write_off",
    "invoice",
    "credit_note",
    "sale",
    "payment",
    "pay_out",
    "charge_back",
    "reinstate",
    "suspense",
}
KINDS, ON_DEBT = ISSUES | MOVES | MONEY, {"invoice", "reinstate"}
BY = {("redeemed", True): {"capture", "write_off"}, ("redeemed", False): {"refund"}, ("breakage", True): {"expire"},
       ("issued", False): ISSUES | ON_DEBT}  # fmt: skip
