"""Sweeping: what is due happens, dated when it fell due.

Availability filters on time, so sweeping late never lets anybody spend what has expired; it is only when breakage is
booked and lapsed holds are given back.
"""

from typing import Final

from fabric.ledger.expiry import HOLD
from fabric.ledger.holds import Hold, HoldState
from fabric.ledger.vault import Vault

_DAY_US: Final = 86_400_000_000
REMEMBER_ENDED_US: Final = _DAY_US
"""How long a settled or released hold can still repeat its last answer."""
REMEMBER_LAPSED_US: Final = 30 * _DAY_US
"""How long an expired hold can still be settled late."""


class Sweeping(Vault, kw_only=True, dict=True):
    """A vault that keeps time when it is told what time it is."""

    def sweep(self, *, now_us: int) -> None:
        """Let holds lapse and lots expire that are due by now, each dated when it fell due; doing it again is nothing."""
        while (due := self._deadlines.pop(now_us)) is not None:
            at_us, kind, name = due
            if kind == HOLD:
                hold = self.holds[name]
                hold.lapsed_uhs = hold.held_uhs
                self._free(self.accounts[hold.account_id], hold, now_us=at_us, flags=("lapsed",))
                self._end(hold, state=HoldState.EXPIRED, at_us=at_us)
                self._just_lapsed.append(hold)
            elif self.lots[name].free_uhs:
                self._break(self.lots[name], at_us=at_us)
        _forget(self.ended, before_us=now_us - REMEMBER_ENDED_US)
        _forget(self.lapsed, before_us=now_us - REMEMBER_LAPSED_US)

    def take_lapsed(self) -> list[Hold]:
        """The holds that have lapsed since the last call, for whoever keeps count of them elsewhere."""
        lapsed, self._just_lapsed = self._just_lapsed, []
        return lapsed

    def retire(self, lot_id: str, *, now_us: int) -> None:
        """Let what is free of a lot expire before its time: something else stands in its place."""
        if self.lots[lot_id].free_uhs:
            self._break(self.lots[lot_id], at_us=now_us)

    def next_due_us(self) -> int | None:
        """When the next hold lapses or lot expires."""
        return self._deadlines.next_us()

    def _catch_up(self, now_us: int) -> None:
        heap = self._deadlines.heap
        if heap and heap[0][0] <= now_us:
            self.sweep(now_us=now_us)


def _forget(holds: dict[str, Hold], *, before_us: int) -> None:
    """Drop the oldest; they stand in the order in which they ended."""
    gone = []
    for hold_id, hold in holds.items():
        if hold.ended_at_us is None or hold.ended_at_us >= before_us:
            break
        gone.append(hold_id)
    for hold_id in gone:
        del holds[hold_id]
