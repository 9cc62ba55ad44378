"""An order on its way to a runner, and the runner's word on how it ended: by the line first, by Ray where need be.

The runner takes the same order twice without harm, so that what a broken line leaves open is simply asked over Ray. Of a
job that takes longer than a moment Ray is asked as well: a line whose other machine has lost its power is silent, while
Ray finds out.
"""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Final

import ray

from fabric.cluster.placement_groups import Seated
from fabric.worker.channel import Broken
from fabric.worker.rank_order import ARE_YOU_CLEAN, CLEAN, Order, decode_end, encode_order
from fabric.worker.stage import JobEnd

LINE_ALONE_S: Final = 1.0
_CLEAN_WITHIN_S: Final = 5.0


def carry_out(order: Order, runner: Seated) -> Awaitable[object]:
    """Begin to have it carried out; what comes of it is what the runner says of its end, or Ray of the runner's."""
    if runner.line is None or not runner.line.is_free:
        return _over_ray(order, runner)
    return asyncio.create_task(_by_line(order, runner, runner.line.ask(encode_order(order))))


async def is_clean(runner: Seated) -> bool:
    """Whether the runner, whose job has ended, says that nothing was left in it. One that doesn't answer soon isn't clean."""
    try:
        async with asyncio.timeout(_CLEAN_WITHIN_S):
            if runner.line is not None and runner.line.is_free:
                return await runner.line.ask(ARE_YOU_CLEAN) == CLEAN
            return await runner.actor.is_clean.remote() is True
    except (Broken, TimeoutError, ray.exceptions.RayError):
        return False


def _over_ray(order: Order, runner: Seated) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(_awaited(runner.actor.run.remote(order)))


async def _by_line(order: Order, runner: Seated, answer: "asyncio.Task[bytes]") -> object:
    by_line = asyncio.ensure_future(_end_of(answer))
    ways: set[asyncio.Future[Any]] = {by_line}
    try:
        await asyncio.wait(ways, timeout=LINE_ALONE_S)
        if by_line.done():
            with suppress(Broken):
                return by_line.result()
        by_ray = _over_ray(order, runner)
        ways = {way for way in (by_line, by_ray) if not way.done()}
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        if by_line.done() and not by_line.exception() and not by_ray.done():
            return by_line.result()
        return await by_ray
    finally:
        for way in ways:
            way.cancel()


async def _end_of(answer: "asyncio.Task[bytes]") -> JobEnd:
    try:
        return decode_end(await answer)
    except ValueError as error:
        raise Broken(str(error)) from error


async def _awaited(reference: Any) -> Any:
    return await reference
