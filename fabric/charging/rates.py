"""Rates: what the tokens of a language model cost in compute tokens.

A rate is four integers, µHs per 10⁶ LLM tokens: prompt, cached prompt, completion, reasoning. It is for one model on one
type of accelerator and has a version; a call is charged once, when it ended, and rounded once, half-even. The meter in
the replica, the gate and whoever checks a bill use this same arithmetic; it knows no model, no clock and no account.
How rates follow from measured throughput is in `serving.calibrate`.
"""

from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from fabric.charging.rounding import half_even, up

MTOK: Final = 1_000_000
RATE_MAX_UHS_PER_MTOK: Final = 10**12
"""A whole H100-second for each LLM token: no model is so large."""
LLM_TOKENS_MAX: Final = 10**9
"""Of one call: with it a charge stays within 64 bits."""


class Counted(Protocol):
    """The LLM tokens of a call: cached ones are among those of the prompt, reasoning ones among the completion's."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def reasoning_tokens(self) -> int: ...


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """What one model costs on one type of accelerator, in µHs per 10⁶ LLM tokens."""

    model: str = ""
    """"" = any model: a tariff's line for those that have none of their own."""
    version: int = 0
    """Counts the model's prices from 1. 0 = not yet in force."""
    accelerator: str = ""
    """"" = any type."""
    input_uhs_per_mtok: int
    cached_uhs_per_mtok: int
    output_uhs_per_mtok: int
    reasoning_uhs_per_mtok: int

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """Prompt, cached prompt, completion, reasoning."""
        return (
            self.input_uhs_per_mtok,
            self.cached_uhs_per_mtok,
            self.output_uhs_per_mtok,
            self.reasoning_uhs_per_mtok,
        )


def charge_uhs(rate: Rate, used: Counted) -> int:
    """What a call costs, in µHs: each LLM token at its own rate, the sum rounded once, half-even."""
    return half_even(
        (used.prompt_tokens - used.cached_tokens) * rate.input_uhs_per_mtok
        + used.cached_tokens * rate.cached_uhs_per_mtok
        + (used.completion_tokens - used.reasoning_tokens) * rate.output_uhs_per_mtok
        + used.reasoning_tokens * rate.reasoning_uhs_per_mtok,
        MTOK,
    )


def worst_uhs(rate: Rate, *, prompt_tokens: int, completion_tokens: int) -> int:
    """The most that so many LLM tokens can cost, rounded up: whatever of them turns out cached or reasoning."""
    dearest_in = max(rate.input_uhs_per_mtok, rate.cached_uhs_per_mtok)
    dearest_out = max(rate.output_uhs_per_mtok, rate.reasoning_uhs_per_mtok)
    return up(prompt_tokens * dearest_in + completion_tokens * dearest_out, MTOK)


def rate_for(rates: Iterable[Rate], *, accelerator: str) -> Rate | None:
    """The rate of the type, or else the one for any; None if there is neither."""
    fallback = None
    for rate in rates:
        if rate.accelerator == accelerator:
            return rate
        if not rate.accelerator:
            fallback = rate
    return fallback


def flaw_of(rate: Rate) -> str:
    """What is wrong with a rate, "" if nothing is."""
    bad = [number for number in rate.numbers if not 0 <= number <= RATE_MAX_UHS_PER_MTOK]
    return f"{bad[0]}: a rate is 0 to {RATE_MAX_UHS_PER_MTOK} µHs per 10⁶ LLM tokens" if bad else ""


def miscounted(used: Counted) -> str:
    """What is wrong with the counts of a call, "" if nothing is."""
    if (
        0 <= used.cached_tokens <= used.prompt_tokens <= LLM_TOKENS_MAX
        and 0 <= used.reasoning_tokens <= used.completion_tokens <= LLM_TOKENS_MAX
    ):
        return ""
    counts = (used.prompt_tokens, used.cached_tokens, used.completion_tokens, used.reasoning_tokens)
    if any(not 0 <= count <= LLM_TOKENS_MAX for count in counts):
        return f"{counts}: a call counts 0 to {LLM_TOKENS_MAX} LLM tokens of each kind"
    if used.cached_tokens > used.prompt_tokens:
        return f"{used.cached_tokens} cached of {used.prompt_tokens} prompt tokens"
    return f"{used.reasoning_tokens} reasoning of {used.completion_tokens} completion tokens"
