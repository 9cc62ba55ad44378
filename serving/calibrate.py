"""From what a model does on a device to what its tokens cost: rates in µHs from throughput, in integers.

A device that is kept busy burns its weight in H100-seconds each second; what it gets done in that second carries it.
Throughput is measured at the reference load (80 %, where f = 1), prompts and answers apart: one of prompts alone, one of
answers alone. A cached prompt token costs what it still takes of the device, or a tenth of an uncached one where that
was not measured; a reasoning token is an answer token.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from fabric.charging.rates import MTOK, Rate
from fabric.charging.rounding import half_even
from fabric.errors import InvalidRequest
from fabric.units import MICROS_PER_S, PPM

REFERENCE_LOAD_PPM: Final = 800_000
CACHED_PART: Final = 10
"""A cached prompt token is at most one part in so many of an uncached one, where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """LLM tokens in so many µs, by one replica."""

    tokens: int
    elapsed_us: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What one replica does at the reference load."""

    prompts: Throughput
    answers: Throughput
    cached: Throughput | None = None


Ask = Callable[[int, int], Awaitable[tuple[int, int, int]]]
"""(prompt tokens, answer tokens wanted) → what the engine counted: prompt, cached, completion tokens."""


def rate_of(measured: Measured, *, model: str, accelerator: str, devices: int, weight_ppm: int) -> Rate:
    """The rates at which a replica that works at the reference load charges just what its devices burn.

    Args:
        measured: of one replica.
        model: its name.
        accelerator: the devices' type.
        devices: of the replica.
        weight_ppm: of the type, in H100-equivalents.

    Raises:
        InvalidRequest: nothing was produced, or in no time (code `not_measured`).
    """
    burn = devices * weight_ppm
    prompt, answer = _uhs_per_mtok(measured.prompts, burn), _uhs_per_mtok(measured.answers, burn)
    cached = -(-prompt // CACHED_PART) if measured.cached is None else _uhs_per_mtok(measured.cached, burn)
    return Rate(
        model=model,
        accelerator=accelerator,
        input_uhs_per_mtok=prompt,
        cached_uhs_per_mtok=min(cached, prompt),
        output_uhs_per_mtok=answer,
        reasoning_uhs_per_mtok=answer,
    )


async def measure(
    ask: Ask, *, streams: int, prompt_tokens: int = 256, answer_tokens: int = 128, seconds: float = 20.0
) -> Measured:
    """Load one replica and count what it does.

    Args:
        ask: one call of the engine. Its prompts must differ from call to call, or they come from the cache.
        streams: calls at once: those with which the replica is at its reference load. The widest window that it takes
            is full load; four fifths of it is the reference.
        prompt_tokens: of each prompt.
        answer_tokens: of each answer.
        seconds: for each of the two measurements.
    """
    at_once = max(1, streams * REFERENCE_LOAD_PPM // PPM)
    prompts = await _loaded(ask, at_once, prompt_tokens, 1, seconds=seconds, counts=_uncached)
    answers = await _loaded(ask, at_once, 1, answer_tokens, seconds=seconds, counts=_completed)
    return Measured(prompts, answers)


async def _loaded(
    ask: Ask,
    streams: int,
    prompt: int,
    answer: int,
    *,
    seconds: float,
    counts: Callable[[tuple[int, int, int]], int],
) -> Throughput:
    """Keep so many calls going for a time; what is under way at its end is waited for, and counted with its time."""
    began_ns, tokens = time.monotonic_ns(), 0
    ends_ns = began_ns + round(seconds * 1e9)

    async def stream() -> None:
        nonlocal tokens
        while time.monotonic_ns() < ends_ns:
            counted = counts(await ask(prompt, answer))  # `tokens += await ...` would forget what others add meanwhile
            tokens += counted

    await asyncio.gather(*(stream() for _ in range(streams)))
    return Throughput(tokens, (time.monotonic_ns() - began_ns) // 1_000)


def _uncached(counted: tuple[int, int, int]) -> int:
    return counted[0] - counted[1]


def _completed(counted: tuple[int, int, int]) -> int:
    return counted[2]


def _uhs_per_mtok(seen: Throughput, burn_ppm: int) -> int:
    """µHs for 10⁶ tokens: a device of weight 1 burns 1 µHs each µs."""
    if seen.tokens <= 0 or seen.elapsed_us <= 0:
        raise InvalidRequest(
            f"{seen.tokens} tokens in {seen.elapsed_us / MICROS_PER_S:g} s: measure for longer", code="not_measured"
        )
    return max(1, half_even(seen.elapsed_us * burn_ppm * MTOK, seen.tokens * PPM))
