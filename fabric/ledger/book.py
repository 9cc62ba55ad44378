"""The book: double-entry accounts for compute tokens, as one plain value and the few ways to change it.

Holds are the credit control of RFC 8506: authorise, update, settle or release, each with `(hold_id, seq)`. What a client
says it used has happened and is always booked: from what is held, then from what is free, then as debt. A job's own
hold has no client and no seq: it is captured, extended, refunded and closed by the gate.

Every method that changes something first brings the book up to `now_us` (`sweep`), so holds lapse and lots expire at
their time whether or not anybody sweeps. A refusal changes nothing beyond that. The book knows no clock, no prices and
no placement; encoding it is a snapshot.
"""

from typing import Final

from fabric.ledger.accounts import Account
from fabric.ledger.expiry import HOLD
from fabric.ledger.holds import Hold, HoldState
from fabric.ledger.outcomes import (
    BEYOND_INT64,
    HOLD_ENDED,
    HOLD_EXISTS,
    INSUFFICIENT_TOKENS,
    INVALID_AMOUNT,
    STALE_SEQ,
    UNKNOWN_ACCOUNT,
    UNKNOWN_HOLD,
    Balance,
    Fact,
    Granted,
    LotBalance,
    Refused,
    Settled,
)
from fabric.ledger.proof import check
from fabric.ledger.scopes import Use
from fabric.ledger.till import Till
from fabric.units import INT64_MAX

_DAY_US: Final = 86_400_000_000
REMEMBER_ENDED_US: Final = _DAY_US
"""How long a settled or released hold can still repeat its last answer."""
REMEMBER_LAPSED_US: Final = 30 * _DAY_US
"""How long an expired hold can still be settled late."""


class Book(Till, kw_only=True, dict=True):
    """All that the ledger knows. `Book(operator="op")` is empty; msgspec encodes and decodes it by type."""

    # -- a client's hold -----------------------------------------------------------------------------------------------

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
        """
        self._catch_up(now_us)
        account = self.accounts.get(account_id)
        if account is None:
            return Refused(UNKNOWN_ACCOUNT, {"account_id": account_id})
        if amount_uhs <= 0:
            return Refused(INVALID_AMOUNT, {"amount_uhs": amount_uhs})
        if hold_id in self.holds or hold_id in self.ended or hold_id in self.lapsed:
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
        )
        answer = self._hold_more(account, hold, amount_uhs=amount_uhs, minimum_uhs=minimum_uhs, now_us=now_us)
        if isinstance(answer, Granted):
            hold.answer = answer
            self.holds[hold_id] = hold
            self._deadlines.watch_hold(hold)
        return answer

    def update(
        self,
        hold_id: str,
        *,
        seq: int,
        used_uhs: int,
        more_uhs: int,
        now_us: int,
        expires_at_us: int | None = None,
        partial: bool = True,
    ) -> Granted | Refused:
        """Capture what was used and hold more, in one step. Never refused for lack of tokens: what was used is booked,
        and `final` says that less than `more_uhs` was granted, be it nothing.

        Args:
            hold_id: which.
            seq: counts the client's words up from 1, gaps allowed. The last one again gets its answer again.
            used_uhs: used since the last word; beyond what is held it is booked all the same, flagged over_hold.
            more_uhs: how much to hold on top of what is left.
            now_us: when.
            expires_at_us: the new validity; None leaves it.
            partial: take less than `more_uhs` if that is all there is; else nothing.
        """
        self._catch_up(now_us)
        hold = self._listen(hold_id, seq=seq, used_uhs=used_uhs, more_uhs=more_uhs)
        if not isinstance(hold, Hold):
            return hold if isinstance(hold, Granted | Refused) else Refused(STALE_SEQ, {"seq": seq, "last_seq": seq})
        account = self.accounts[hold.account_id]
        self._book_usage(account, hold, used_uhs=used_uhs, now_us=now_us)
        granted = 0
        if more_uhs and hold.state is HoldState.OPEN:
            minimum = 1 if partial else None
            more = self._hold_more(account, hold, amount_uhs=more_uhs, minimum_uhs=minimum, now_us=now_us)
            granted = more.granted_uhs if isinstance(more, Granted) else 0
        if expires_at_us is not None and hold.state is HoldState.OPEN:
            hold.expires_at_us = max(expires_at_us, now_us)
            self._deadlines.watch_hold(hold)
        answer = Granted(granted, hold.held_uhs, granted < more_uhs)
        hold.seq, hold.answer = seq, answer
        return answer

    def settle(self, hold_id: str, *, seq: int, used_uhs: int, now_us: int) -> Settled | Refused:
        """Capture what was used since the last word, free the rest, end the hold. Late is accepted."""
        return self._finish(hold_id, seq=seq, used_uhs=used_uhs, state=HoldState.SETTLED, now_us=now_us)

    def release(self, hold_id: str, *, seq: int, now_us: int) -> Settled | Refused:
        """Free all that is still held, end the hold."""
        return self._finish(hold_id, seq=seq, used_uhs=0, state=HoldState.RELEASED, now_us=now_us)

    # -- a job's hold --------------------------------------------------------------------------------------------------

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

    def close(self, hold_id: str, *, now_us: int) -> int:
        """Free what is left and end the open hold; returns how much that was."""
        self._catch_up(now_us)
        hold = self.holds[hold_id]
        freed = self._free(self.accounts[hold.account_id], hold, now_us=now_us)
        self._end(hold, state=HoldState.SETTLED, at_us=now_us)
        return freed

    # -- time ----------------------------------------------------------------------------------------------------------

    def sweep(self, *, now_us: int) -> None:
        """Let holds lapse and lots expire that are due by now, each dated when it fell due; doing it again is nothing."""
        while (due := self._deadlines.pop(now_us)) is not None:
            at_us, kind, name = due
            if kind == HOLD:
                hold = self.holds[name]
                hold.lapsed_uhs = hold.held_uhs
                self._free(self.accounts[hold.account_id], hold, now_us=at_us, flags=("lapsed",))
                self._end(hold, state=HoldState.EXPIRED, at_us=at_us)
            elif self.lots[name].free_uhs:
                self._break(self.lots[name], at_us=at_us)
        _forget(self.ended, before_us=now_us - REMEMBER_ENDED_US)
        _forget(self.lapsed, before_us=now_us - REMEMBER_LAPSED_US)

    def next_due_us(self) -> int | None:
        """When the next hold lapses or lot expires."""
        return self._deadlines.next_us()

    # -- questions -----------------------------------------------------------------------------------------------------

    def free(self, account_id: str, *, now_us: int, use: Use | None = None) -> int:
        """What a hold for `use` could get now, credit included; 0 for an unknown account."""
        account = self.accounts.get(account_id)
        if account is None:
            return 0
        lots = (self.lots[lot_id] for lot_id in account.burning)
        return account.credit_free_uhs + sum(lot.free_uhs for lot in lots if lot.spendable(now_us, use))

    def balance(self, account_id: str, *, now_us: int) -> Balance | None:
        """An account as of now; None if there is none."""
        account = self.accounts.get(account_id)
        if account is None:
            return None
        lots = [lot for lot in (self.lots[lot_id] for lot_id in account.burning) if lot.held_uhs or lot.alive(now_us)]
        free = sum(lot.free_uhs for lot in lots if lot.spendable(now_us, None))
        pending = sum(lot.free_uhs for lot in lots if lot.effective_at_us > now_us)
        return Balance(
            account_id=account_id,
            posted_uhs=free + account.held_uhs,
            free_uhs=free,
            pending_uhs=pending,
            held_uhs=account.held_uhs,
            credit_held_uhs=account.credit_held_uhs,
            debt_uhs=account.debt_uhs,
            credit_limit_uhs=account.credit_limit_uhs,
            credit_free_uhs=account.credit_free_uhs,
            receivable_microcny=account.receivable_microcny,
            lots=tuple(
                LotBalance(
                    lot_id=lot.lot_id,
                    origin=lot.terms.origin.value,
                    tier=lot.terms.tier,
                    scope=lot.terms.scope.text,
                    granted_uhs=lot.granted_uhs,
                    free_uhs=lot.free_uhs if lot.alive(now_us) else 0,
                    held_uhs=lot.held_uhs,
                    effective_at_us=lot.effective_at_us,
                    expires_at_us=lot.expires_at_us,
                    price_microcny=lot.terms.price_microcny,
                )
                for lot in lots
            ),
        )

    def check(self) -> None:
        """Recompute everything the book must satisfy; an AssertionError names what is broken. Slow, for tests."""
        check(self)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _catch_up(self, now_us: int) -> None:
        heap = self._deadlines.heap
        if heap and heap[0][0] <= now_us:
            self.sweep(now_us=now_us)

    def _hold_more(
        self, account: Account, hold: Hold, *, amount_uhs: int, minimum_uhs: int | None, now_us: int
    ) -> Granted | Refused:
        if amount_uhs > INT64_MAX - self.tokens_uhs["held"]:
            return Refused(BEYOND_INT64, {"amount_uhs": amount_uhs, "limit_uhs": INT64_MAX})
        plan, missing = self._plan(account, use=hold.use, amount_uhs=amount_uhs, now_us=now_us)
        if not missing:
            self._take(account, hold, plan=plan, credit_uhs=0, now_us=now_us)
            return Granted(amount_uhs, hold.held_uhs, False)  # noqa: FBT003
        credit = min(missing, account.credit_free_uhs)
        missing -= credit
        granted = amount_uhs - missing
        if missing and (minimum_uhs is None or granted < max(1, minimum_uhs)):
            needed = amount_uhs if minimum_uhs is None else minimum_uhs
            return Refused(
                INSUFFICIENT_TOKENS, self._shortage(account, needed_uhs=needed, free_uhs=granted, now_us=now_us)
            )
        flags = ("final",) if missing else ()
        self._take(account, hold, plan=plan, credit_uhs=credit, now_us=now_us, flags=flags)
        return Granted(granted, hold.held_uhs, missing > 0)

    def _shortage(self, account: Account, *, needed_uhs: int, free_uhs: int, now_us: int) -> dict[str, Fact]:
        anywhere = self.free(account.account_id, now_us=now_us)
        return {
            "needed_uhs": needed_uhs,
            "free_uhs": free_uhs,
            "free_out_of_scope_uhs": anywhere - free_uhs,
            "short_uhs": needed_uhs - free_uhs,
        }

    def _listen(self, hold_id: str, *, seq: int, used_uhs: int, more_uhs: int) -> Hold | Granted | Settled | Refused:
        """The hold that a client's new word is about; or the answer to an old word, or to a bad one."""
        hold = self.holds.get(hold_id) or self.lapsed.get(hold_id) or self.ended.get(hold_id)
        if hold is None:
            return Refused(UNKNOWN_HOLD, {"hold_id": hold_id})
        if seq == hold.seq:
            return hold.answer
        if seq < hold.seq:
            return Refused(STALE_SEQ, {"seq": seq, "last_seq": hold.seq})
        if hold_id in self.ended:
            return Refused(HOLD_ENDED, {"hold_id": hold_id, "state": hold.state.value})
        if used_uhs < 0 or more_uhs < 0:
            return Refused(INVALID_AMOUNT, {"used_uhs": used_uhs, "more_uhs": more_uhs})
        if used_uhs > INT64_MAX - self.tokens_uhs["redeemed"]:
            return Refused(BEYOND_INT64, {"used_uhs": used_uhs, "limit_uhs": INT64_MAX})
        return hold

    def _book_usage(self, account: Account, hold: Hold, *, used_uhs: int, now_us: int) -> int:
        """Held, then free, then debt. Returns what became debt."""
        covered = min(used_uhs, hold.held_uhs)
        debt = self._capture(account, hold, amount_uhs=covered, now_us=now_us) if covered else 0
        if used_uhs > covered:
            late = hold.state is HoldState.EXPIRED
            beyond = hold.lapsed_uhs if late else 0
            over = used_uhs - covered > beyond
            flags = ("late",) * late + ("over_hold",) * over
            debt += self._overuse(account, hold, amount_uhs=used_uhs - covered, now_us=now_us, flags=flags)
            hold.lapsed_uhs = max(0, beyond - used_uhs)
        return debt

    def _finish(self, hold_id: str, *, seq: int, used_uhs: int, state: HoldState, now_us: int) -> Settled | Refused:
        self._catch_up(now_us)
        hold = self._listen(hold_id, seq=seq, used_uhs=used_uhs, more_uhs=0)
        if not isinstance(hold, Hold):
            return hold if isinstance(hold, Settled | Refused) else Refused(STALE_SEQ, {"seq": seq, "last_seq": seq})
        account = self.accounts[hold.account_id]
        late = hold.state is HoldState.EXPIRED
        over = used_uhs > (hold.lapsed_uhs if late else hold.held_uhs)
        debt = self._book_usage(account, hold, used_uhs=used_uhs, now_us=now_us)
        released = self._free(account, hold, now_us=now_us)
        if late:
            del self.lapsed[hold_id]
            self.ended[hold_id] = hold
            hold.ended_at_us = now_us
        else:
            self._end(hold, state=state, at_us=now_us)
        answer = Settled(used_uhs, released, debt, over, late)
        hold.seq, hold.answer = seq, answer
        return answer


_NOTHING: Final = Granted(0, 0, False)  # noqa: FBT003


def _forget(holds: dict[str, Hold], *, before_us: int) -> None:
    """Drop the oldest; they stand in the order in which they ended."""
    gone = []
    for hold_id, hold in holds.items():
        if hold.ended_at_us is None or hold.ended_at_us >= before_us:
            break
        gone.append(hold_id)
    for hold_id in gone:
        del holds[hold_id]
