"""The process in which a grammar is compiled before an engine hears of it: `python -c ...`, by `serving.grammars`.

It loads vLLM's own compiler once and has it compile what most schemas have in common, which is most of the work; then it
forks for each grammar, so that each begins with that. The fork has a limit on processor time and memory, and whatever the
grammar does to it ends there. It reads `number spec` lines and writes one line of JSON for each.
"""

import base64
import contextlib
import gc
import json
import os
import pickle
import re
import resource
import select
import signal
import sys
import time
from types import SimpleNamespace
from typing import Any, Final

import msgspec

from serving import limits
from serving.grammars import COMMON, Verdict

_TICK_S: Final = 0.02
_OUT_OF_MEMORY: Final = 3
_STEP_TRIES: Final = 3
_PLACE: Final = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")
_BASE: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_REGEX_COMPILATION_TIMEOUT_S": "0",  # a fork's limit is on all that it does
}
_FAULTS: Final = {
    "per_rule_fsm_hashes": "a part of one of its patterns is repeated more than 128 times, which can't be compiled: repeat it"
    " fewer times, or limit the text by `maxLength` in place of a pattern",
}
"""The compiler's own mistakes, by what it says of them, and what to do."""


def main() -> None:
    """Answer until the other end is gone."""
    os.environ.update(_BASE)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no answer
    os.nice(limits.GRAMMAR_NICE)
    compiler = Compiler.made(pickle.loads(base64.b64decode(sys.stdin.buffer.readline())))  # noqa: S301 - our parent's
    compiler.warm()
    gc.freeze()  # a fork shares what it doesn't write to
    out.write(b"{}\n")
    _serve(compiler, out)


def _serve(compiler: "Compiler", out: Any) -> None:
    source, rest = sys.stdin.fileno(), b""
    running: dict[int, tuple[bytes, float]] = {}
    os.set_blocking(source, False)
    while True:
        ready, _, _ = select.select([source], [], [], _TICK_S if running else None)
        if ready:
            data = os.read(source, 1 << 20)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                number, _, spec = line.partition(b" ")
                running[_forked(compiler, number, spec, out)] = (number, time.monotonic())
        _reap(running, out)


def _forked(compiler: "Compiler", number: bytes, spec: bytes, out: Any) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _limit()
        verdict = compiler.verdict(json.loads(base64.b64decode(spec)))
        spent = time.process_time()
        out.write(_line(number, msgspec.structs.replace(verdict, cpu_s=round(spent, 3))))
        status = 0
    except MemoryError:
        status = _OUT_OF_MEMORY
    finally:
        os._exit(status)


def _limit() -> None:
    """For this fork: SIGPROF ends it when its processor time is used up."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, limits.GRAMMAR_CPU_S)
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
        (kib,) = (int(line.split()[1]) for line in status if line.startswith("VmData"))
    most = (kib << 10) + limits.GRAMMAR_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # a warning for each part of a schema is nobody's to read
    os.dup2(null, 1)


def _reap(running: dict[int, tuple[bytes, float]], out: Any) -> None:
    for pid, (number, began) in list(running.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done and time.monotonic() - began > limits.GRAMMAR_WALL_S:
            os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, 0)
            out.write(_line(number, Verdict(over="time", cpu_s=limits.GRAMMAR_CPU_S)))
        elif done and status:
            over = "time" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF else "memory"
            out.write(_line(number, Verdict(over=over, cpu_s=limits.GRAMMAR_CPU_S)))
        if done:
            del running[pid]


def _line(number: bytes, verdict: Verdict) -> bytes:
    return b'{"number":%s,"verdict":%s}\n' % (number, msgspec.json.encode(verdict))


class Compiler:
    """vLLM's own check and compiler of grammars, as the engine has them."""

    def __init__(self, model_config: Any, config: Any, tokenizer: Any, backend: Any) -> None:
        self._model_config, self._config = model_config, config
        self._tokenizer, self._backend = tokenizer, backend

    @classmethod
    def made(cls, setup: tuple[Any, Any]) -> "Compiler":
        """From an engine's configuration of its model and of structured outputs."""
        import vllm.sampling_params  # noqa: PLC0415 - before the forks, each of which would do it again
        import vllm.v1.structured_output.request  # noqa: F401, PLC0415
        from vllm.tokenizers import cached_tokenizer_from_config  # noqa: PLC0415
        from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend  # noqa: PLC0415

        model_config, config = setup
        tokenizer = cached_tokenizer_from_config(model_config=model_config)
        whole = SimpleNamespace(structured_outputs_config=config, model_config=model_config, speculative_config=None)
        backend = XgrammarBackend(whole, tokenizer=tokenizer, vocab_size=model_config.get_vocab_size())
        return cls(model_config, config, tokenizer, backend)

    def warm(self) -> None:
        """Compile what schemas have in common: the compiler keeps what it found for each rule, and forks begin with that."""
        from vllm.v1.structured_output.backend_types import StructuredOutputOptions  # noqa: PLC0415

        for schema in COMMON:
            with contextlib.suppress(
                Exception
            ):  # what can't be made beforehand is made, or refused, when it is asked for
                self._backend.compile_grammar(StructuredOutputOptions.JSON, json.dumps(schema))

    def verdict(self, given: dict[str, Any]) -> Verdict:
        """What comes of it; takes as long as it takes."""
        from vllm.sampling_params import SamplingParams, StructuredOutputsParams  # noqa: PLC0415
        from vllm.v1.structured_output.request import get_structured_output_key  # noqa: PLC0415

        try:
            params = SamplingParams(structured_outputs=StructuredOutputsParams(**given))
            params._validate_structured_outputs(self._model_config, self._config, self._tokenizer)  # noqa: SLF001
            wanted = params.structured_outputs
            grammar = self._backend.compile_grammar(*get_structured_output_key(wanted))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a compiler may find fault in any way
            if "bad_alloc" in str(error):
                raise MemoryError from None
            return Verdict(why=_plain(error))
        size = grammar.ctx.memory_size_bytes
        if size > limits.GRAMMAR_COMPILED_BYTES:
            return Verdict(over="size")
        is_slow, leads_on = _tried(grammar, self._backend)
        if is_slow:
            return Verdict(over="step")
        if not leads_on:
            return Verdict(why="it leads to where nothing may follow, so that no answer fits it")
        replaced = wanted.grammar if given.get("choice") is not None else ""
        return Verdict(backend=wanted._backend, grammar=replaced or "", size=size)  # noqa: SLF001


def _tried(grammar: Any, backend: Any) -> tuple[bool, bool]:
    """Whether what may come next takes too long to say, which an engine would wait for at each token; and whether there was
    a way on from each: an engine fails where there is none.
    """
    mask, pace = backend.allocate_token_bitmask(1), Pace()
    for step in range(limits.GRAMMAR_STEPS):
        pace.took(_filled_in(grammar, mask))
        token = _allowed(mask, step)
        if token is None:
            return pace.is_slow, bool(step) and grammar.matcher.is_completed()
        if pace.is_slow:
            break
        began = time.thread_time()
        with contextlib.suppress(RuntimeError):
            grammar.accept_tokens("", [token])
        pace.took(time.thread_time() - began, steps=0)
        if grammar.is_terminated():
            break
    return pace.is_slow, True


class Pace:
    """How long the steps of a grammar take: one may be slow now and then, all of them may not."""

    def __init__(self) -> None:
        self._steps, self._slowest_s, self._sum_s = 0, 0.0, 0.0

    def took(self, seconds: float, *, steps: int = 1) -> None:
        """One more step."""
        self._steps += steps
        self._slowest_s, self._sum_s = max(self._slowest_s, seconds), self._sum_s + seconds

    @property
    def is_slow(self) -> bool:
        mean = limits.GRAMMAR_STEP_S + self._steps * limits.GRAMMAR_STEP_MEAN_S
        return self._slowest_s > limits.GRAMMAR_STEP_S or self._sum_s > mean


def _filled_in(grammar: Any, mask: Any) -> float:
    """The processor time that it takes: the least of some tries, where the first is slow. A new fork's memory is slow too."""
    least = limits.GRAMMAR_WALL_S
    for _ in range(_STEP_TRIES):
        began = time.thread_time()
        grammar.fill_bitmask(mask, 0)
        least = min(least, time.thread_time() - began)
        if least <= limits.GRAMMAR_STEP_S:
            break
    return least


def _allowed(mask: Any, step: int) -> int | None:
    """One of the tokens that may come next, another one at each step."""
    words = mask[0].numpy()
    (there,) = words.nonzero()
    if not len(there):
        return None
    at = int(there[step % len(there)])
    word = int(words[at]) & 0xFFFFFFFF
    bits = [bit for bit in range(32) if word >> bit & 1]
    return at * 32 + bits[step % len(bits)]


def _plain(error: Exception) -> str:
    """A compiler's words without the place in its source."""
    cause = error.__cause__
    for mark, ours in _FAULTS.items():
        if mark in f"{error} {cause}":
            return ours
    said = str(error) if cause is None or str(cause) in str(error) else f"{error} {cause}"
    return " ".join(_PLACE.sub("", said).split())[:1_000]
