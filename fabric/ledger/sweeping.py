"""Sweeping: what is due happens, dated when it fell due.

A hold whose validity is over lapses: what it holds stays set aside, and can't be spent, until its client reports or its
settlement window ends. Only then is it free again. So a client that was cut off finds covered what it used.

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
"""How long a hold that was given up can still be settled, from what is free then."""
SETTLEMENT_WINDOW_US: Final = _DAY_US
"""How long what a lapsed hold holds stays set aside, unless the operator says otherwise."""


class Sweeping(Vault, kw_only=True, dict=True):
    """A vault that keeps time when it is told what time it is."""

    settlement_window_us: int = SETTLEMENT_WINDOW_US
    """Of holds that lapse from now on."""

    def sweep(self, *, now_us: int) -> None:
        """Let holds lapse and lots expire that are due by now, each dated when it fell due; doing it again is nothing."""
        while (due := self._deadlines.pop(now_us)) is not None:
            at_us, kind, name = due
            if kind == HOLD:
                if name in self.holds:
                    self._lapse(self.holds[name], at_us=at_us)
                else:
                    self._give_up(self.lapsed[name], at_us=at_us)
            elif self.lots[name].free_uhs:
                self._break(self.lots[name], at_us=at_us)
        _forget(self.ended, before_us=now_us - REMEMBER_ENDED_US)
        _forget(self.expired, before_us=now_us - REMEMBER_LAPSED_US)

    def take_given_up(self) -> list[Hold]:
        """The holds that were given up since the last call, for whoever keeps count of them elsewhere."""
        given_up, self._just_given_up = self._just_given_up, []
        return given_up

    def retire(self, lot_id: str, *, now_us: int) -> None:
        """Let what is free of a lot expire before its time: something else stands in its place."""
        if self.lots[lot_id].free_uhs:
            self._break(self.lots[lot_id], at_us=now_us)

    def next_due_us(self) -> int | None:
        """When the next hold lapses or lot expires."""
        return self._deadlines.next_us()

    def _lapse(self, hold: Hold, *, at_us: int) -> None:
        del self.holds[hold.hold_id]
        self.lapsed[hold.hold_id] = hold
        hold.state, hold.settle_by_us = HoldState.LAPSED, at_us + self.settlement_window_us
        self._deadlines.watch_hold(hold)

    def _give_up(self, hold: Hold, *, at_us: int) -> None:
        hold.lapsed_uhs = hold.held_uhs
        self._free(self.accounts[hold.account_id], hold, now_us=at_us, flags=("lapsed",))
        self._end(hold, state=HoldState.EXPIRED, at_us=at_us)
        self._just_given_up.append(hold)

    def _revive(self, hold: Hold) -> None:
        """A lapsed hold is open again: all that it held is still there."""
        del self.lapsed[hold.hold_id]
        self.holds[hold.hold_id] = hold
        hold.state, hold.settle_by_us = HoldState.OPEN, None

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
