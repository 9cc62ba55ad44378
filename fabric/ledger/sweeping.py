"""Sweeping: what is due happens, dated when it fell due.

A hold whose validity is over lapses: what it holds stays set aside, and can't be spent, until its client reports or its
settlement window ends. Only then is it free again. So a client that was cut off finds covered what it used.

A lot is good at most until the use ends that held it when it expired. A hold that nothing runs on keeps no lot beyond its
expiry, and one that is renewed keeps it no longer than it would have without: it is held anew of what is good, if there is.

Availability filters on time, so sweeping late never lets anybody spend what has expired; it is only when breakage is
booked and lapsed holds are given back.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Final

from fabric.ledger.expiry import HOLD
from fabric.ledger.holds import Hold, HoldState
from fabric.ledger.vault import CREDIT, Vault
from fabric.units import INT64_MAX

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

    def sweep(self, *, now_us: int) -> bool:
        """Let holds lapse and lots expire that are due by now, each dated when it fell due; doing it again is nothing.

        Returns whether there are holds that were given up, or hold less, and that nobody has asked about.
        """
        while (due := self._deadlines.pop(now_us)) is not None:
            at_us, kind, name = due
            if kind == HOLD:
                hold = self.holds.get(name)
                if hold is not None and hold.stale_at_us is not None and hold.stale_at_us <= at_us:
                    self._hold_anew(hold, now_us=at_us)
                elif hold is not None:
                    self._lapse(hold, at_us=at_us)
                else:
                    self._give_up(self.lapsed[name], at_us=at_us)
            elif self.lots[name].free_uhs:
                self._break(self.lots[name], at_us=at_us)
        if self._forgets_at_us <= now_us:
            self._forget(self.ended, before_us=now_us - REMEMBER_ENDED_US)
            self._forget(self.expired, before_us=now_us - REMEMBER_LAPSED_US)
            self._forgets_at_us = self._next_forgotten_us()
        return bool(self._just_given_up or self._just_shrunk)

    def own_standing(self, account_id: str) -> int:
        """How many holds that the customer keeps itself are open, or set aside for its report."""
        return self._own.standing[account_id]

    def take_given_up(self) -> list[Hold]:
        """The holds that were given up since the last call, for whoever keeps count of them elsewhere."""
        given_up, self._just_given_up = self._just_given_up, []
        return given_up

    def take_shrunk(self) -> list[tuple[Hold, int]]:
        """The holds that hold less since the last call, because a lot expired and nothing else covered it; and how much."""
        shrunk, self._just_shrunk = self._just_shrunk, []
        return shrunk

    def carry(self, lot_ids: Sequence[str], into: str, *, now_us: int) -> None:
        """Let what is held of lots be held of another one of their account, as far as that is free."""
        lot = self.lots[into]
        account = self.accounts[lot.account_id]
        if not any(self.lots[lot_id].held_uhs for lot_id in lot_ids):
            return
        for hold in (*self.holds.values(), *self.lapsed.values()):
            if hold.account_id != account.account_id or not lot.free_uhs:
                continue
            room, parts = lot.free_uhs, []
            for piece in hold.pieces:
                if piece.lot_id in lot_ids and piece.held_uhs and room:
                    part = min(piece.held_uhs, room)
                    parts.append((piece, part))
                    room -= part
            if parts:
                carried = self._expire_held(account, hold, parts=parts, now_us=now_us, flags=("carried",))
                self._take(account, hold, plan=[(lot, carried)], credit_uhs=0, now_us=now_us, flags=("carried",))
                self._watch(hold)

    def _hold_anew(self, hold: Hold, *, now_us: int) -> int:
        """Hold of good lots, or on credit, what it holds of expired ones that it can't keep; how much it holds less."""
        account = self.accounts[hold.account_id]
        parts = [
            (piece, piece.held_uhs)
            for piece in hold.pieces
            if piece.held_uhs
            and piece.lot_id != CREDIT
            and not self.lots[piece.lot_id].alive(now_us)
            and (hold.waiting or (piece.good_until_us is not None and piece.good_until_us <= now_us))
        ]
        short = 0
        if parts:
            lost = self._expire_held(account, hold, parts=parts, now_us=now_us, flags=("anew",))
            plan, missing = self._plan(account, use=hold.use, amount_uhs=lost, now_us=now_us)
            credit = min(missing, account.credit_free_uhs) if account.spending_for(hold.use).credit else 0
            short = missing - credit
            if lost > short:
                self._take(account, hold, plan=plan, credit_uhs=credit, now_us=now_us, flags=("anew",))
            if short:
                self._just_shrunk.append((hold, short))
        self._watch(hold)
        return short

    def _watch(self, hold: Hold) -> None:
        """Reckon anew when a part of what an open hold holds stops being good."""
        stale_at_us: int | None = None
        for piece in hold.pieces:
            if piece.held_uhs and piece.lot_id != CREDIT:
                until = self.lots[piece.lot_id].expires_at_us if hold.waiting else piece.good_until_us
                if until is not None and (stale_at_us is None or until < stale_at_us):
                    stale_at_us = until
        if stale_at_us != hold.stale_at_us:
            hold.stale_at_us = stale_at_us
            self._deadlines.watch_hold(hold)

    def _renew(self, hold: Hold, *, expires_at_us: int, now_us: int) -> None:
        """A new validity. What is held of lots that have expired is good no longer than the old one."""
        before_us = now_us if hold.expires_at_us is None else max(hold.expires_at_us, now_us)
        for piece in hold.pieces:
            dead = piece.held_uhs and piece.lot_id != CREDIT and not self.lots[piece.lot_id].alive(now_us)
            if dead and piece.good_until_us is None:
                piece.good_until_us = before_us
        hold.expires_at_us = max(expires_at_us, now_us)
        self._watch(hold)
        self._deadlines.watch_hold(hold)

    def retire(self, lot_id: str, *, now_us: int) -> None:
        """Let what is free of a lot expire before its time: something else stands in its place."""
        if self.lots[lot_id].free_uhs:
            self._break(self.lots[lot_id], at_us=now_us)

    def is_due(self, now_us: int) -> bool:
        """Whether `sweep` has anything to do by now, or anything to tell that nobody has asked about."""
        heap = self._deadlines.heap
        if heap and heap[0][0] <= now_us and self._deadlines.is_due(now_us):
            return True
        if self._forgets_at_us <= now_us:
            self._forgets_at_us = self._next_forgotten_us()
            return self._forgets_at_us <= now_us
        return bool(self._just_given_up or self._just_shrunk)

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

    def _next_forgotten_us(self) -> int:
        """When the next hold that is over is forgotten; they stand in the order in which they ended."""
        next_us = INT64_MAX
        for holds, remember_us in ((self.ended, REMEMBER_ENDED_US), (self.expired, REMEMBER_LAPSED_US)):
            for hold in islice(holds.values(), 1):
                if hold.ended_at_us is not None:
                    next_us = min(next_us, hold.ended_at_us + remember_us + 1)
        return next_us

    def _forget(self, holds: dict[str, Hold], *, before_us: int) -> None:
        """Drop the oldest."""
        gone = []
        for hold in holds.values():
            if hold.ended_at_us is None or hold.ended_at_us >= before_us:
                break
            gone.append(hold)
        for hold in gone:
            del holds[hold.hold_id]
            self._own.forgotten(hold)
