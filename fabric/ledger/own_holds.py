"""The holds that customers keep themselves, by account: how many stand, and which are over, oldest first.

Whoever has one token can make holds of a millionth of it as fast as the door lets them, and each is remembered when it is
over, so that late words can be answered. So there is a bound for what stands, and of what is over an account's oldest are
forgotten sooner. Derived from the vault's holds and never encoded. The holds of jobs and of an operator's gateways aren't here:
a job answers for its own, and a gateway's are as many as it has slices.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from fabric.ledger.holds import Hold, HoldState

OWN: Final = "own:"
"""How the names of these holds begin."""
STANDING_MAX: Final = 10_000
"""Of one account, open or set aside for a report."""
OVER_MAX: Final = 32_768
"""Of one account, that have ended or were given up; as many of each."""


class OwnHolds:
    """Kept up by the vault, which says whenever a hold begins, ends or is forgotten."""

    def __init__(self, standing: Iterable[Mapping[str, Hold]], over: Iterable[Mapping[str, Hold]]) -> None:
        """From the holds of a vault by name, those that are over in the order in which they ended."""
        self.standing: Counter[str] = Counter()
        self.over: dict[tuple[str, bool], dict[str, None]] = {}
        for hold in (hold for holds in standing for hold in holds.values()):
            self.began(hold)
        for hold in (hold for holds in over for hold in holds.values()):
            if hold.hold_id.startswith(OWN):
                self.over.setdefault(_place(hold), {})[hold.hold_id] = None

    def began(self, hold: Hold) -> None:
        """It stands from now on."""
        if hold.hold_id.startswith(OWN):
            self.standing[hold.account_id] += 1

    def ended(self, hold: Hold, *, stood: bool) -> Iterator[str]:
        """It is over from now on; the names of those of its account that are forgotten for it.

        Args:
            hold: with the state that it ended in.
            stood: it did until now; else it was given up before, and is settled after all.
        """
        if not hold.hold_id.startswith(OWN):
            return
        if stood:
            self.standing[hold.account_id] -= 1
            if not self.standing[hold.account_id]:
                del self.standing[hold.account_id]
        else:
            self._drop((hold.account_id, True), hold.hold_id)
        place = _place(hold)
        names = self.over.setdefault(place, {})
        names[hold.hold_id] = None
        while len(names) > OVER_MAX:
            oldest = next(iter(names))
            del names[oldest]
            yield oldest

    def forgotten(self, hold: Hold) -> None:
        """It was over for long enough."""
        if hold.hold_id.startswith(OWN):
            self._drop(_place(hold), hold.hold_id)

    def view(self) -> dict[str, object]:
        """All of it, to be compared."""
        over = {f"{account_id}/{given_up}": list(names) for (account_id, given_up), names in self.over.items()}
        return {"standing": dict(self.standing), "over": over}

    def _drop(self, place: tuple[str, bool], hold_id: str) -> None:
        names = self.over.get(place, {})
        names.pop(hold_id, None)
        if not names:
            self.over.pop(place, None)


def _place(hold: Hold) -> tuple[str, bool]:
    return hold.account_id, hold.state is HoldState.EXPIRED
