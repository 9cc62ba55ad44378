"""Assets beside compute tokens: packages of LLM tokens, and what of a call they pay for."""

import re
from typing import Any

from .report import require

CT = "CT"
_TOKENS = ("available", "held", "debt", "issued", "redeemed", "breakage", "written_off")
_LLM = re.compile(r"llm:[A-Za-z0-9][A-Za-z0-9._-]{0,63}@([0-9]{1,7})/([0-9]{1,7})/([0-9]{1,7})/([0-9]{1,7})")


def asset_of(transfer: dict[str, Any]) -> str:
    """What tokens a transfer moves: of one asset, compute tokens or a package of LLM tokens."""
    found = {asset for account, asset, _ in transfer["postings"] if account.rpartition("/")[2] in _TOKENS} or {CT}
    asset: str = min(found)
    good = len(found) == 1 and (asset == CT or _LLM.fullmatch(asset))
    require(good, f"transfer {transfer['transfer_id']} moves tokens of {sorted(found)}")
    return asset


def paid_by_packages(call: dict[str, Any], counts: tuple[int, int, int, int], name: str) -> list[int]:
    """How many tokens of each kind packages pay for: read again in the order in which they are read and written.

    `counts` and what is returned are of the prompt without what was cached, cached, of the answer without reasoning, reasoning.
    """
    paid = [0, 0, 0, 0]
    for use in call.get("packages", ()):
        found = _LLM.fullmatch(use["asset"])
        require(found, f"{name} is paid for with {use['asset']}")
        prompt, cached, completion, reasoning = use["tokens"]
        mine = [prompt - cached, cached, completion - reasoning, reasoning]
        require(min(mine) >= 0 and any(mine), f"{name} has a part that can't be: {use['tokens']}")
        weights = [int(each) for each in found.groups()] if found else []
        takes = sum(count * weight for count, weight in zip(mine, weights, strict=True))
        lots = sum(amount if amount > 0 else -(2**63) for _, amount in use["lots"])
        fits = use["units"] == takes == lots
        require(fits, f"{name} takes {takes} of {use['asset']}, not {use['units']}, of which lots give {lots}")
        paid = [have + more for have, more in zip(paid, mine, strict=True)]
    in_order = [(counts[kind], paid[kind]) for kind in (1, 0, 3, 2)]
    gaps = (all(part == have for have, part in in_order[:at]) or not part for at, (_, part) in enumerate(in_order))
    right = all(part <= have for have, part in in_order) and all(gaps)
    require(right, f"packages pay for {paid} tokens of {name}, which has {list(counts)}")
    return paid
