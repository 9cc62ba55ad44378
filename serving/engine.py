"""vLLM with the meter in it: the only module that imports vLLM. tests/serving/test_engine_contract.py holds it to what
is relied on here.

Metering sits at the one point that all of vLLM's surfaces share, `AsyncLLM.generate` and `encode`: prompts are
tokenised there and exact, outputs are tokens, a generator that is closed aborts its request. A call is admitted before
its first output (an async generator runs when it is first asked), so a refusal can still become an HTTP status; see
`serving.front`. Tokens that are not paid for are never handed on. The idea of wrapping `generate` is Ray Serve LLM's.
"""

import asyncio
import contextlib
import copy
import itertools
import json
import pickle
import time
from argparse import Namespace
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, TypeVar

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.exceptions import GenerationError
from vllm.lora.request import LoRARequest
from vllm.outputs import STREAM_FINISHED, CompletionOutput, PoolingRequestOutput, RequestOutput
from vllm.reasoning import ReasoningParserManager
from vllm.renderers.inputs.preprocess import extract_prompt_len
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

from fabric.errors import FabricError, Internal, InvalidRequest, NotFound, PermissionDenied
from serving.calls import Ended
from serving.front import Front
from serving.grammars import COMMON, Grammars
from serving.meter import Meter
from serving.options import FLAGS
from serving.reaper import Reaper, watch
from serving.seen import Seen, SeenByRay, Unseen
from serving.tickets import TICKET, Ticket

_Output = TypeVar("_Output")
_TTFTS_KEPT: Final = 512
_SALTED: Final = frozenset({"token", "embeds", "multimodal"})
_SHAPES: Final = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_INPUT_TYPES: Final = ("search_document", "search_query", "classification", "clustering")
_ABILITIES: Final = (("text", "/v1/completions"), ("embeddings", "/v1/embeddings"), ("scores", "/v1/score"))
"""What a model can be asked for, by a path that vLLM has for it alone."""
_HALVES: Final = ("encoder_prompt", "decoder_prompt")


@dataclass(slots=True)
class _Produced:
    """What one call has given so far, by choice."""

    ids: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, list[str]] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    cached: int | None = None
    tokens: int = 0

    def add(self, out: RequestOutput, *, only_prompt: bool = False) -> None:
        if only_prompt:
            _blank(out)
        if self.cached is None:
            self.cached = out.num_cached_tokens
        for choice in out.outputs:
            self.tokens += len(choice.token_ids)
            self.ids.setdefault(choice.index, []).extend(choice.token_ids)
            self.texts.setdefault(choice.index, []).append(choice.text)
            if choice.finish_reason is not None:
                self.finished.add(choice.index)


@dataclass(slots=True, eq=False)
class Loaded:
    """A model that the engine answers for: its own (no request), or an adapter."""

    name: str
    meter: Meter
    request: LoRARequest | None = None
    """As the engine knows it: under a name that no other version of it has."""
    calls: int = 0
    dropped: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """It was dropped, and its last call has ended."""

    @contextlib.contextmanager
    def one_more(self, ticket: Ticket) -> Iterator[None]:
        """A call of it: its meter stays open for as long.

        Raises:
            NotAdmitted: it was dropped.
        """
        if self.dropped:
            raise _withdrawn(self.name, ticket)
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1
            if self.dropped and not self.calls:
                self.over.set()


class NotAdmitted(GenerationError):  # type: ignore[misc]
    """A call that isn't paid for: vLLM's own kind of error, so that its streams end without a trace in the log. The
    answer that the client gets is the ticket's refusal.
    """


class MeteredAsyncLLM(AsyncLLM):  # type: ignore[misc]  # vLLM is not type-checked here
    """vLLM's engine, each of whose calls is paid for. What it answers for is set once it is there."""

    own: Loaded
    adapters: dict[str, Loaded]
    grammars: Grammars
    ttfts_us: "deque[int]"
    seen: Seen
    reasoner: Any = None
    """vLLM's parser of the model's reasoning, where it has one: it counts the tokens of it."""

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **more: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As vLLM's; nothing is asked of the ledger or the engine before the first output is."""
        ticket = TICKET.get()
        if ticket is None:
            raise PermissionDenied("no call without a ticket", code="not_a_gateway")
        model = self._model_of(ticket, more)
        params, salted = copy.copy(sampling_params), _salted(prompt, ticket)
        outputs = _in_turn(ticket, model, self._metered(ticket, salted, params, request_id, more, meter=model.meter))
        return _merged(outputs) if sampling_params.output_kind == RequestOutputKind.FINAL_ONLY else outputs

    def encode(
        self, prompt: Any, pooling_params: Any, request_id: str, **more: Any
    ) -> AsyncGenerator[PoolingRequestOutput[Any], None]:
        """As vLLM's: the prompt is all that is charged."""
        ticket = TICKET.get()
        if ticket is None:
            raise PermissionDenied("no call without a ticket", code="not_a_gateway")
        model, salted = self._model_of(ticket, more), _salted(prompt, ticket)
        return _in_turn(
            ticket, model, self._encoded(ticket, salted, pooling_params, request_id, more, meter=model.meter)
        )

    def _model_of(self, ticket: Ticket, more: dict[str, Any]) -> Loaded:
        """What is asked, by the adapter that vLLM's surface found for the name; the engine's own word for it goes on.

        Raises:
            NotAdmitted: it was dropped just now.
        """
        asked = more.get("lora_request")
        if asked is None:
            return self.own
        model = self.adapters.get(asked.lora_name)
        if model is None:
            raise _withdrawn(asked.lora_name, ticket)
        more["lora_request"] = model.request
        return model

    async def _metered(
        self,
        ticket: Ticket,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        more: dict[str, Any],
        *,
        meter: Meter,
    ) -> AsyncGenerator[RequestOutput, None]:
        began_us, choices = time.monotonic_ns() // 1_000, params.n or 1
        length = extract_prompt_len(self.model_config, prompt)
        most = 0 if ticket.only_prompt else params.max_tokens or self.model_config.max_model_len - length
        kept = contextlib.ExitStack()
        try:
            call_id = await self._admit(ticket, length, most * choices, params, kept, meter=meter)
        except FabricError as error:
            if not ticket.admitted:
                raise NotAdmitted(error.message) from None
            ticket.cut = True  # one prompt of several: those before it have their answers
            yield _nothing(request_id, prompt, choices)
            return
        params.output_kind = RequestOutputKind.DELTA
        more["priority"] = -ticket.tier_rank
        produced, ended = _Produced(), "error"
        engine = super().generate(prompt, params, request_id, **more)
        try:
            async for out in engine:
                if out is STREAM_FINISHED:
                    continue
                if not produced.ids:
                    self._note_first(ticket, meter, time.monotonic_ns() // 1_000 - began_us)
                before = produced.tokens
                produced.add(out, only_prompt=ticket.only_prompt)
                total = produced.tokens
                paid = meter.advance(call_id, completion=total, cached=produced.cached or 0)
                if paid < total:
                    paid = await meter.extend(call_id, completion=total, cached=produced.cached or 0)
                if paid < total:
                    ticket.cut, ended = True, "balance_exhausted"
                    yield self._cut(out, produced, keep=paid - before, params=params)
                    return
                ended = _why(out) if out.finished else "client_gone"
                yield out
        except (asyncio.CancelledError, GeneratorExit):
            ended = "client_gone"
            raise
        except BaseException:
            ended = "error"
            raise
        finally:
            kept.close()
            self._count_reasoning(meter, call_id, produced)
            self._end(ticket, meter, call_id, ended, made=produced.tokens > 0)
            await engine.aclose()

    async def _encoded(
        self, ticket: Ticket, prompt: Any, params: Any, request_id: str, more: dict[str, Any], *, meter: Meter
    ) -> AsyncGenerator[PoolingRequestOutput[Any], None]:
        try:
            call_id = await self._admit(ticket, extract_prompt_len(self.model_config, prompt), 0, meter=meter)
        except FabricError as error:
            raise NotAdmitted(error.message) from None
        more["priority"] = -ticket.tier_rank
        ended: Ended = "client_gone"
        engine = super().encode(prompt, params, request_id, **more)
        try:
            async for out in engine:
                meter.advance(call_id, completion=0, cached=out.num_cached_tokens or 0)
                ended = "stop" if out.finished else "client_gone"
                yield out
        except GeneratorExit:
            await self.abort(request_id)
            raise
        except Exception:
            ended = "error"
            raise
        finally:
            self._end(ticket, meter, call_id, ended, made=False)
            await engine.aclose()

    async def _admit(
        self,
        ticket: Ticket,
        prompt_tokens: int,
        wants: int,
        params: SamplingParams | None = None,
        kept: contextlib.ExitStack | None = None,
        *,
        meter: Meter,
    ) -> str:
        """Have the call paid for, and then what shapes its answer looked at: who has no tokens has nothing compiled. `kept`
        is closed when the call is over.
        """
        call_id, is_open = ticket.next_call_id(), False
        try:
            await meter.open(
                call_id, payer=ticket.payer, key_id=ticket.key_id, prompt_tokens=prompt_tokens, wants=wants
            )
            is_open = True
            ticket.opened += 1
            if params is not None and kept is not None:
                await self._shape(ticket, params, kept)
        except BaseException as error:
            if is_open:
                meter.book.void(call_id)  # the engine has not heard of it
                self._end(
                    ticket, meter, call_id, "error" if isinstance(error, FabricError) else "client_gone", made=False
                )
            if isinstance(error, FabricError):
                ticket.refusal = ticket.refusal or error
            raise
        ticket.admitted += 1
        ticket.left_uhs = meter.book.left_uhs(ticket.payer)
        return call_id

    async def _shape(self, ticket: Ticket, params: SamplingParams, kept: contextlib.ExitStack) -> None:
        """Let the engine compile only what is known to be a grammar, and an affordable one. Its own check of it, on this
        event loop and for every request anew, is left out (`Engine.open`).

        Raises:
            FabricError: as `Grammars.check`.
        """
        wanted = params.structured_outputs
        if wanted is None or wanted.all_constraints_none():
            return
        asked = {name: value for name in _SHAPES if (value := getattr(wanted, name)) is not None}
        if len(asked) != 1 or asked.get("json_object") is False:
            raise InvalidRequest(
                f"one thing may shape an answer, not {', '.join(sorted(asked))}", code="invalid_grammar"
            )
        account_id = ticket.payer.account_id
        verdict = await self.grammars.check(account_id, asked)
        kept.enter_context(self.grammars.running.one_more(account_id, verdict.size))
        wanted = params.structured_outputs = copy.copy(wanted)
        wanted._backend = verdict.backend  # noqa: SLF001 - as vLLM's own check leaves it
        if verdict.grammar:
            wanted.choice, wanted.grammar = None, verdict.grammar

    def _count_reasoning(self, meter: Meter, call_id: str, produced: _Produced) -> None:
        """Which of the answer's tokens were reasoning: known for sure only at its end."""
        if self.reasoner is None:
            return
        reasoning = 0
        with contextlib.suppress(Exception):  # a parser's mistake must not leave a call unsettled
            reasoning = sum(self.reasoner.count_reasoning_tokens(ids) for ids in produced.ids.values())
        kept = meter.book.calls[call_id].usage
        meter.advance(call_id, completion=kept.completion_tokens, cached=kept.cached_tokens, reasoning=reasoning)

    def _note_first(self, ticket: Ticket, meter: Meter, took_us: int) -> None:
        self.ttfts_us.append(took_us)
        self.seen.began(model=meter.book.model, tier_rank=ticket.tier_rank, seconds=took_us / 1e6)

    def _end(self, ticket: Ticket, meter: Meter, call_id: str, ended: Any, *, made: bool) -> None:
        if ended == "error" and not made:  # the engine would not have it, or failed before it gave a token
            meter.book.void(call_id)
        call, charged_uhs = meter.end(call_id, ended)
        ticket.ended.append(call)
        ticket.charged_uhs += charged_uhs
        ticket.left_uhs = meter.book.left_uhs(ticket.payer)
        self.seen.ended(call, tier_rank=ticket.tier_rank, charged_uhs=charged_uhs)

    def _cut(self, out: RequestOutput, produced: _Produced, *, keep: int, params: SamplingParams) -> RequestOutput:
        """The last output: of what came just now the first `keep` tokens, and an end for each choice that has none."""
        last: list[CompletionOutput] = []
        for choice in out.outputs:
            count = len(choice.token_ids)
            if keep < count:
                produced.finished.discard(choice.index)
                _shorten(choice, produced, keep, self.get_tokenizer(), params)
            keep -= min(keep, count)
            last.append(choice)
        seen = {choice.index for choice in last}
        last += [_empty(index) for index in range(params.n or 1) if index not in seen | produced.finished]
        for choice in last:
            if choice.index not in produced.finished:
                choice.finish_reason, choice.stop_reason = "length", "balance_exhausted"
        out.outputs, out.finished = last, True
        return out


def _salted(prompt: Any, ticket: Ticket) -> Any:
    """The prompt with its account's salt in place of any other: what is cached of it, media included, is found again for
    this account alone. A prompt of a form that isn't known here is not let in: it might leave its salt behind.

    Raises:
        Internal: a surface hands on something else than vLLM's renderer makes.
    """
    kind = prompt.get("type") if isinstance(prompt, dict) else None
    if kind == "enc_dec":
        return {**prompt, **{part: _salted(prompt[part], ticket) for part in _HALVES if part in prompt}}
    if kind not in _SALTED or not ticket.salt:
        raise Internal(
            "a prompt came that can't be kept apart from other accounts': this is our mistake", code="unsalted"
        )
    salted = {**prompt, "cache_salt": ticket.salt}
    if kind == "multimodal":
        hashes = prompt["mm_hashes"].items()
        salted["mm_hashes"] = {name: [f"{ticket.salt}/{each}" for each in found] for name, found in hashes}
    return salted


def _shorten(choice: CompletionOutput, produced: _Produced, keep: int, tokenizer: Any, params: SamplingParams) -> None:
    """Leave the first `keep` tokens of an output, and the text that belongs to them: what was not paid was not produced."""
    drop = len(choice.token_ids) - keep
    kept = produced.ids[choice.index] = produced.ids[choice.index][:-drop]
    sent = "".join(produced.texts[choice.index][:-1])
    text = tokenizer.decode(kept, skip_special_tokens=params.skip_special_tokens).rstrip("\ufffd")
    choice.text = text[len(sent) :] if text.startswith(sent) else ""
    choice.token_ids = list(choice.token_ids[:keep])
    if choice.logprobs is not None:
        choice.logprobs = choice.logprobs[:keep]


def _blank(out: RequestOutput) -> None:
    """The prompt's own output, without the token that the engine made though none was wanted."""
    for choice in out.outputs:
        choice.token_ids, choice.text, choice.logprobs = [], "", None


def _empty(index: int) -> CompletionOutput:
    return CompletionOutput(index=index, text="", token_ids=[], cumulative_logprob=None, logprobs=None)


def _nothing(request_id: str, prompt: Any, choices: int) -> RequestOutput:
    """The answer to a prompt that was not admitted, beside others that were."""
    outputs = [_empty(index) for index in range(choices)]
    for choice in outputs:
        choice.finish_reason, choice.stop_reason = "length", "balance_exhausted"
    ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
    return RequestOutput(request_id, None, ids, None, outputs, finished=True)


def _why(out: RequestOutput) -> Ended:
    reasons = {choice.finish_reason for choice in out.outputs}
    return "error" if "error" in reasons else "length" if "length" in reasons else "stop"


async def _in_turn(
    ticket: Ticket, model: Loaded, outputs: AsyncGenerator[_Output, None]
) -> AsyncGenerator[_Output, None]:
    """One prompt of a request, when fewer of it are in the engine than may be at a time."""
    with model.one_more(ticket):
        async with ticket.turns, contextlib.aclosing(outputs):
            async for out in outputs:
                yield out


def _withdrawn(name: str, ticket: Ticket) -> NotAdmitted:
    """The answer to a call of an adapter that is no longer there."""
    ticket.refusal = ticket.refusal or NotFound(
        f"the model {name!r} was withdrawn: see GET /v1/models", code="model_not_found", param="model"
    )
    return NotAdmitted(ticket.refusal.message)


async def _merged(outputs: AsyncIterator[RequestOutput]) -> AsyncGenerator[RequestOutput, None]:
    """One output, as who doesn't stream expects: the engine tells only at the end how much that was, which is too late
    for a meter, so it is asked for all of them and they are put together here.
    """
    whole: RequestOutput | None = None
    async for out in outputs:
        if whole is None:
            whole = out
        else:
            whole.add(out, aggregate=True)
            whole.num_cached_tokens = (
                out.num_cached_tokens if whole.num_cached_tokens is None else whole.num_cached_tokens
            )
    if whole is not None:
        whole.outputs.sort(key=lambda choice: choice.index)
        yield whole


# -- a process with an engine in it ------------------------------------------------------------------------------------


class Engine:
    """A running engine and its application. Open it in the event loop that serves it; close it when its calls are over."""

    def __init__(self, llm: MeteredAsyncLLM, app: FastAPI, meter: Meter, reaper: Reaper, *, trust: str) -> None:
        self.llm, self.meter = llm, meter
        self.app = Front(app, trust=trust, afford=self._afford)
        paths = {getattr(route, "path", "") for route in app.routes}
        self.abilities = tuple(ability for ability, path in _ABILITIES if path in paths)
        self._served = app.state.openai_serving_models.lora_requests
        self._versions = itertools.count(1)
        self._reaper = reaper

    @classmethod
    async def open(cls, argv: Sequence[str], meter: Meter, *, trust: str, in_ray: bool = False) -> "Engine":
        """Load a model and build vLLM's own application around it. `argv` is as for `vllm serve`. Inside Ray its figures,
        and ours of its calls, are Ray's too.
        """
        args = parsed(argv)
        reaper = watch()
        grammars: Grammars | None = None
        try:
            config = AsyncEngineArgs.from_cli_args(args).create_engine_config(
                usage_context=UsageContext.OPENAI_API_SERVER
            )
            grammars = Grammars(pickle.dumps((config.model_config, config.structured_outputs_config)))
            starting = asyncio.create_task(grammars.start())
            llm = await asyncio.to_thread(_started, config, in_ray=in_ray)
            await starting
            reaper.tell()
            llm.own, llm.adapters = Loaded(meter.book.model, meter), {}
            llm.ttfts_us, llm.grammars = deque(maxlen=_TTFTS_KEPT), grammars
            llm.input_processor.structured_outputs_config = None  # it was looked at (`_shape`) before it came there
            llm.seen = SeenByRay() if in_ray else Unseen()
            if name := args.structured_outputs_config.reasoning_parser:
                llm.reasoner = ReasoningParserManager.get_reasoning_parser(name)(llm.get_tokenizer())
            tasks = await llm.get_supported_tasks()
            if "generate" in tasks:
                await _warmed(llm)
            app = build_app(args, tasks, llm.model_config)
            await init_app_state(llm, app.state, args, tasks)
        except BaseException:
            if grammars is not None:
                await grammars.close()
            reaper.close()
            raise
        app.state.server = SimpleNamespace(should_exit=False)  # vLLM's handler of a dead engine sets it
        _add_model_route(app)
        _take_input_types(app)
        return cls(llm, app, meter, reaper, trust=trust)

    async def check(self) -> None:
        """Raises where the engine is dead (vLLM's own error) or the meter is."""
        for model in (self.llm.own, *self.llm.adapters.values()):
            model.meter.check()
        await self.llm.check_health()

    async def load_adapter(self, name: str, folder: Path, meter: Meter) -> None:
        """As `serving.lora.Host`. What is cached of a prompt is found again by the folder too, so that each has its own."""
        number = next(self._versions)
        request = LoRARequest(lora_name=f"{name}#{number}", lora_int_id=number, lora_path=str(folder))
        try:
            await self.llm.add_lora(request)
        except BaseException:
            with contextlib.suppress(Exception):
                await self.llm.remove_lora(number)
            raise
        if (model := self.llm.adapters.get(name)) is None:
            model = self.llm.adapters[name] = Loaded(name, meter)
        model.request = request
        self._served[name] = LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(folder))

    def drop_adapter(self, name: str) -> Awaitable[None]:
        """As `serving.lora.Host`."""
        del self._served[name]
        model = self.llm.adapters.pop(name)
        model.dropped = True
        if not model.calls:
            model.over.set()
        return self._over(model)

    async def _over(self, model: Loaded) -> None:
        await model.over.wait()
        if model.request is not None:
            with contextlib.suppress(Exception):  # the engine forgets it in time, when others need its place
                await self.llm.remove_lora(model.request.lora_int_id)

    async def _afford(self, ticket: Ticket) -> None:
        model = self.llm.adapters.get(ticket.model, self.llm.own)
        with model.one_more(ticket):
            await model.meter.afford(ticket)

    def load(self) -> dict[str, int]:
        """Calls that are open, how many tokens one may have, and the time to the first token of recent ones, in µs."""
        ttfts = sorted(self.llm.ttfts_us.copy())  # at once: another thread asks
        return {
            "running": len(self.meter.book.calls) + sum(each.calls for each in self.llm.adapters.values()),
            "max_context": self.llm.model_config.max_model_len,
            "ttft_p50_us": ttfts[len(ttfts) // 2] if ttfts else 0,
            "ttft_p99_us": ttfts[len(ttfts) * 99 // 100] if ttfts else 0,
        }

    async def close(self) -> bool:
        """Settle, and end every process of the engine; whether the ledger knows of all calls."""
        settled = await self.meter.close(for_good=True)
        await self.llm.grammars.close()
        await asyncio.to_thread(self.llm.shutdown)
        await asyncio.to_thread(self._reaper.close)
        return settled


def _started(config: Any, *, in_ray: bool) -> MeteredAsyncLLM:
    llm: MeteredAsyncLLM = MeteredAsyncLLM.from_vllm_config(
        config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        disable_log_stats=False,
        stat_loggers=[RayPrometheusStatLogger] if in_ray else None,
    )
    return llm


async def _warmed(llm: MeteredAsyncLLM) -> None:
    """Have the engine do once what takes it long the first time: alternatives of tokens, and what schemas have in common.
    Nobody asked for it, so that nobody pays.
    """
    shapes = [None, *(StructuredOutputsParams(json=json.dumps(schema), _backend="xgrammar") for schema in COMMON)]
    for number, shape in enumerate(shapes):
        params = SamplingParams(max_tokens=1, temperature=0.7, logprobs=1, structured_outputs=shape)
        with contextlib.suppress(Exception):  # what can't be done beforehand is done, or refused, when it is asked for
            prompt = {"type": "token", "prompt_token_ids": [0, 0]}
            async for _ in AsyncLLM.generate(llm, prompt, params, f"warm-{number}"):
                pass


def parsed(argv: Sequence[str]) -> Namespace:
    """VLLM's arguments, as its own command reads them, with what we rely on.

    Raises:
        SystemExit: vLLM doesn't know one of them.
    """
    parser = make_arg_parser(FlexibleArgumentParser())
    args: Namespace = parser.parse_args([*argv, *FLAGS])
    validate_parsed_serve_args(args)
    return args


def _take_input_types(app: FastAPI) -> None:
    """Cohere's clients always say what texts are for. A model that tells none of it apart embeds all of them alike, and is
    asked all the same.
    """
    serving = getattr(app.state, "serving_embedding", None)
    if serving is not None and serving.io_processor.task_instructions is None:
        serving.io_processor.task_instructions = dict.fromkeys(_INPUT_TYPES, "")


def _add_model_route(app: FastAPI) -> None:
    """`GET /v1/models/{id}`, which OpenAI's clients call and vLLM lacks."""

    async def show_model(model: str) -> Response:
        served = await app.state.openai_serving_models.show_available_models()
        for card in served.data:
            if card.id == model:
                return JSONResponse(card.model_dump())
        error = {"message": f"the model {model!r} does not exist", "type": "invalid_request_error"}
        return JSONResponse({"error": {**error, "param": "model", "code": "model_not_found"}}, status_code=404)

    app.add_api_route("/v1/models/{model:path}", show_model, methods=["GET"])
