"""vLLM with the meter in it.

Metering sits at the one point that all of vLLM's surfaces share, `AsyncLLM.generate` and `encode`: prompts are
tokenised there and exact, outputs are tokens, a generator that is closed aborts its request. A call is admitted before
its first output (an async generator runs when it is first asked), so a refusal can still become an HTTP status; see
`serving.engines.parts.admission`. Tokens that are not paid for are never handed on. The idea of wrapping `generate` is Ray Serve LLM's.
"""

import asyncio
import contextlib
import copy
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from vllm.exceptions import GenerationError
from vllm.lora.request import LoRARequest
from vllm.outputs import STREAM_FINISHED, PoolingRequestOutput, RequestOutput
from vllm.renderers.inputs.preprocess import extract_prompt_len
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from fabric.errors import FabricError, Internal, InvalidRequest, NotFound, PermissionDenied
from serving.calls import Ended
from serving.engines.parts.admission import engine_ended
from serving.engines.parts.outputs import Produced, cut, merged, nothing, why_ended
from serving.grammars import Grammars
from serving.metering.meter import KEY_LIMIT, RESETTING_LIMIT, Meter
from serving.metering.metrics import Seen
from serving.metering.payer import TICKET, SignedPayer

_Output = TypeVar("_Output")
_SALTED: Final = frozenset({"token", "embeds", "multimodal"})
_SHAPES: Final = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_HALVES: Final = ("encoder_prompt", "decoder_prompt")


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
    def one_more(self, ticket: SignedPayer) -> Iterator[None]:
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
        return merged(outputs) if sampling_params.output_kind == RequestOutputKind.FINAL_ONLY else outputs

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

    def _model_of(self, ticket: SignedPayer, more: dict[str, Any]) -> Loaded:
        """What is asked, by the adapter that vLLM's surface found for the name; the engine's own word for it goes on. One
        that vLLM found for anything else but the model asked for, as the type of a part of a message, isn't meant.

        Raises:
            NotAdmitted: it was dropped just now.
        """
        asked = more.get("lora_request")
        if asked is None or asked.lora_name != ticket.model:
            more["lora_request"] = None
            return self.own
        model = self.adapters.get(asked.lora_name)
        if model is None:
            raise _withdrawn(asked.lora_name, ticket)
        more["lora_request"] = model.request
        return model

    async def _metered(
        self,
        ticket: SignedPayer,
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
            ticket.within_key = error.code in (KEY_LIMIT, RESETTING_LIMIT)
            yield nothing(request_id, prompt, choices)
            return
        params.output_kind = RequestOutputKind.DELTA
        more["priority"] = -ticket.tier_rank
        produced, ended = Produced(), "error"
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
                    ticket.within_key = meter.book.calls[call_id].piece.within_key
                    yield cut(out, produced, keep=paid - before, params=params, tokenizer=self.get_tokenizer())
                    return
                ended = why_ended(out) if out.finished else "client_gone"
                yield out
        except (asyncio.CancelledError, GeneratorExit):
            ended = "client_gone"
            raise
        except BaseException as error:
            ended = "error"
            ticket.broke = ticket.broke or _why_broke(error)
            raise
        finally:
            kept.close()
            self._count_reasoning(meter, call_id, produced)
            self._end(ticket, meter, call_id, ended, made=produced.tokens > 0)
            await engine.aclose()

    async def _encoded(
        self, ticket: SignedPayer, prompt: Any, params: Any, request_id: str, more: dict[str, Any], *, meter: Meter
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
        except Exception as error:
            ended = "error"
            ticket.broke = ticket.broke or _why_broke(error)
            raise
        finally:
            self._end(ticket, meter, call_id, ended, made=False)
            await engine.aclose()

    async def _admit(
        self,
        ticket: SignedPayer,
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
                call_id,
                payer=ticket.payer,
                key_id=ticket.key_id,
                prompt_tokens=prompt_tokens,
                wants=wants,
                tags=ticket.tags,
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

    async def _shape(self, ticket: SignedPayer, params: SamplingParams, kept: contextlib.ExitStack) -> None:
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

    def _count_reasoning(self, meter: Meter, call_id: str, produced: Produced) -> None:
        """Which of the answer's tokens were reasoning: known for sure only at its end."""
        if self.reasoner is None:
            return
        reasoning = 0
        with contextlib.suppress(Exception):  # a parser's mistake must not leave a call unsettled
            reasoning = sum(self.reasoner.count_reasoning_tokens(ids) for ids in produced.ids.values())
        kept = meter.book.calls[call_id].usage
        meter.advance(call_id, completion=kept.completion_tokens, cached=kept.cached_tokens, reasoning=reasoning)

    def _note_first(self, ticket: SignedPayer, meter: Meter, took_us: int) -> None:
        self.ttfts_us.append(took_us)
        self.seen.began(model=meter.book.model, tier_rank=ticket.tier_rank, seconds=took_us / 1e6)

    def _end(self, ticket: SignedPayer, meter: Meter, call_id: str, ended: Any, *, made: bool) -> None:
        if ended == "error" and not made:  # the engine would not have it, or failed before it gave a token
            meter.book.void(call_id)
        call, charged_uhs = meter.end(call_id, ended)
        ticket.ended.append(call)
        ticket.charged_uhs += charged_uhs
        ticket.left_uhs = meter.book.left_uhs(ticket.payer)
        self.seen.ended(call, tier_rank=ticket.tier_rank, charged_uhs=charged_uhs)


def _salted(prompt: Any, ticket: SignedPayer) -> Any:
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


def _why_broke(error: BaseException) -> FabricError | None:
    """What is told of a call that could not go on; None = the engine's own word."""
    if isinstance(error, EngineDeadError):
        return engine_ended()
    return error if isinstance(error, FabricError) else None


async def _in_turn(
    ticket: SignedPayer, model: Loaded, outputs: AsyncGenerator[_Output, None]
) -> AsyncGenerator[_Output, None]:
    """One prompt of a request, when fewer of it are in the engine than may be at a time."""
    with model.one_more(ticket):
        async with ticket.turns, contextlib.aclosing(outputs):
            async for out in outputs:
                yield out


def _withdrawn(name: str, ticket: SignedPayer) -> NotAdmitted:
    """The answer to a call of an adapter that is no longer there."""
    ticket.refusal = ticket.refusal or NotFound(
        f"the model {name!r} was withdrawn: see GET /v1/models", code="model_not_found", param="model"
    )
    return NotAdmitted(ticket.refusal.message)
