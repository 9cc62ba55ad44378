"""Holding: tokens are set aside, captured, given back and let go.

These are the moves as the gate makes them for a job, which answers for its own hold: no client, no sequence numbers.
Every one first brings the book up to `now_us`, so holds lapse and lots expire at their time whether or not anybody sweeps.
"""

from typing import Final

from fabric.ledger.accounts import Account
from fabric.ledger.balances import barred_uhs, free_uhs
from fabric.ledger.funding import Funding
from fabric.ledger.holds import Hold, HoldState
from fabric.ledger.outcomes import (
    BEYOND_INT64,
    HOLD_EXISTS,
    INSUFFICIENT_TOKENS,
    INVALID_AMOUNT,
    UNKNOWN_ACCOUNT,
    Granted,
    Refused,
)
from fabric.ledger.own_holds import OWN
from fabric.ledger.scopes import Use
from fabric.units import INT64_MAX

_NOTHING: Final = Granted(0, 0, False)  # noqa: FBT003


class Holding(Funding, kw_only=True, dict=True):
    """What can be done with a hold."""

    def authorize(
        self,
        account_id: str,
        *,
        hold_id: str,
        amount_uhs: int,
        use: Use,
        now_us: int,
        expires_at_us: int | None,
        minimum_uhs: int | None = None,
        ceiling_uhs: int | None = None,
        key_id: str = "",
    ) -> Granted | Refused:
        """Set tokens aside for `use`, in burn order, lots first and then credit.

        Args:
            account_id: who pays.
            hold_id: never used before.
            amount_uhs: how much is wanted, more than 0.
            use: what for: only lots whose scope admits it are taken from.
            now_us: when.
            expires_at_us: when the hold lapses by itself; None = never, somebody answers for closing it.
            minimum_uhs: be content with less, but not with less than this; None = all or nothing.
            ceiling_uhs: hold at most so much, whatever is asked for and free: then it is final.
            key_id: remembered with the hold.
        """
        self._catch_up(now_us)
        account = self.accounts.get(account_id)
        if account is None:
            return Refused(UNKNOWN_ACCOUNT, {"account_id": account_id})
        if amount_uhs <= 0:
            return Refused(INVALID_AMOUNT, {"amount_uhs": amount_uhs})
        if hold_id in self.holds or hold_id in self.ended or hold_id in self.lapsed or hold_id in self.expired:
            return Refused(HOLD_EXISTS, {"hold_id": hold_id})
        hold = Hold(
            hold_id=hold_id,
            account_id=account_id,
            use=use,
            opened_at_us=now_us,
            expires_at_us=expires_at_us if expires_at_us is None or expires_at_us > now_us else now_us,
            pieces=[],
            held_uhs=0,
            answer=_NOTHING,
            key_id=key_id,
        )
        asked_uhs = amount_uhs if ceiling_uhs is None else min(amount_uhs, ceiling_uhs)
        answer = self._hold_more(account, hold, amount_uhs=asked_uhs, minimum_uhs=minimum_uhs, now_us=now_us)
        if isinstance(answer, Granted):
            if asked_uhs < amount_uhs:
                answer = Granted(answer.granted_uhs, answer.held_uhs, True)  # noqa: FBT003
            hold.answer = answer
            self.holds[hold_id] = hold
            if hold_id.startswith(OWN):
                self._own.began(hold)
            if expires_at_us is not None:
                self._deadlines.watch_hold(hold)
        return answer

    def capture(self, hold_id: str, *, amount_uhs: int, now_us: int, flags: tuple[str, ...] = ()) -> int:
        """Capture up to what is held; returns how much that was. The hold must be open."""
        self._catch_up(now_us)
        hold = self.holds[hold_id]
        part = min(amount_uhs, hold.held_uhs)
        if part > 0:
            self._capture(self.accounts[hold.account_id], hold, amount_uhs=part, now_us=now_us, flags=flags)
        return max(part, 0)

    def extend(
        self, hold_id: str, *, amount_uhs: int, now_us: int, minimum_uhs: int | None = None
    ) -> Granted | Refused:
        """Hold more, like `authorize`. The hold must be open."""
        self._catch_up(now_us)
        hold = self.holds[hold_id]
        if amount_uhs <= 0:
            return Refused(INVALID_AMOUNT, {"amount_uhs": amount_uhs})
        account = self.accounts[hold.account_id]
        return self._hold_more(account, hold, amount_uhs=amount_uhs, minimum_uhs=minimum_uhs, now_us=now_us)

    def refund(self, hold_id: str, *, amount_uhs: int, now_us: int) -> int:
        """Take captures back into the open hold, last first, at most what it has captured; returns how much."""
        self._catch_up(now_us)
        hold = self.holds[hold_id]
        part = min(amount_uhs, hold.captured_uhs)
        if part > 0:
            self._uncapture(self.accounts[hold.account_id], hold, amount_uhs=part, now_us=now_us)
        return max(part, 0)

    def wait(self, hold_id: str, *, now_us: int) -> int:
        """Nothing runs on the open hold (any more): of lots that expire it holds anew what is good. How much less it holds."""
        self._catch_up(now_us)
        hold = self.holds[hold_id]
        hold.waiting = True
        short = self._hold_anew(hold, now_us=now_us)
        if short:
            self._just_shrunk.pop()
        return short

    def note_waiting(self, hold: Hold, *, now_us: int) -> None:
        """Nothing runs on the open hold: from the next event on, not before, it lets go of what it holds of expired lots."""
        hold.waiting = True
        self._watch(hold)
        if hold.stale_at_us is not None and hold.stale_at_us < now_us:
            hold.stale_at_us = now_us
            self._deadlines.watch_hold(hold)

    def run(self, hold_id: str) -> None:
        """Something runs on the open hold: what it holds stays good until that ends."""
        hold = self.holds[hold_id]
        if not hold.waiting:
            return
        hold.waiting = False
        if hold.stale_at_us is not None:
            hold.stale_at_us = None
            if hold.expires_at_us is not None:
                self._deadlines.watch_hold(hold)

    def close(self, hold_id: str, *, now_us: int) -> int:
        """Free what is left and end the open hold; returns how much that was."""
        self._catch_up(now_us)
        hold = self.holds[hold_id]
        freed = self._free(self.accounts[hold.account_id], hold, now_us=now_us)
        self._end(hold, state=HoldState.SETTLED, at_us=now_us)
        return freed

    def _hold_more(
        self, account: Account, hold: Hold, *, amount_uhs: int, minimum_uhs: int | None, now_us: int
    ) -> Granted | Refused:
        if amount_uhs > INT64_MAX:
            return Refused(BEYOND_INT64, {"amount_uhs": amount_uhs, "limit_uhs": INT64_MAX})
        plan, missing = self._plan(account, use=hold.use, amount_uhs=amount_uhs, now_us=now_us)
        credit = min(missing, account.credit_free_uhs) if missing and account.spending_for(hold.use).credit else 0
        missing -= credit
        granted = amount_uhs - missing
        if granted > INT64_MAX - self.tokens_uhs["held"]:
            return Refused(BEYOND_INT64, {"amount_uhs": amount_uhs, "limit_uhs": INT64_MAX})
        if not missing and not credit:
            self._take(account, hold, plan=plan, credit_uhs=0, now_us=now_us)
            if hold.waiting:
                self._watch(hold)
            return Granted(amount_uhs, hold.held_uhs, False)  # noqa: FBT003
        if missing and (minimum_uhs is None or granted < max(1, minimum_uhs)):
            needed = amount_uhs if minimum_uhs is None else minimum_uhs
            anywhere = free_uhs(self, account, now_us=now_us, use=None)
            barred = barred_uhs(self, account, now_us=now_us, use=hold.use)
            return Refused(
                INSUFFICIENT_TOKENS,
                {
                    "needed_uhs": needed,
                    "free_uhs": granted,
                    "free_out_of_scope_uhs": anywhere - granted - barred,
                    "short_uhs": needed - granted,
                    **({"barred_uhs": barred} if barred else {}),
                },
            )
        flags = ("final",) if missing else ()
        self._take(account, hold, plan=plan, credit_uhs=credit, now_us=now_us, flags=flags)
        if hold.waiting:
            self._watch(hold)
        return Granted(granted, hold.held_uhs, missing > 0)
