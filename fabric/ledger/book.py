"""The book: double-entry accounts for compute tokens, as one plain value and the few ways to change it.

Holds follow the credit control of RFC 8506: authorise, update, settle or release, each with `(hold_id, seq)`. What a client
says it used has happened and is always booked: from what is held, then from what is free, credit included; what nothing
covers the operator writes off, so that a customer never owes what no hold or credit had allowed. Unless nobody could have
used so much: then one account would leave no room in the totals for the others. A job's own hold has no client and no
seq: see `Holding`.

A refusal changes nothing, beyond what the time would have changed anyway. The book knows no clock, no prices and no
placement. It is built in layers, each with one concern: Postings (transfers) ← Vault (lots) ← Sweeping (time) ← Funding
(what comes in) ← Holding (holds) ← Book (clients); encoded with msgspec it is its own snapshot.
"""

from typing import Final

from fabric.ledger.accounts import Account
from fabric.ledger.balances import balance, free_uhs
from fabric.ledger.holding import Holding
from fabric.ledger.holds import Hold, HoldState
from fabric.ledger.outcomes import (
    BEYOND_INT64,
    HOLD_ENDED,
    IMPLAUSIBLE_USAGE,
    INVALID_AMOUNT,
    STALE_SEQ,
    UNKNOWN_ACCOUNT,
    UNKNOWN_HOLD,
    Balance,
    Granted,
    Refused,
    Settled,
)
from fabric.ledger.proof import check
from fabric.ledger.scopes import Use
from fabric.units import INT64_MAX

WRITE_OFF_UHS_MAX: Final = 2**50
"""What clients' words can make the operator write off for one account: 312 000 tokens, one part in 8 000 of the totals."""


class Book(Holding, kw_only=True, dict=True):
    """All that the ledger knows. `Book(operator="op")` is empty; msgspec encodes and decodes it by type."""

    def update(
        self,
        hold_id: str,
        *,
        seq: int,
        used_uhs: int,
        more_uhs: int,
        now_us: int,
        expires_at_us: int | None = None,
        minimum_uhs: int = 1,
        ceiling_uhs: int | None = None,
    ) -> Granted | Refused:
        """Capture what was used and hold more, in one step. Never refused for lack of tokens: what was used is booked,
        and `final` says that less than `more_uhs` was granted, be it nothing.

        Args:
            hold_id: which.
            seq: counts the client's words up from 1, gaps allowed. The last one again gets its answer again.
            used_uhs: used since the last word; beyond what is held it is booked all the same, flagged over_hold.
                What was set aside for a hold that has lapsed still covers it, and a new validity opens such a hold again.
            more_uhs: how much to hold on top of what is left.
            now_us: when.
            expires_at_us: the new validity; None leaves it.
            minimum_uhs: take less than `more_uhs` if that is all there is, but nothing if it is less than this.
            ceiling_uhs: hold at most so much more, whatever is asked for and free.
        """
        self._catch_up(now_us)
        hold = self._listen(hold_id, seq=seq, used_uhs=used_uhs, more_uhs=more_uhs, now_us=now_us)
        if not isinstance(hold, Hold):
            return hold if isinstance(hold, Granted | Refused) else Refused(STALE_SEQ, {"seq": seq, "last_seq": seq})
        account = self.accounts[hold.account_id]
        _, lost = self._book_usage(account, hold, used_uhs=used_uhs, now_us=now_us)
        if hold.state is HoldState.LAPSED and expires_at_us is not None:
            self._revive(hold)
        if expires_at_us is not None and hold.state is HoldState.OPEN:
            self._renew(hold, expires_at_us=expires_at_us, now_us=now_us)
        granted = 0
        asked = more_uhs if ceiling_uhs is None else min(more_uhs, ceiling_uhs)
        if asked > 0 and asked >= min(minimum_uhs, more_uhs) and hold.state is HoldState.OPEN:
            least = max(1, min(minimum_uhs, asked))
            more = self._hold_more(account, hold, amount_uhs=asked, minimum_uhs=least, now_us=now_us)
            granted = more.granted_uhs if isinstance(more, Granted) else 0
        answer = Granted(granted, hold.held_uhs, granted < more_uhs or hold.state is not HoldState.OPEN, lost)
        hold.seq, hold.answer = seq, answer
        return answer

    def settle(self, hold_id: str, *, seq: int, used_uhs: int, now_us: int) -> Settled | Refused:
        """Capture what was used since the last word, free the rest, end the hold. Late is accepted."""
        return self._finish(hold_id, seq=seq, used_uhs=used_uhs, state=HoldState.SETTLED, now_us=now_us)

    def release(self, hold_id: str, *, seq: int, now_us: int) -> Settled | Refused:
        """Free all that is still held, end the hold."""
        return self._finish(hold_id, seq=seq, used_uhs=0, state=HoldState.RELEASED, now_us=now_us)

    def charge_late(self, hold_id: str, *, used_uhs: int, now_us: int) -> Settled | Refused:
        """Book use that no word of the hold's client told of, such as one that is heard of when the hold has ended.

        From what it holds, if it still does, then from what is free; the rest is written off. The hold must be known.
        """
        self._catch_up(now_us)
        hold = self.hold(hold_id)
        assert hold is not None, f"there is no hold {hold_id}"
        if refused := self._unbelievable(hold, used_uhs=used_uhs, now_us=now_us):
            return refused
        late, over = hold.state is not HoldState.OPEN, used_uhs > hold.held_uhs
        debt, lost = self._book_usage(self.accounts[hold.account_id], hold, used_uhs=used_uhs, now_us=now_us)
        if hold_id in self.ended:
            hold.pieces = []
        return Settled(used_uhs - lost, 0, debt, over, late, lost)

    def write_off(
        self, account_id: str, *, ref: str, amount_uhs: int, now_us: int, flags: tuple[str, ...] = ("late", "no_hold")
    ) -> Refused | None:
        """Book use that no hold is known for any more, or that may have been charged before: the operator bears it."""
        self._catch_up(now_us)
        account = self.accounts.get(account_id)
        if account is None:
            return Refused(UNKNOWN_ACCOUNT, {"account_id": account_id})
        limit_uhs = WRITE_OFF_UHS_MAX - account.written_off_uhs
        if amount_uhs > min(limit_uhs, INT64_MAX - self.tokens_uhs["redeemed"]):
            return Refused(IMPLAUSIBLE_USAGE, {"used_uhs": amount_uhs, "limit_uhs": limit_uhs})
        if amount_uhs > 0:
            self._write_off(account, ref=ref, amount_uhs=amount_uhs, now_us=now_us, flags=flags)
        return None

    def free(self, account_id: str, *, now_us: int, use: Use | None = None) -> int:
        """What a hold for `use` could get now, credit included; 0 for an unknown account."""
        account = self.accounts.get(account_id)
        return 0 if account is None else free_uhs(self, account, now_us=now_us, use=use)

    def balance(self, account_id: str, *, now_us: int) -> Balance | None:
        """An account as of now; None if there is none."""
        account = self.accounts.get(account_id)
        return None if account is None else balance(self, account, now_us=now_us)

    def check(self) -> None:
        """Recompute everything the book must satisfy; an AssertionError names what is broken. Slow, for tests."""
        check(self)

    def _listen(
        self, hold_id: str, *, seq: int, used_uhs: int, more_uhs: int, now_us: int
    ) -> Hold | Granted | Settled | Refused:
        """The hold that a client's new word is about; or the answer to an old word, or to a bad one."""
        hold = self.hold(hold_id)
        if hold is None:
            return Refused(UNKNOWN_HOLD, {"hold_id": hold_id})
        if seq <= hold.seq:
            return hold.answer if seq == hold.seq else Refused(STALE_SEQ, {"seq": seq, "last_seq": hold.seq})
        if hold_id in self.ended:
            return Refused(HOLD_ENDED, {"hold_id": hold_id, "state": hold.state.value})
        if used_uhs < 0 or more_uhs < 0:
            return Refused(INVALID_AMOUNT, {"used_uhs": used_uhs, "more_uhs": more_uhs})
        return self._unbelievable(hold, used_uhs=used_uhs, now_us=now_us) or hold

    def _unbelievable(self, hold: Hold, *, used_uhs: int, now_us: int) -> Refused | None:
        if used_uhs > INT64_MAX - self.tokens_uhs["redeemed"]:
            return Refused(BEYOND_INT64, {"used_uhs": used_uhs, "limit_uhs": INT64_MAX})
        limit_uhs = self._plausible_uhs(hold, used_uhs=used_uhs, now_us=now_us)
        if used_uhs > limit_uhs:
            return Refused(IMPLAUSIBLE_USAGE, {"used_uhs": used_uhs, "limit_uhs": limit_uhs})
        return None

    def _plausible_uhs(self, hold: Hold, *, used_uhs: int, now_us: int) -> int:
        """What a client's word about this hold is believed up to: all that is held and free, and a large loss."""
        account = self.accounts[hold.account_id]
        limit_uhs = hold.held_uhs + max(0, WRITE_OFF_UHS_MAX - account.written_off_uhs)
        return limit_uhs if used_uhs <= limit_uhs else limit_uhs + free_uhs(self, account, now_us=now_us, use=hold.use)

    def _finish(self, hold_id: str, *, seq: int, used_uhs: int, state: HoldState, now_us: int) -> Settled | Refused:
        self._catch_up(now_us)
        hold = self._listen(hold_id, seq=seq, used_uhs=used_uhs, more_uhs=0, now_us=now_us)
        if not isinstance(hold, Hold):
            return hold if isinstance(hold, Settled | Refused) else Refused(STALE_SEQ, {"seq": seq, "last_seq": seq})
        account = self.accounts[hold.account_id]
        late = hold.state is not HoldState.OPEN
        over = used_uhs > max(hold.lapsed_uhs, hold.held_uhs)
        debt, lost = self._book_usage(account, hold, used_uhs=used_uhs, now_us=now_us)
        released = self._free(account, hold, now_us=now_us)
        self._end(hold, state=state, at_us=now_us)
        answer = Settled(used_uhs - lost, released, debt, over, late, lost)
        hold.seq, hold.answer = seq, answer
        return answer

    def _book_usage(self, account: Account, hold: Hold, *, used_uhs: int, now_us: int) -> tuple[int, int]:
        """Held, then free, then written off. Returns what became debt, and what was written off."""
        late = ("late",) * (hold.state is not HoldState.OPEN)
        covered = min(used_uhs, hold.held_uhs)
        debt = self._capture(account, hold, amount_uhs=covered, now_us=now_us, flags=late) if covered else 0
        lost = 0
        if used_uhs > covered:
            beyond = hold.lapsed_uhs
            flags = (*late, "over_hold") if used_uhs - covered > beyond else late
            more, lost = self._overuse(account, hold, amount_uhs=used_uhs - covered, now_us=now_us, flags=flags)
            debt += more
            hold.lapsed_uhs = max(0, beyond - used_uhs)
        return debt, lost
