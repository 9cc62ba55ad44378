"""Packages of LLM tokens: what a token of each kind takes of one, and which tokens of a call it pays for.

A package is counted in thousandths of an LLM token of weight 1, as whole numbers. Its asset says all that is needed to count:
`llm:qwen@1000/100/4000/4000` are tokens of the family `qwen` of which a prompt token takes 1, a cached one 0.1, and one of the answer,
reasoning or not, 4. So the meter, the gate and whoever checks a bill count alike, however often an offer changes; other
weights are another asset, and no two assets are ever added up. It knows no account, no lot and no price.

A token is paid for by one package or by compute tokens, never by both: tokens are looked at in the order in which a model
reads and writes them (cached prompt, prompt, reasoning, answer), and go to the next payer where what is left of this one isn't
enough for a whole one.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from fabric.charging.rates import LLM_TOKENS_MAX, Counted
from fabric.units import LLM, THOUSANDTHS

WEIGHT_MAX: Final = 1_000 * THOUSANDTHS
"""What one token takes at most."""
UNITS_MAX: Final = 10**12 * THOUSANDTHS
"""Of one asset that an account may own: one part in 9 000 of what a ledger has room for."""
PAYERS_MAX: Final = 8
"""Packages that one call may be paid from."""
FAMILY: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_ASSET: Final = re.compile(rf"{LLM}({FAMILY})@(\d{{1,7}})/(\d{{1,7}})/(\d{{1,7}})/(\d{{1,7}})", re.ASCII)

Limit = tuple[str, int]
"""An asset, and how many thousandths of it a call may take."""


class Weights(NamedTuple):
    """What a token of each kind takes of a package, in thousandths."""

    prompt: int
    cached: int
    completion: int
    reasoning: int

    @property
    def dearest(self) -> tuple[int, int]:
        """Of a token that is read, and of one that is written: the most that one takes."""
        return max(self.prompt, self.cached), max(self.completion, self.reasoning)


class Tokens(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """LLM tokens of a call, or a part of one: cached ones are among those of the prompt, reasoning ones among the completion's."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


class Paid(NamedTuple):
    """Tokens of a call that one package pays for, and what they take of it, in thousandths."""

    asset: str
    units: int
    tokens: Tokens


class Split(NamedTuple):
    """Who pays for which tokens of a call."""

    paid: tuple[Paid, ...]
    """By packages, in the order in which they were asked; those that pay for nothing are left out."""
    rest: Tokens
    """By compute tokens."""


def asset_of(family: str, weights: Weights) -> str:
    """The name of a family's tokens with these weights."""
    return f"{LLM}{family}@{'/'.join(map(str, weights))}"


@lru_cache(maxsize=1_024)
def weights_of(asset: str) -> Weights | None:
    """What tokens take of this asset; None where it is no package of LLM tokens."""
    found = _ASSET.fullmatch(asset)
    if found is None:
        return None
    weights = Weights(*(int(each) for each in found.groups()[1:]))
    return weights if max(weights) <= WEIGHT_MAX and any(weights) else None


def split(used: Counted, limits: Iterable[Limit]) -> Split:
    """Who pays for which tokens of a call, given what it may take of which packages, in this order."""
    kinds = (
        used.cached_tokens,
        used.prompt_tokens - used.cached_tokens,
        used.reasoning_tokens,
        used.completion_tokens - used.reasoning_tokens,
    )
    left, paid = list(kinds), []
    for asset, most in limits:
        weights = weights_of(asset)
        if weights is None or most < 0 or not any(left):
            continue
        taken, units = _take(left, weights, most)
        if any(taken):
            left = [have - part for have, part in zip(left, taken, strict=True)]
            paid.append(Paid(asset, units, _tokens(taken)))
    return Split(tuple(paid), _tokens(left))


def at_worst(asset: str, *, prompt: int, completion: int, most: int) -> tuple[int, int, int]:
    """How many tokens a package pays for of so many, whatever of them turns out cached or reasoning: of the prompt, of the
    completion, and what it must have for these, in thousandths. Tokens of the prompt come first.
    """
    weights = weights_of(asset)
    if weights is None or most < 0:
        return 0, 0, 0
    read, written = weights.dearest
    prompts = prompt if read * prompt <= most else most // read
    left = most - prompts * read
    completions = 0
    if prompts == prompt:
        completions = completion if written * completion <= left else left // written
    return prompts, completions, prompts * read + completions * written


def flaw_of(limits: tuple[Limit, ...]) -> str:
    """What is wrong with what a call says that it may take of packages, "" if nothing is."""
    if len(limits) > PAYERS_MAX:
        return f"it names {len(limits)} packages, and {PAYERS_MAX} may pay for one call"
    for asset, most in limits:
        if weights_of(asset) is None:
            return f"{asset[:100]!r} is no package of LLM tokens"
        if not 0 <= most <= 2 * LLM_TOKENS_MAX * WEIGHT_MAX:
            return f"it takes {most} thousandths of {asset}"
    return ""


def _take(left: list[int], weights: Weights, most: int) -> tuple[list[int], int]:
    """Of the kinds in their order so many tokens as fit; the first that doesn't is the end."""
    in_order = (weights.cached, weights.prompt, weights.reasoning, weights.completion)
    taken, units = [0, 0, 0, 0], 0
    for kind, (have, weight) in enumerate(zip(left, in_order, strict=True)):
        part = have if weight * have <= most - units else (most - units) // weight
        taken[kind] = part
        units += part * weight
        if part < have:
            break
    return taken, units


def _tokens(kinds: list[int]) -> Tokens:
    cached, prompt, reasoning, completion = kinds
    return Tokens(prompt + cached, cached, completion + reasoning, reasoning)
