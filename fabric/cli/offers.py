"""What bundles and subscriptions give, in words: how much, how often, for how long, and what becomes of the rest."""

from typing import Any, Final

from fabric.cli.llm_packages import amount_of
from fabric.units import format_ct

_TOKENS: Final = "CT"
_USED_UP: Final = {
    "block": "wait for the next",
    "wallet": "other tokens are used",
    "postpaid": "other tokens, then credit",
}


def parts_of(bundle: dict[str, Any]) -> tuple[str, str]:
    """All that a bundle gives, and how long each of it is good: `300 CT (inference) + 600 5g-min`, `9 d + 3 d`."""
    parts = bundle["components"]
    lives = [f"{each['lifetime_days']} d" for each in parts]
    gives = [f"{_amount(each['asset'], each['amount'])}{_only(each.get('restriction'))}" for each in parts]
    return " + ".join(gives), lives[0] if len(set(lives)) == 1 else " + ".join(lives)


def terms_of(subscription: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """What it grants, how often, how long that is good, what is carried over, and what happens when it is used up."""
    days = subscription.get("lifetime_days")
    most = subscription.get("rollover_max_uhs", 0)
    least = subscription.get("rollover_min_uhs", 0)
    asset = subscription.get("asset", _TOKENS)
    carried = f"up to {_amount(asset, most)}" if most else "nothing"
    if most and least:
        carried = f"{_amount(asset, least)} to {_amount(asset, most)}"
    return (
        _amount(asset, subscription["amount_uhs"]).removesuffix(f" {_TOKENS}") + _only(subscription.get("restriction")),
        f"{subscription['cycle_days']} d" if subscription.get("cycle") == "days" else "month",
        f"{days} d" if days else "its cycle",
        carried,
        _USED_UP.get(subscription.get("overflow", ""), subscription.get("overflow", "")),
    )


def _amount(asset: str, amount: int) -> str:
    return f"{format_ct(amount)} CT" if asset == _TOKENS else amount_of(asset, amount) or f"{amount} {asset}"


def _only(restriction: dict[str, Any] | None) -> str:
    """For what it is good, if not for everything."""
    uses = [word for words in (restriction or {}).values() for word in words]
    return f" ({', '.join(uses)} only)" if uses else ""
