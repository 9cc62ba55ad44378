"""Packages of LLM tokens behind slices: what of one is held beside compute tokens, and what its calls take of it.

A slice is one hold of compute tokens and, where the account has packages that are good for the model, one of the same name in
each of these. Packages go first: a slice is given of them what its replica needs soon, and compute tokens for what they don't
cover. Which tokens of a call a package pays for follows from what the replica had promised the call of it, and never from who
reports first; where less than that is there by now, the call goes over into compute tokens.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from fabric.charging.catalogue import COMPUTE
from fabric.charging.packages import UNITS_MAX, Paid, at_worst
from fabric.charging.plans import LotTerms
from fabric.charging.rates import MTOK, Rate, rate_for, worst_uhs
from fabric.charging.records import Cdr, PackageUse
from fabric.gate import models, refusals
from fabric.gate.core import Core
from fabric.gate.instructions import Refusal
from fabric.gate.package_views import PackageRoom
from fabric.gate.serving_events import Wanted
from fabric.gate.state import Account
from fabric.ledger import Refused, clients, funding, holding
from fabric.ledger import packages as ledgers
from fabric.ledger.holds import Hold
from fabric.ledger.lots import BurnKey
from fabric.ledger.outcomes import Fact
from fabric.ledger.scopes import Use
from fabric.ledger.state import Ledger
from fabric.units import INT64_MAX, family_of, format_llm_tokens

_LAST: Final = (INT64_MAX, INT64_MAX, True, 0, 0, 0, "")
Shares = dict[str, list[tuple[str, int]]]
"""By asset: lots, and how much was taken of each, in order."""


class More(NamedTuple):
    """What is to be held: thousandths of tokens by asset, and compute tokens for the rest."""

    units: Mapping[str, int]
    amount_uhs: int
    minimum_uhs: int


def more(
    core: Core,
    account_id: str,
    *,
    use: Use,
    wanted: Wanted | None,
    amount_uhs: int,
    minimum_uhs: int,
    ceiling_uhs: int | None = None,
    used: Mapping[str, int] = {},
    held: Mapping[str, int] = {},
) -> More:
    """What to hold of packages first, and what then of compute tokens. Changes nothing.

    Args:
        core: for what is free, and the rates.
        account_id: who pays.
        use: what for.
        wanted: the LLM tokens that `amount_uhs` and `minimum_uhs` are for; None = nobody counts in them.
        amount_uhs: compute tokens, if there were no packages.
        minimum_uhs: the least of them that is of use.
        ceiling_uhs: what limits leave: packages are held for no more tokens than that would pay for; None = there are none.
        used: what is taken of each asset before.
        held: what is held of each for that.
    """
    if wanted is None or not core.book.packages:
        return More({}, amount_uhs, minimum_uhs)
    units: dict[str, int] = {}
    rate = _rate(core, use, wanted)
    if rate is not None and ceiling_uhs is not None:
        wanted = _within(wanted, rate, ceiling_uhs)
    all_of_it = [wanted.prompt_tokens, wanted.completion_tokens]
    least = [wanted.least_prompt_tokens, wanted.least_completion_tokens]
    for package, free in ledgers.for_use(core.book, account_id, use=use, now_us=core.now_us):
        asset = package.asset
        room = free - max(0, used.get(asset, 0) - held.get(asset, 0))
        prompts, completions, needed = at_worst(asset, prompt=all_of_it[0], completion=all_of_it[1], most=room)
        all_of_it = [all_of_it[0] - prompts, all_of_it[1] - completions]
        if needed:
            units[asset] = needed
        least = [max(0, least[0] - prompts), max(0, least[1] - completions)]
    if not units:
        return More({}, amount_uhs, minimum_uhs)
    if rate is None:
        spared, least_spared = (
            (amount_uhs, minimum_uhs) if not any(all_of_it) else (0, 0 if any(least) else minimum_uhs)
        )
    else:
        spared = _worst(rate, wanted.prompt_tokens, wanted.completion_tokens) - _worst(rate, *all_of_it)
        of_least = (wanted.least_prompt_tokens, wanted.least_completion_tokens)
        least_spared = _worst(rate, *of_least) - _worst(rate, *least)
    amount = 0 if not any(all_of_it) else max(0, amount_uhs - spared)
    minimum = 0 if not any(least) else max(0, minimum_uhs - least_spared)
    return More(units, amount, min(minimum, amount))


def full(core: Core, account: Account, more_units: int, *, asset: str) -> Refusal | None:
    """Why the account can't be given so much more of a package, if it can't."""
    package = core.book.packages.get(asset)
    mine = package.accounts.get(account.account_id) if package is not None else None
    lots = [package.lots[lot_id] for lot_id in mine.burning] if package is not None and mine is not None else []
    owned = sum(lot.free_uhs + lot.held_uhs for lot in lots)
    if owned + more_units <= UNITS_MAX and (
        package is None or funding.has_room_for(package, more_units, price_microcny=0)
    ):
        return None
    return refusals.conflict(
        f"account {account.account_id} owns {format_llm_tokens(owned)} tokens of {family_of(asset)} and may own"
        f" {format_llm_tokens(UNITS_MAX)}: buy more when some are used",
        code="account_full",
        owned=owned,
        limit=UNITS_MAX,
    )


def no_room(core: Core, account: Account, lots: Iterable[LotTerms]) -> Refusal | None:
    """Why the account can't be given these, if it can't."""
    units: dict[str, int] = {}
    for lot in lots:
        if lot.asset != COMPUTE:
            units[lot.asset] = units.get(lot.asset, 0) + lot.amount_uhs
    found = (full(core, account, amount, asset=asset) for asset, amount in units.items())
    return next((refusal for refusal in found if refusal is not None), None)


def told(lots: Iterable[LotTerms]) -> dict[str, Fact]:
    """What is said of a purchase: the LLM tokens that it gives."""
    bought = [lot for lot in lots if lot.asset != COMPUTE]
    if not bought:
        return {}
    each = ", ".join(f"{format_llm_tokens(lot.amount_uhs)} tokens of {family_of(lot.asset)}" for lot in bought)
    return {"packages": each}


def authorize(core: Core, hold_id: str, units: Mapping[str, int]) -> None:
    """Hold this much in packages, beside a new hold of compute tokens."""
    for asset, amount in units.items():
        _hold(core, core.book.holds[hold_id], asset, amount)


def there(core: Core, hold: Hold | None) -> dict[str, int]:
    """What the calls of a hold may take of each package that it holds in: what is held, and what is free beside."""
    if hold is None or not core.book.packages:
        return {}
    now_us, account_id = core.now_us, hold.account_id
    return {
        package.asset: beside.held_uhs + clients.free(package, account_id, now_us=now_us, use=hold.use)
        for package, beside in _beside(core, hold)
    }


def held(core: Core, hold: Hold) -> dict[str, int]:
    """What a hold holds of each package."""
    return {package.asset: beside.held_uhs for package, beside in _beside(core, hold)} if core.book.packages else {}


def update(core: Core, hold: Hold, *, seq: int, used: Mapping[str, int], give: Mapping[str, int]) -> Shares:
    """Take what calls used, and hold more: with the word and the validity that the hold of compute tokens was given just now."""
    first, known = len(core.book.pending), dict.fromkeys(give)
    for package, _ in _beside(core, hold):
        known.pop(package.asset, None)
        clients.update(
            package,
            hold.hold_id,
            seq=seq,
            used_uhs=used.get(package.asset, 0),
            more_uhs=give.get(package.asset, 0),
            now_us=core.now_us,
            expires_at_us=hold.expires_at_us if hold.hold_id in core.book.holds else None,
        )
    for asset in known if hold.hold_id in core.book.holds else ():
        _hold(core, hold, asset, give[asset])
    return _shares(core, hold.hold_id, first)


def end(core: Core, hold: Hold, *, seq: int, used: Mapping[str, int]) -> Shares:
    """Take what calls used, and free the rest: the hold of compute tokens has ended just now."""
    first = len(core.book.pending)
    for package, _ in _beside(core, hold):
        clients.settle(package, hold.hold_id, seq=seq, used_uhs=used.get(package.asset, 0), now_us=core.now_us)
    return _shares(core, hold.hold_id, first)


def charge_late(core: Core, hold: Hold, *, used: Mapping[str, int]) -> Shares:
    """Take what calls used of which no word of the hold's client told."""
    first = len(core.book.pending)
    for package, _ in _beside(core, hold):
        if used.get(package.asset):
            clients.charge_late(package, hold.hold_id, used_uhs=used[package.asset], now_us=core.now_us)
    return _shares(core, hold.hold_id, first)


def room(core: Core, hold: Hold, now_us: int) -> tuple[PackageRoom, ...]:
    """What a hold holds of packages, and what it could be given more of each, in the order in which they pay."""
    if not core.book.packages:
        return ()
    burns: dict[str, BurnKey] = {}
    for package, beside in _beside(core, hold):
        burns[package.asset] = min(
            (package.lots[each.lot_id].burn_key for each in beside.pieces if each.held_uhs), default=_LAST
        )
    frees: dict[str, int] = {}
    for package, free in ledgers.for_use(core.book, hold.account_id, use=hold.use, now_us=now_us):
        frees[package.asset] = free
        next_one = ledgers.burns_next(package, hold.account_id, use=hold.use, now_us=now_us)
        burns[package.asset] = min(burns.get(package.asset, _LAST), _LAST if next_one is None else next_one.burn_key)
    has = held(core, hold)
    order = sorted(burns, key=lambda asset: (burns[asset], asset))
    return tuple(PackageRoom(asset=asset, held=has.get(asset, 0), free=frees.get(asset, 0)) for asset in order)


def named(records: Iterable[Cdr], shares: Shares) -> tuple[Cdr, ...]:
    """Records with the lots that paid for them: one call after the other, as they were taken."""
    return tuple(
        replace(record, packages=tuple(_named(use, shares) for use in record.packages)) if record.packages else record
        for record in records
    )


def uses(paid: Iterable[Paid]) -> tuple[PackageUse, ...]:
    """What packages pay for of a call, for its record."""
    return tuple(PackageUse(asset=each.asset, units=each.units, tokens=each.tokens) for each in paid)


def _hold(core: Core, hold: Hold, asset: str, amount: int) -> None:
    package = ledgers.join(core.book, asset, hold.account_id)
    answer = holding.authorize(
        package,
        hold.account_id,
        hold_id=hold.hold_id,
        amount_uhs=amount,
        use=hold.use,
        now_us=core.now_us,
        expires_at_us=hold.expires_at_us,
        key_id=hold.key_id,
    )
    assert not isinstance(answer, Refused), f"{asset} was free for hold {hold.hold_id}: {answer}"
    package.holds[hold.hold_id].seq = hold.seq


def _beside(core: Core, hold: Hold) -> list[tuple[Ledger, Hold]]:
    found = ((package, package.hold(hold.hold_id)) for package in core.book.packages.values())
    return [(package, beside) for package, beside in found if beside is not None]


def _shares(core: Core, hold_id: str, first: int) -> Shares:
    """What transfers since then have captured of each asset, in order."""
    shares: Shares = {}
    for transfer in core.book.pending[first:]:
        if transfer.kind == "capture" and transfer.ref == hold_id:
            shares.setdefault(transfer.postings[0].asset, []).extend(
                (each.lot_id, each.amount_uhs) for each in transfer.lots
            )
    return shares


def _named(use: PackageUse, shares: Shares) -> PackageUse:
    left, lots, paid = use.units, shares.get(use.asset, []), []
    while left:
        lot_id, amount = lots.pop(0)
        part = min(left, amount)
        paid.append((lot_id, part))
        left -= part
        if part < amount:
            lots.insert(0, (lot_id, amount - part))
    return replace(use, lots=tuple(paid))


def _rate(core: Core, use: Use, wanted: Wanted) -> Rate | None:
    model = core.state.models.get(use.models[0]) if use.models else None
    if model is None or len(use.accelerators) != 1:
        return None
    price = models.price_of(model, version=wanted.rate_version, at_us=core.now_us)
    return None if price is None else rate_for(price.rates, accelerator=use.accelerators[0])


def _within(wanted: Wanted, rate: Rate, ceiling_uhs: int) -> Wanted:
    """As many of these tokens as so much would pay for, whatever of them turns out cached or reasoning."""
    read, written = max(rate.numbers[:2]), max(rate.numbers[2:])
    room = ceiling_uhs * MTOK
    prompts = min(wanted.prompt_tokens, room // read) if read else wanted.prompt_tokens
    room -= prompts * read
    completions = min(wanted.completion_tokens, room // written) if written else wanted.completion_tokens
    return replace(
        wanted,
        prompt_tokens=prompts,
        completion_tokens=completions if prompts == wanted.prompt_tokens else 0,
    )


def _worst(rate: Rate, prompt: int, completion: int) -> int:
    return worst_uhs(rate, prompt_tokens=prompt, completion_tokens=completion)
