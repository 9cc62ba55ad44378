"""Postings: every transfer as it is posted, and what all of them add up to.

It knows the names of accounts and that everything sums to zero; it does not know what a lot or a hold is. Totals are kept
by class of account, so that the trial balance of the whole book costs nothing.
"""

from collections.abc import Mapping
from typing import Final

from fabric.ledger.state import CUSTOMER, Ledger, Period
from fabric.ledger.transfers import CNY, LotShare, Posting, Transfer

_MOVES: Final = {"hold": ("available", "held"), "capture": ("held", "redeemed"), "release": ("held", "available")}
"""What most transfers are, where no credit is in it: out of one class of a customer's, into another."""


def post(
    ledger: Ledger,
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
    currency: str = CNY,
) -> Transfer:
    """Book a transfer. `tokens` and `money` give the amount for each class of account, and each sum to zero. The totals of the
    book know money of its own currency only.
    """
    assert sum(tokens.values()) == 0, f"{kind} {ref} makes or loses tokens: {tokens}"
    postings = []
    totals = ledger.tokens_uhs
    for name, amount in tokens.items():
        if amount:
            totals[name] = totals.get(name, 0) + amount
            path = f"cust/{account_id}/{name}" if name in CUSTOMER else f"op/{ledger.operator}/{name}"
            postings.append(Posting(path, ledger.asset, amount))
    if money:
        postings += money_legs(
            ledger.daybook, kind, account_id=account_id, money=money, channel=channel, currency=currency
        )
    daybook = ledger.daybook
    daybook.count += 1
    transfer = Transfer(
        transfer_id=daybook.count,
        kind=kind,
        account_id=account_id,
        ref=ref,
        at_us=at_us,
        postings=tuple(postings),
        lots=lots,
        linked_to=linked_to,
        flags=flags,
        number=_number(daybook, account_id),
    )
    daybook.pending.append(transfer)
    return transfer


def move(  # noqa: PLR0917 - for most transfers there are, and words for each would be dear
    ledger: Ledger,
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
    totals = ledger.tokens_uhs
    totals[out_of] -= amount_uhs
    totals[into] += amount_uhs
    taken = f"cust/{account_id}/{out_of}"
    given = f"cust/{account_id}/{into}" if into in CUSTOMER else f"op/{ledger.operator}/{into}"
    asset, daybook = ledger.asset, ledger.daybook
    account = daybook.accounts.get(account_id)
    if account is not None:
        account.transfers += 1
    daybook.count += 1
    daybook.pending.append(
        Transfer(
            transfer_id=daybook.count,
            kind=kind,
            account_id=account_id,
            ref=ref,
            at_us=at_us,
            postings=(Posting(taken, asset, -amount_uhs), Posting(given, asset, amount_uhs)),
            lots=lots,
            flags=flags,
            number=0 if account is None else account.transfers,
        )
    )


def _number(daybook: Ledger, account_id: str) -> int:
    """The next one of the account's."""
    account = daybook.accounts.get(account_id)
    if account is None:
        return 0
    account.transfers += 1
    return account.transfers


def money_legs(
    ledger: Ledger, kind: str, *, account_id: str, money: Mapping[str, int], channel: str, currency: str
) -> list[Posting]:
    assert sum(money.values()) == 0, f"{kind} for {account_id} makes or loses money: {money}"
    paths = {
        "cash": f"cash/{channel}",
        "suspense": f"suspense/{channel}",
        "receivable": f"receivable/{account_id}",
        "revenue": f"op/{ledger.operator}/revenue",
        "rounding": f"op/{ledger.operator}/rounding",
    }
    if currency == CNY:
        for name, amount in money.items():
            ledger.money_microcny[name] = ledger.money_microcny.get(name, 0) + amount
    return [Posting(paths[name], currency, amount) for name, amount in money.items() if amount]


def drain(ledger: Ledger) -> tuple[Transfer, ...]:
    """The transfers since the last drain, oldest first."""
    if not ledger.pending:
        return ()
    drained = tuple(ledger.pending)
    ledger.pending.clear()
    return drained


def seal(ledger: Ledger, period: str, *, now_us: int) -> Period:
    """Close a period: whatever is posted later, however it is dated, belongs to the next one."""
    sealed = Period(
        period=period,
        closed_at_us=now_us,
        through=ledger.count,
        tokens_uhs=dict(ledger.tokens_uhs),
        money_microcny=dict(ledger.money_microcny),
        packages={asset: dict(package.tokens_uhs) for asset, package in ledger.packages.items()},
    )
    ledger.periods.append(sealed)
    return sealed
