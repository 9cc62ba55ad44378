"""Whether something is left out: an account's transfers are numbered, each by the next number, wherever they are shown."""

from collections import defaultdict
from typing import Any

from .report import require


class Numbers:
    """The number stands in the entry, under the signed root. Transfers of before they were numbered have none."""

    def __init__(self) -> None:
        self.last: defaultdict[str, int] = defaultdict(int)

    def post(self, seq: int, transfers: list[dict[str, Any]]) -> None:
        """Look at an entry's transfers."""
        for transfer in transfers:
            owner, number = transfer["account_id"], transfer.get("number", 0)
            before = self.last[owner]
            follows = number == before + 1 if number or before else True
            left_out = f"transfers {before + 1} to {number - 1} of {owner} are left out"
            require(follows, f"entry {seq} has transfer {number} of {owner} after {before}: {left_out}")
            self.last[owner] = number
