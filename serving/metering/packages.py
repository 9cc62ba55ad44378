"""What a slice has of packages of LLM tokens, and what its calls are promised of that.

Pure. A call is promised whole tokens, as dear as any of them may turn out, in the order in which it reads and writes them: of
the packages first, in their order, then of compute tokens. At its end it takes what its tokens really weigh, which is never
more: a token that is cheaper than was feared only lets the same promise reach further.
"""

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from fabric.charging.packages import PAYERS_MAX, Limit, Tokens, at_worst, split, weights_of
from fabric.charging.rates import LLM_TOKENS_MAX
from serving.calls import Call, Package, Usage
from serving.metering.slices import OpenCall, Pot, Slice, Terms, faded


def uncovered(limits: Sequence[Limit], *, prompt: int, completion: int) -> tuple[int, int]:
    """How many tokens of so many packages don't pay for within these limits, whatever of them turns out cached or reasoning."""
    for asset, most in limits:
        prompts, completions, _ = at_worst(asset, prompt=prompt, completion=completion, most=most)
        prompt, completion = prompt - prompts, completion - completions
    return prompt, completion


def promise(
    limits: tuple[Limit, ...], available: Sequence[Limit], *, prompt: int, completion: int
) -> tuple[tuple[Limit, ...], int, int]:
    """The limits of a call of so many tokens that is given what it lacks of what is available; and how many tokens of its prompt
    and of its completion these don't cover.
    """
    prompt, completion = uncovered(limits, prompt=prompt, completion=completion)
    found = list(limits)
    for asset, most in available:
        prompts, completions, units = at_worst(asset, prompt=prompt, completion=completion, most=most)
        is_last = bool(found) and found[-1][0] == asset
        if not (prompts or completions) or (len(found) == PAYERS_MAX and not is_last):
            continue
        prompt, completion = prompt - prompts, completion - completions
        if is_last:
            units += found.pop()[1]
        found.append((asset, units))
    return tuple(found), prompt, completion


def bind(piece: Slice, call: OpenCall, limits: tuple[Limit, ...]) -> None:
    """Give a call these limits in place of those it has."""
    for sign, each in ((-1, call.limits), (1, limits)):
        for asset, units in each:
            _pot(piece, asset).bound += sign * units
    call.limits = limits


def ended(piece: Slice, call: OpenCall, done: Call, *, now_us: int, terms: Terms) -> Call:
    """The call as it is reported: with what it takes of each package, which is spent; what it was promised beside is free again."""
    bind(piece, call, ())
    paid = split(done.usage, done.packages).paid
    for asset, units, _ in paid:
        pot = _pot(piece, asset)
        pot.spent += units
        pot.burned = faded(pot.burned, now_us - pot.burned_at_us, terms.horizon_us) + units
        pot.burned_at_us = now_us
    return replace(done, packages=tuple((asset, units) for asset, units, _ in paid))


def rest_of(call: Call) -> Usage:
    """What compute tokens pay for of a call."""
    return _usage(split(call.usage, call.packages).rest) if call.packages else call.usage


def units_of(calls: Iterable[Call]) -> dict[str, int]:
    """What calls that have ended take of each package."""
    taken: dict[str, int] = {}
    for call in calls:
        for asset, units, _ in split(call.usage, call.packages).paid if call.packages else ():
            taken[asset] = taken.get(asset, 0) + units
    return taken


def forget(piece: Slice, calls: Iterable[Call]) -> None:
    """These calls are no longer the slice's: the ledger has them otherwise."""
    for asset, units in units_of(calls).items():
        if (pot := piece.pots.get(asset)) is not None:
            pot.spent -= units
            pot.held -= units


def told(piece: Slice, packages: Sequence[Package], *, reported: Iterable[Call]) -> bool:
    """What the ledger holds of each now that it has these calls; whether that is more than was left."""
    forget(piece, reported)
    grew, before = False, piece.pots
    piece.pots = {}
    for each in packages:
        pot = piece.pots[each.asset] = before.pop(each.asset, Pot(each.asset))
        grew = grew or each.held > pot.held
        pot.held, pot.free = each.held, each.free
    for asset, pot in before.items():  # of which nothing is held any more
        pot.held = pot.free = 0
        if pot.spent or pot.bound:
            piece.pots[asset] = pot
    return grew


def reach(piece: Slice, now_us: int, terms: Terms) -> int:
    """How many tokens of a completion what may still be granted covers."""
    available = piece.packages(now_us, terms.margin_us)
    return sum(at_worst(asset, prompt=0, completion=LLM_TOKENS_MAX, most=most)[1] for asset, most in available)


def has_more(piece: Slice) -> bool:
    """Whether the account had more of a package at the last answer."""
    return any(pot.free for pot in piece.pots.values())


def size(piece: Slice, now_us: int, terms: Terms) -> int:
    """How many tokens of a completion a slice should be given of packages: a few grants, or what is burned in a horizon; at most a
    fair share of what is free, but one.
    """
    wanted, share = 4 * terms.grant_tokens, 0
    for pot in piece.pots.values():
        weights = weights_of(pot.asset)
        if weights is not None and weights.dearest[1]:
            burn = 2 * faded(pot.burned, now_us - pot.burned_at_us, terms.horizon_us)
            wanted = max(wanted, burn // weights.dearest[1])
            share += pot.free // terms.share // weights.dearest[1]
    return max(1, min(wanted, share)) if has_more(piece) else wanted


def _pot(piece: Slice, asset: str) -> Pot:
    return piece.pots.setdefault(asset, Pot(asset))


def _usage(tokens: Tokens) -> Usage:
    return Usage(tokens.prompt_tokens, tokens.cached_tokens, tokens.completion_tokens, tokens.reasoning_tokens)
