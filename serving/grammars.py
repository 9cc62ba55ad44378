"""Whether what shapes an answer can be afforded: known before an engine hears of it, from a process that can be killed.

A JSON schema of a few lines may take minutes to compile, and an engine that compiles it serves nobody meanwhile. So each
is compiled first, and tried with some tokens, in a process of its own with a limit on processor time and memory
(`serving.grammar_process`). What came of it is remembered: an engine only ever compiles what is known to be affordable, and
what is not is refused at once when it is sent again. No two grammars of one account are compiled at the same time; accounts
whose grammars take long share one place, and one that has used up its time must wait: none keeps the others' from being
looked at. What the engine has in memory of them is bounded too (`Running`).
"""

import asyncio
import base64
import contextlib
import hashlib
import sys
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
import structlog

from fabric.errors import FabricError, InvalidRequest, RateLimited, Unavailable
from serving import limits

_START_S: Final = 600.0
"""It loads what an engine does; on a machine that is very busy that takes minutes, and it would begin anew each time."""
_LINE_MAX: Final = 1 << 20
_SCRIPT: Final = "import sys; sys.path[:0] = sys.argv[1:]; from serving.grammar_process import main; main()"

COMMON: Final = (
    {
        "type": "object",
        "properties": {
            "a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": "number"}, "d": {"type": "boolean"},
            "e": {"type": "array", "items": {"type": "string"}}, "f": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["a", "b", "c", "d", "e", "f"],
        "additionalProperties": False,
    },
    {"type": "object"},
    {"type": "object", "properties": {"a": {"type": "string", "maxLength": 5_000}}, "required": ["a"]},
    {"type": "object", "properties": {
        name: {"type": "string", "format": name}
        for name in ("date", "time", "date-time", "email", "uuid", "uri", "ipv4", "ipv6", "hostname", "duration")
    }},
)  # fmt: skip
"""Of most schemas. Texts of a greatest length are what takes long: those of any length have most in common."""

_log = structlog.get_logger()


class Verdict(msgspec.Struct, frozen=True):
    """What came of compiling a grammar. `why`: the compiler's own words, where it is none; `over`: the limit it ran into."""

    backend: str = ""
    grammar: str = ""
    """What replaces a list of choices, where it was one."""
    size: int = 0
    """Of the compiled grammar, in bytes."""
    why: str = ""
    over: str = ""
    cpu_s: float = 0.0

    @property
    def is_accepted(self) -> bool:
        return not self.why and not self.over


class _Said(msgspec.Struct, frozen=True):
    number: int
    verdict: Verdict


class Grammars:
    """The outcomes that a replica knows, and the process that finds others. Use it within one event loop.

    Args:
        setup: what the process begins with, as `serving.grammar_process` reads it.
        command: starts that process; reads numbered lines and answers them.
    """

    def __init__(
        self, setup: bytes, *, command: Sequence[str] = (), monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._setup = base64.b64encode(setup) + b"\n"
        self._command = tuple(command) or (sys.executable, "-S", "-c", _SCRIPT, *(path for path in sys.path if path))
        self._monotonic = monotonic
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Verdict]] = {}
        self._kept_bytes = 0
        self._room = asyncio.Semaphore(limits.GRAMMARS_AT_ONCE)
        self._room_of_much = asyncio.Semaphore(limits.GRAMMARS_AT_ONCE - 1)
        self.running = Running()
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: dict[str, int] = {}
        self._used: dict[str, tuple[float, float]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[Verdict]] = {}
        self._count = 0

    async def check(self, account_id: str, grammar: dict[str, Any]) -> Verdict:
        """The outcome of a grammar that can be afforded.

        Args:
            account_id: who asks.
            grammar: one of `json`, `regex`, `choice`, `grammar`, `json_object`, `structural_tag`, as vLLM takes them.

        Raises:
            InvalidRequest: it is none (`invalid_grammar`), or it costs too much (`grammar_too_costly`, `grammar_too_large`).
            RateLimited: the account has others that wait, or has used up its processor time.
            Unavailable: it can't be compiled now.
        """
        try:
            spec = msgspec.json.encode(grammar)
        except (OverflowError, UnicodeEncodeError, RecursionError, msgspec.MsgspecError) as error:
            raise _refusal(Verdict(why=f"it holds what can't be passed on: {error}")) from None
        if len(spec) > limits.GRAMMAR_BYTES_MAX:
            raise too_large(len(spec))
        key = hashlib.sha256(spec).digest()
        found = self._known.get(key)
        if found is None:
            task = self._asking.get(key)
            if task is None:
                self._may_ask(account_id)
                task = self._asking[key] = asyncio.create_task(self._find(account_id, spec))
                task.add_done_callback(lambda done: self._found(key, done))
            found = await asyncio.shield(task)
        else:
            self._known.move_to_end(key)
        if not found.is_accepted:
            raise _refusal(found)
        return found

    async def close(self) -> None:
        """End the process."""
        for task in tuple(self._asking.values()):
            task.cancel()
        await self._end()

    def _may_ask(self, account_id: str) -> None:
        waiting = self._waiting.get(account_id, 0)
        if waiting >= limits.GRAMMARS_WAITING_MAX:
            raise RateLimited(
                f"{waiting} new schemas or grammars of yours wait to be compiled, which is all that may: send this one when"
                " they are answered",
                code="too_many_grammars", limit=limits.GRAMMARS_WAITING_MAX, retry_after_s=1,
            )  # fmt: skip
        used_s = self._used_s(account_id)
        if used_s >= limits.GRAMMAR_BUDGET_S:
            wait_s = 1 + int((used_s - limits.GRAMMAR_BUDGET_S) * limits.GRAMMAR_BUDGET_PER_S / limits.GRAMMAR_BUDGET_S)
            raise RateLimited(
                f"your new schemas and grammars took {used_s:.0f} s to compile lately, {limits.GRAMMAR_BUDGET_S:.0f} s in"
                f" {limits.GRAMMAR_BUDGET_PER_S:.0f} s may: try again in {wait_s} s, or send one that was compiled before",
                code="too_many_grammars", retry_after_s=wait_s,
            )  # fmt: skip
        self._waiting[account_id] = waiting + 1

    def _used_s(self, account_id: str) -> float:
        """What is left of an account's processor time: it fades evenly."""
        used_s, at = self._used.get(account_id, (0.0, 0.0))
        faded_s = (self._monotonic() - at) * limits.GRAMMAR_BUDGET_S / limits.GRAMMAR_BUDGET_PER_S
        return max(0.0, used_s - faded_s)

    async def _find(self, account_id: str, spec: bytes) -> Verdict:
        try:
            async with self._lines[account_id], self._place(account_id), self._room:
                verdict = await self._ask(spec)
                counts_s = verdict.cpu_s * (limits.GRAMMAR_REFUSED_COUNTS if verdict.over else 1)
                self._used[account_id] = (self._used_s(account_id) + counts_s, self._monotonic())
                return verdict
        finally:
            self._waiting[account_id] -= 1
            if not self._waiting[account_id]:
                del self._waiting[account_id], self._lines[account_id]
                for other in [other for other in self._used if not self._used_s(other)]:
                    del self._used[other]

    def _place(self, account_id: str) -> contextlib.AbstractAsyncContextManager[Any]:
        """One among those that use much, for one that does."""
        return self._room_of_much if self._used_s(account_id) > limits.GRAMMAR_MUCH_S else contextlib.nullcontext()

    def _found(self, key: bytes, done: asyncio.Task[Verdict]) -> None:
        del self._asking[key]
        if not done.cancelled() and done.exception() is None:
            self._known[key] = done.result()
            self._kept_bytes += _bytes_of(done.result())
            while self._kept_bytes > limits.GRAMMARS_KEPT_BYTES:
                _, dropped = self._known.popitem(last=False)
                self._kept_bytes -= _bytes_of(dropped)

    # -- the process -----------------------------------------------------------------------------------------------------

    async def _ask(self, spec: bytes) -> Verdict:
        process = await self._started()
        self._count += 1
        number, answer = self._count, asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            assert process.stdin is not None
            process.stdin.write(b"%d %s\n" % (number, base64.b64encode(spec)))
            await process.stdin.drain()
            async with asyncio.timeout(2 * limits.GRAMMAR_WALL_S):
                verdict: Verdict = await answer
                return verdict
        except (TimeoutError, ConnectionError):
            await self._end()
            raise _away() from None
        finally:
            self._answers.pop(number, None)

    async def _started(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return self._process
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_MAX,
                start_new_session=True,
            )
            self._process = process
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(self._setup)
                await process.stdin.drain()
                async with asyncio.timeout(_START_S):
                    await process.stdout.readuntil()
            except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
                await self._end()
                raise _away() from None
            self._reading = asyncio.create_task(self._read(process))
            return process

    async def start(self) -> None:
        """Start the process before the first grammar comes; without it, the first waits for that."""
        with contextlib.suppress(FabricError):
            await self._started()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            with contextlib.suppress(msgspec.DecodeError):  # what some library prints
                said = msgspec.json.decode(line, type=_Said)
                waiting = self._answers.get(said.number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(said.verdict)
        _log.warning("grammars_process_ended", left=len(self._answers))
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(_away())
        if self._process is process:
            self._process = None
        await process.wait()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
        if self._reading is not None:
            self._reading.cancel()


class Running:
    """How much of compiled grammars an engine has in memory for the answers that it writes."""

    def __init__(self) -> None:
        self._by_account: dict[str, int] = {}
        self._all = 0

    @contextlib.contextmanager
    def one_more(self, account_id: str, size: int) -> Iterator[None]:
        """While an answer is written by a grammar of `size` bytes.

        Raises:
            RateLimited: `too_many_grammars`: it is more than may be at a time.
        """
        mine = self._by_account.get(account_id, 0)
        if mine and (
            mine + size > limits.GRAMMARS_RUNNING_BYTES or self._all + size > 4 * limits.GRAMMARS_RUNNING_BYTES
        ):
            raise RateLimited(
                f"the schemas and grammars of your answers that are being written have {mine >> 20} MiB when compiled, at"
                f" most {limits.GRAMMARS_RUNNING_BYTES >> 20} MiB may: send this one when some are answered",
                code="too_many_grammars", limit=limits.GRAMMARS_RUNNING_BYTES, retry_after_s=1,
            )  # fmt: skip
        self._by_account[account_id] = mine + size
        self._all += size
        try:
            yield
        finally:
            self._all -= size
            self._by_account[account_id] -= size
            if not self._by_account[account_id]:
                del self._by_account[account_id]


def _bytes_of(verdict: Verdict) -> int:
    return 400 + len(verdict.why) + len(verdict.grammar)


def too_large(size: int) -> InvalidRequest:
    """A grammar that isn't even looked at."""
    return InvalidRequest(
        f"the schema or grammar has {size} bytes, at most {limits.GRAMMAR_BYTES_MAX} may come: take parts of it out",
        code="grammar_too_large", bytes=size, limit=limits.GRAMMAR_BYTES_MAX,
    )  # fmt: skip


def _refusal(verdict: Verdict) -> InvalidRequest:
    if verdict.why:
        return InvalidRequest(f"the schema or grammar can't be used: {verdict.why[:1_000]}", code="invalid_grammar")
    parts = "repeat counts, nesting, or alternatives"
    number, remedy = {
        "time": (f"more than {limits.GRAMMAR_CPU_S:g} s to compile", parts),
        "memory": (f"more than {limits.GRAMMAR_MEMORY_BYTES >> 20} MiB", parts),
        "size": (f"more than {limits.GRAMMAR_COMPILED_BYTES >> 20} MiB once it is compiled", parts),
        "step": (
            f"more than {limits.GRAMMAR_STEP_S * 1000:g} ms for a token, or {limits.GRAMMAR_STEP_MEAN_S * 1000:g} ms for each",
            "rules that can be read in many ways",
        ),
    }[verdict.over]
    return InvalidRequest(
        f"the schema or grammar takes {number}, which is all that it may: use fewer {remedy}", code="grammar_too_costly"
    )


def _away() -> Unavailable:
    return Unavailable("schemas and grammars can't be compiled now: try again in a moment", code="grammars_unavailable")
