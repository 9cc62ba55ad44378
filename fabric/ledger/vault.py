"""The vault: lots, and the four ways tokens move between free, held, captured and expired.

Every move changes the lots, the hold, the account and the daybook together, so no two of them can disagree. The vault
never asks whether a move is allowed: that was decided before it is made.
"""

from bisect import insort
from typing import Final

from msgspec import field
from msgspec.structs import replace

from fabric.ledger.accounts import Account
from fabric.ledger.expiry import Deadline, Deadlines
from fabric.ledger.holds import Hold, HoldState, Piece, piece_of
from fabric.ledger.lots import BurnKey, Lot, Origin, Terms, new_lot
from fabric.ledger.own_holds import OWN, OwnHolds
from fabric.ledger.postings import Postings
from fabric.ledger.scopes import Use
from fabric.ledger.transfers import LotShare

_DAY_US: Final = 86_400_000_000
REFUND_MARGIN_US: Final = _DAY_US
"""A lot that is good for less than this is no place for a refund."""
REFUND_LIFE_US: Final = 30 * _DAY_US
"""How long a refund is good that found its lot gone, or nearly."""
CREDIT = ""
"""The lot id of what no lot covers."""

Plan = list[tuple[Lot, int]]
"""How much to take of which lot, in burn order."""


class Vault(Postings, kw_only=True, dict=True):
    """Accounts with their lots and holds. What is derived (deadlines) lives outside the fields, and is never encoded."""

    accounts: dict[str, Account] = field(default_factory=dict)
    lots: dict[str, Lot] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    """The open ones."""
    lapsed: dict[str, Hold] = field(default_factory=dict)
    """No longer valid and not yet settled by their clients: what they hold is set aside."""
    expired: dict[str, Hold] = field(default_factory=dict)
    """Given up: nothing is set aside for them any more; in the order in which that was."""
    refund_margin_us: int = REFUND_MARGIN_US
    ended: dict[str, Hold] = field(default_factory=dict)
    """Over for good; in the order in which they ended."""

    def __post_init__(self) -> None:
        for hold_id in [name for name, hold in self.lapsed.items() if hold.state is HoldState.EXPIRED]:
            self.expired[hold_id] = self.lapsed.pop(hold_id)  # as snapshots had it before there was a settlement window
        self._deadlines = Deadlines(self.holds, self.lapsed, self.lots)
        self._own = OwnHolds((self.holds, self.lapsed), (self.ended, self.expired))
        self._forgets_at_us = 0
        """No hold that is over is forgotten before; 0 = look anew."""
        self._just_given_up: list[Hold] = []
        self._just_shrunk: list[tuple[Hold, int]] = []

    def hold(self, hold_id: str) -> Hold | None:
        """A hold of that name, open or over, as long as it is remembered."""
        return (
            self.holds.get(hold_id) or self.ended.get(hold_id) or self.lapsed.get(hold_id) or self.expired.get(hold_id)
        )

    def derived(self) -> tuple[list[Deadline], list[str], dict[str, object]]:
        """What is kept beside the fields: deadlines that stand, soonest first; holds that nobody has asked about yet; and
        those that customers keep.
        """
        unasked = [*self._just_given_up, *(hold for hold, _ in self._just_shrunk)]
        return self._deadlines.standing(), [hold.hold_id for hold in unasked], self._own.view()

    def derive(self) -> tuple[list[Deadline], list[str], dict[str, object]]:
        """The same, made anew from the fields."""
        own = OwnHolds((self.holds, self.lapsed), (self.ended, self.expired))
        return Deadlines(self.holds, self.lapsed, self.lots).standing(), [], own.view()

    def _plan(self, account: Account, *, use: Use, amount_uhs: int, now_us: int) -> tuple[Plan, int]:
        """What to take of which lots for `use`, and how much is missing."""
        plan: Plan = []
        lots = self.lots
        origins = account.spending_for(use).origins if account.spending else ()
        missing = amount_uhs
        for lot_id in account.burning:
            lot = lots[lot_id]
            free = lot.free_uhs
            if free and lot.spendable(now_us, use) and (not origins or lot.terms.origin in origins):
                if free >= missing:
                    plan.append((lot, missing))
                    return plan, 0
                plan.append((lot, free))
                missing -= free
        return plan, missing

    def _take(
        self, account: Account, hold: Hold, *, plan: Plan, credit_uhs: int, now_us: int, flags: tuple[str, ...] = ()
    ) -> None:
        """Free → held, as planned, and the rest on credit."""
        pieces = hold.pieces
        shares = []
        taken = 0
        for lot, amount in plan:
            lot.free_uhs -= amount
            lot.held_uhs += amount
            taken += amount
            piece_of(pieces, lot.lot_id).held_uhs += amount
            shares.append(LotShare(lot.lot_id, amount))
        hold.held_uhs += taken + credit_uhs
        account.held_uhs += taken + credit_uhs
        name, ref = account.account_id, hold.hold_id
        if not credit_uhs:
            self._move("hold", name, ref, taken, now_us, lots=tuple(shares), flags=flags)
            return
        account.credit_held_uhs += credit_uhs
        piece_of(pieces, CREDIT).held_uhs += credit_uhs
        tokens = {"available": -taken, "debt": -credit_uhs, "held": taken + credit_uhs}
        self._post("hold", account_id=name, ref=ref, at_us=now_us, tokens=tokens, lots=tuple(shares), flags=flags)

    def _capture(
        self, account: Account, hold: Hold, *, amount_uhs: int, now_us: int, flags: tuple[str, ...] = ()
    ) -> int:
        """Held → redeemed, in the order in which it was held; at most what is held. Returns what became debt."""
        shares = []
        debt = 0
        missing = amount_uhs
        for piece in hold.pieces:
            part = piece.held_uhs
            if part:
                part = min(part, missing)
                piece.held_uhs -= part
                piece.captured_uhs += part
                if piece.lot_id == CREDIT:
                    debt += part
                else:
                    lot = self.lots[piece.lot_id]
                    lot.held_uhs -= part
                    lot.captured_uhs += part
                    shares.append(LotShare(piece.lot_id, part))
                    self._drop_if_spent(account, lot)
                missing -= part
                if not missing:
                    break
        assert missing == 0, f"hold {hold.hold_id} holds {missing} µHs less than is captured"
        account.credit_held_uhs -= debt
        account.debt_uhs += debt
        account.held_uhs -= amount_uhs
        hold.held_uhs -= amount_uhs
        hold.captured_uhs += amount_uhs
        self._move("capture", account.account_id, hold.hold_id, amount_uhs, now_us, lots=tuple(shares), flags=flags)
        return debt

    def _overuse(
        self, account: Account, hold: Hold, *, amount_uhs: int, now_us: int, flags: tuple[str, ...]
    ) -> tuple[int, int]:
        """Available, then credit, straight to redeemed: usage that happened and no hold covers. What nothing covers is the
        operator's loss. Returns what became debt, and what was written off.
        """
        plan, missing = self._plan(account, use=hold.use, amount_uhs=amount_uhs, now_us=now_us)
        debt = min(missing, account.credit_free_uhs) if account.spending_for(hold.use).credit else 0
        lost = missing - debt
        if amount_uhs > lost:
            self._capture_free(
                account, hold, plan=plan, debt_uhs=debt, amount_uhs=amount_uhs - lost, now_us=now_us, flags=flags
            )
        if lost:
            self._write_off(account, ref=hold.hold_id, amount_uhs=lost, now_us=now_us, flags=flags)
        return debt, lost

    def _capture_free(
        self,
        account: Account,
        hold: Hold,
        *,
        plan: Plan,
        debt_uhs: int,
        amount_uhs: int,
        now_us: int,
        flags: tuple[str, ...],
    ) -> None:
        for lot, part in plan:
            lot.free_uhs -= part
            lot.captured_uhs += part
            self._drop_if_spent(account, lot)
            piece_of(hold.pieces, lot.lot_id).captured_uhs += part
        if debt_uhs:
            account.debt_uhs += debt_uhs
            piece_of(hold.pieces, CREDIT).captured_uhs += debt_uhs
        hold.captured_uhs += amount_uhs
        self._post(
            "capture",
            account_id=account.account_id,
            ref=hold.hold_id,
            at_us=now_us,
            tokens={"available": debt_uhs - amount_uhs, "debt": -debt_uhs, "redeemed": amount_uhs},
            lots=tuple(LotShare(lot.lot_id, part) for lot, part in plan),
            flags=flags,
        )

    def _write_off(
        self, account: Account, *, ref: str, amount_uhs: int, now_us: int, flags: tuple[str, ...] = ()
    ) -> None:
        """Written off → redeemed: used by the account, and borne by the operator."""
        account.written_off_uhs += amount_uhs
        self._post(
            "write_off",
            account_id=account.account_id,
            ref=ref,
            at_us=now_us,
            tokens={"written_off": -amount_uhs, "redeemed": amount_uhs},
            flags=flags,
        )

    def _uncapture(self, account: Account, hold: Hold, *, amount_uhs: int, now_us: int) -> None:
        """Redeemed → held, last captured first: exactly the way back."""
        shares: list[LotShare] = []
        missing = amount_uhs
        invoiced = 0
        late: list[tuple[Lot, int]] = []
        for piece in reversed(hold.pieces):
            part = min(piece.captured_uhs, missing)
            if not part:
                continue
            missing -= part
            piece.captured_uhs -= part
            if piece.lot_id != CREDIT and not self.lots[piece.lot_id].alive(now_us + self.refund_margin_us):
                late.append((self.lots[piece.lot_id], part))
            elif piece.lot_id == CREDIT:
                owed = min(part, account.debt_uhs)
                account.lower_debt(owed, newest_first=True)
                account.credit_held_uhs += owed
                piece.held_uhs += owed
                invoiced += part - owed
            else:
                piece.held_uhs += part
                lot = self.lots[piece.lot_id]
                lot.captured_uhs -= part
                lot.held_uhs += part
                self._burn_again(account, lot)
                shares.append(LotShare(piece.lot_id, part))
        assert missing == 0, f"hold {hold.hold_id} has captured {missing} µHs less than is refunded"
        for lot, part in late:
            terms = replace(
                lot.terms,
                origin=Origin.REFUND,
                effective_at_us=now_us,
                expires_at_us=now_us + REFUND_LIFE_US,
                price_microcny=0,
                parent_lots=(lot.lot_id,),
                channel="",
            )
            shares.insert(0, self._refund_lot(account, hold, amount_uhs=part, terms=terms, now_us=now_us))
        if invoiced:
            terms = Terms(origin=Origin.REFUND, tier="", effective_at_us=now_us, expires_at_us=None)
            shares.insert(0, self._refund_lot(account, hold, amount_uhs=invoiced, terms=terms, now_us=now_us))
        account.held_uhs += amount_uhs
        hold.held_uhs += amount_uhs
        hold.captured_uhs -= amount_uhs
        self._post(
            "refund",
            account_id=account.account_id,
            ref=hold.hold_id,
            at_us=now_us,
            tokens={"redeemed": -amount_uhs, "held": amount_uhs},
            lots=tuple(reversed(shares)),
        )

    def _refund_lot(self, account: Account, hold: Hold, *, amount_uhs: int, terms: Terms, now_us: int) -> LotShare:
        """A refund as a lot of its own: of debt that was invoiced or repaid since, which can't be forgiven again; and of a
        lot in which it could hardly be spent any more.
        """
        lot_id = f"refund/{hold.hold_id}/{self.count + 1}"
        while lot_id in self.lots:
            lot_id += "+"
        lot = new_lot(account.account_id, lot_id=lot_id, amount_uhs=amount_uhs, terms=terms, now_us=now_us)
        lot.free_uhs, lot.held_uhs = 0, amount_uhs
        self.lots[lot_id] = lot
        self._burn_again(account, lot)
        piece_of(hold.pieces, lot_id).held_uhs += amount_uhs
        return LotShare(lot_id, amount_uhs)

    def _free(self, account: Account, hold: Hold, *, now_us: int, flags: tuple[str, ...] = ()) -> int:
        """Held → free, all that is left; → breakage where the lot has expired meanwhile. Returns what was left."""
        rest = hold.held_uhs
        if not rest:
            return 0
        freed: list[LotShare] = []
        broken: list[LotShare] = []
        credit = 0
        for piece in hold.pieces:
            part = piece.held_uhs
            if not part:
                continue
            piece.held_uhs = 0
            if piece.lot_id == CREDIT:
                credit += part
                continue
            lot = self.lots[piece.lot_id]
            lot.held_uhs -= part
            if lot.alive(now_us):
                if not lot.free_uhs:
                    self._deadlines.watch_lot(lot)
                lot.free_uhs += part
                freed.append(LotShare(piece.lot_id, part))
            else:
                lot.expired_uhs += part
                broken.append(LotShare(piece.lot_id, part))
                self._drop_if_spent(account, lot)
        hold.held_uhs = 0
        account.held_uhs -= rest
        account.credit_held_uhs -= credit
        name, ref = account.account_id, hold.hold_id
        lost = sum([share.amount_uhs for share in broken]) if broken else 0
        if not (lost or credit):
            self._move("release", name, ref, rest, now_us, lots=tuple(freed), flags=flags)
        elif rest > lost:
            tokens = {"held": lost - rest, "available": rest - lost - credit, "debt": credit}
            self._post("release", account_id=name, ref=ref, at_us=now_us, tokens=tokens, lots=tuple(freed), flags=flags)
        if lost:
            tokens = {"held": -lost, "breakage": lost}
            self._post("expire", account_id=name, ref=ref, at_us=now_us, tokens=tokens, lots=tuple(broken))
        return rest

    def _expire_held(
        self, account: Account, hold: Hold, *, parts: list[tuple[Piece, int]], now_us: int, flags: tuple[str, ...]
    ) -> int:
        """Held → breakage: so much of these pieces of the hold. Returns how much that is."""
        shares = []
        for piece, part in parts:
            lot = self.lots[piece.lot_id]
            piece.held_uhs -= part
            lot.held_uhs -= part
            lot.expired_uhs += part
            shares.append(LotShare(piece.lot_id, part))
            self._drop_if_spent(account, lot)
        lost = sum(share.amount_uhs for share in shares)
        hold.held_uhs -= lost
        account.held_uhs -= lost
        self._post(
            "expire",
            account_id=account.account_id,
            ref=hold.hold_id,
            at_us=now_us,
            tokens={"held": -lost, "breakage": lost},
            lots=tuple(shares),
            flags=flags,
        )
        return lost

    def _end(self, hold: Hold, *, state: HoldState, at_us: int) -> None:
        """A hold, with nothing held any more, is over."""
        hold_id = hold.hold_id
        stood = self.holds.pop(hold_id, None) or self.lapsed.pop(hold_id, None)
        if stood is None and hold_id in self.expired:
            del self.expired[hold_id]
            self._forgets_at_us = 0
        hold.state = state
        hold.ended_at_us = at_us
        hold.settle_by_us = hold.stale_at_us = None
        hold.pieces.clear()
        over = self.expired if state is HoldState.EXPIRED else self.ended
        if not over:
            self._forgets_at_us = 0
        over[hold_id] = hold
        if hold_id.startswith(OWN):
            for forgotten in self._own.ended(hold, stood=stood is not None):
                del over[forgotten]
                self._forgets_at_us = 0

    def _break(self, lot: Lot, *, at_us: int) -> None:
        """Free → breakage: a lot has expired, and what is held of it stays good until the hold ends."""
        lost = lot.free_uhs
        lot.free_uhs = 0
        lot.expired_uhs += lost
        self._drop_if_spent(self.accounts[lot.account_id], lot)
        self._post(
            "expire",
            account_id=lot.account_id,
            ref=lot.lot_id,
            at_us=at_us,
            tokens={"available": -lost, "breakage": lost},
            lots=(LotShare(lot.lot_id, lost),),
        )

    def _burn_again(self, account: Account, lot: Lot) -> None:
        """Put a lot (back) into its place in the burn order."""
        if lot.lot_id not in account.burning:
            insort(account.burning, lot.lot_id, key=self._burn_key)

    def _burn_key(self, lot_id: str) -> BurnKey:
        return self.lots[lot_id].burn_key

    def _drop_if_spent(self, account: Account, lot: Lot) -> None:
        if not lot.free_uhs and not lot.held_uhs:
            account.burning.remove(lot.lot_id)
