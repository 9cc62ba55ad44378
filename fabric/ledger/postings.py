"""The daybook: every transfer as it is posted, and what all of them add up to.

It knows the names of accounts and that everything sums to zero; it does not know what a lot or a hold is. Totals are kept
by class of account, so that the trial balance of the whole book costs nothing.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from fabric.ledger.transfers import CNY, CT, LotShare, Posting, Transfer

_CUSTOMER: Final = ("available", "held", "debt")
_TOKENS: Final = (*_CUSTOMER, "issued", "redeemed", "breakage", "written_off")
_MONEY: Final = ("cash", "receivable", "revenue")
_MOVES: Final = {"hold": ("available", "held"), "capture": ("held", "redeemed"), "release": ("held", "available")}
"""What most transfers are, where no credit is in it: out of one class of a customer's, into another."""


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed trial balance: what every class of account stood at after transfer number `through`."""

    period: str
    closed_at_us: int
    through: int
    tokens_uhs: dict[str, int]
    money_microcny: dict[str, int]


def _zeros(classes: tuple[str, ...]) -> dict[str, int]:
    return dict.fromkeys(classes, 0)


class Postings(msgspec.Struct, kw_only=True):
    """Counts, totals, and the transfers that nobody has taken away yet."""

    operator: str = "op"
    count: int = 0
    """Transfers posted so far: the id of the last one."""
    tokens_uhs: dict[str, int] = msgspec.field(default_factory=lambda: _zeros(_TOKENS))
    money_microcny: dict[str, int] = msgspec.field(default_factory=lambda: _zeros(_MONEY))
    pending: list[Transfer] = []
    periods: list[Period] = []

    def _post(
        self,
        kind: str,
        *,
        account_id: str,
        ref: str,
        at_us: int,
        tokens: Mapping[str, int],
        money: Mapping[str, int] | None = None,
        channel: str = "",
        lots: tuple[LotShare, ...] = (),
        linked_to: int | None = None,
        flags: tuple[str, ...] = (),
    ) -> Transfer:
        """Book a transfer. `tokens` and `money` give the amount for each class of account, and each sum to zero."""
        assert sum(tokens.values()) == 0, f"{kind} {ref} makes or loses tokens: {tokens}"
        postings = []
        totals = self.tokens_uhs
        for name, amount in tokens.items():
            if amount:
                totals[name] = totals.get(name, 0) + amount
                path = f"cust/{account_id}/{name}" if name in _CUSTOMER else f"op/{self.operator}/{name}"
                postings.append(Posting(path, CT, amount))
        if money:
            postings += self._money_legs(kind, account_id=account_id, money=money, channel=channel)
        self.count += 1
        transfer = Transfer(
            transfer_id=self.count,
            kind=kind,
            account_id=account_id,
            ref=ref,
            at_us=at_us,
            postings=tuple(postings),
            lots=lots,
            linked_to=linked_to,
            flags=flags,
        )
        self.pending.append(transfer)
        return transfer

    def _move(
        self,
        kind: str,
        account_id: str,
        ref: str,
        amount_uhs: int,
        at_us: int,
        *,
        lots: tuple[LotShare, ...],
        flags: tuple[str, ...],
    ) -> None:
        """Book tokens out of one class of account into another, as the kind has it: balanced, however it is called."""
        assert amount_uhs > 0, f"{kind} {ref} moves {amount_uhs} µHs"
        out_of, into = _MOVES[kind]
        totals = self.tokens_uhs
        totals[out_of] -= amount_uhs
        totals[into] += amount_uhs
        taken = f"cust/{account_id}/{out_of}"
        given = f"cust/{account_id}/{into}" if into in _CUSTOMER else f"op/{self.operator}/{into}"
        self.count += 1
        self.pending.append(
            Transfer(
                transfer_id=self.count,
                kind=kind,
                account_id=account_id,
                ref=ref,
                at_us=at_us,
                postings=(Posting(taken, CT, -amount_uhs), Posting(given, CT, amount_uhs)),
                lots=lots,
                flags=flags,
            )
        )

    def _money_legs(self, kind: str, *, account_id: str, money: Mapping[str, int], channel: str) -> list[Posting]:
        assert sum(money.values()) == 0, f"{kind} for {account_id} makes or loses money: {money}"
        paths = {
            "cash": f"cash/{channel}",
            "receivable": f"receivable/{account_id}",
            "revenue": f"op/{self.operator}/revenue",
        }
        for name, amount in money.items():
            self.money_microcny[name] += amount
        return [Posting(paths[name], CNY, amount) for name, amount in money.items() if amount]

    def drain(self) -> tuple[Transfer, ...]:
        """The transfers since the last drain, oldest first."""
        if not self.pending:
            return ()
        drained = tuple(self.pending)
        self.pending.clear()
        return drained

    def _seal(self, period: str, *, now_us: int) -> Period:
        """Close a period: whatever is posted later, however it is dated, belongs to the next one."""
        sealed = Period(
            period=period,
            closed_at_us=now_us,
            through=self.count,
            tokens_uhs=dict(self.tokens_uhs),
            money_microcny=dict(self.money_microcny),
        )
        self.periods.append(sealed)
        return sealed
