"""The port of engines: what a replica starts one with, what it needs of one, and which there are.

An engine is a module of this package, chosen by its file's name in an offer or a cluster file (`engine: sglang`). It has one
function, which loads a model and is back when it answers:

    async def open_engine(start: Start, meter: Meter) -> Engine

Nothing else names it: a file that is put here is an engine. `parts` has what they are made of.
"""

import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import serving.engines
from fabric.errors import InvalidRequest
from serving.engines.parts import options
from serving.metering.meter import Meter

_NONE: Final = frozenset({"parts", "port"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What an engine is started with.

    Args:
        model: the name that clients ask for.
        source: a folder on this machine, or the URL of a server, where the engine takes one.
        trust: the secret of our gateways; `serving.engines.parts.admission` asks for it.
        max_context: LLM tokens of a prompt and its answer; None = what the model says of itself.
        kv_bytes: for the engine's cache; None = as it likes.
        options: options of the engine as words (`--max-num-seqs 8`), by the names that vLLM has for them.
        devices: of the lease.
        on_cpu: there are no accelerators.
        in_ray: Ray runs the process, and takes its figures.
    """

    model: str
    source: str
    trust: str
    max_context: int | None = None
    kv_bytes: int | None = None
    options: tuple[str, ...] = ()
    devices: int = 1
    on_cpu: bool = False
    in_ray: bool = False


class Engine(Protocol):
    """An engine that is up, with the meter in it or before it."""

    app: Any
    """The ASGI application that gateways reach: an `Admission` around what answers."""
    abilities: tuple[str, ...]
    """What its model can be asked for: text, embeddings, scores."""

    async def check(self) -> None:
        """Raises where it can't answer any more: the replica is started anew."""
        ...

    def load(self) -> dict[str, int]:
        """`running` calls, `max_context` in LLM tokens, and `ttft_p50_us`, `ttft_p99_us` of recent calls. Any thread may ask."""
        ...

    async def close(self) -> bool:
        """Settle, and end every process of it; whether the ledger knows of all calls."""
        ...


Opener = Callable[[Start, Meter], Awaitable[Engine]]


def names() -> tuple[str, ...]:
    """The engines that there are."""
    return tuple(sorted(each.name for each in pkgutil.iter_modules(serving.engines.__path__) if each.name not in _NONE))


def engine_named(name: str, *, on_cpu: bool = False) -> Opener:
    """What opens it. Its module is imported for that, which takes long for some, once the environment is as engines need it.

    Raises:
        InvalidRequest: there is no engine of that name (code `unknown_engine`).
    """
    if name not in names():
        raise InvalidRequest(
            f"there is no engine {name[:100]!r}: choose of {', '.join(names())}",
            code="unknown_engine",
            engine=name[:100],
        )
    options.set_environment(on_cpu=on_cpu)
    opener: Opener = importlib.import_module(f"{serving.engines.__name__}.{name}").open_engine
    return opener


def pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options as names without their dashes, and values: `true` and `false` where they are flags."""
    at = 0
    while at < len(words):
        name, value = words[at].removeprefix("--"), words[at + 1] if at + 1 < len(words) else "--"
        at += 1
        if not value.startswith("--"):
            at += 1
        elif name.startswith("no-"):
            name, value = name.removeprefix("no-"), "false"
        else:
            value = "true"
        yield name, value
