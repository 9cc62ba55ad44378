"""The meter inside vLLM's own kinds of outputs, without an engine: reasoning, refusals, and what is never handed on.

`AsyncLLM.generate` is replaced by what it would yield; everything from there on is ours, with vLLM's real parsers.
"""

import asyncio
from types import SimpleNamespace

import pytest

from fabric.charging.rates import Rate, charge_uhs
from fabric.errors import InvalidRequest, Unavailable
from serving.metering.book import Metering
from serving.metering.call_log import CallLog
from serving.metering.meter import Meter
from serving.metering.payer import TICKET, SignedPayer
from serving.metering.slices import Payer, Terms

from .ledger_standin import LedgerStandIn

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]

THINK, DONE = 1_000, 1_001
IN, OUT, REASONING = 2, 10, 3
RATE = Rate(
    version=1, input_uhs_per_mtok=IN * 10**6, cached_uhs_per_mtok=0, output_uhs_per_mtok=OUT * 10**6,
    reasoning_uhs_per_mtok=REASONING * 10**6,
)  # fmt: skip


class TokenizerStandIn:
    """A tokenizer with the tags of reasoning, and a letter for each other token."""

    def get_vocab(self):
        return {"<think>": THINK, "</think>": DONE}

    def decode(self, ids, **_):
        return "".join({THINK: "<think>", DONE: "</think>"}.get(each, "x") for each in ids)


class SeenStandIn:
    def __init__(self):
        self.calls, self.first = [], []

    def began(self, *, model, tier_rank, seconds):
        self.first.append((model, tier_rank))

    def ended(self, call, *, tier_rank, charged_uhs):
        self.calls.append((call.ended, tier_rank, charged_uhs))


@pytest.fixture
async def engine(tmp_path, monkeypatch):
    from vllm.reasoning import ReasoningParserManager

    from serving.engines.parts.metered import Loaded, MeteredAsyncLLM

    class Llm(MeteredAsyncLLM):
        def __init__(self):
            self.seen, self.ttfts_us, self.yields, self.raises, self.ends = SeenStandIn(), [], [], None, "stop"
            self.model_config = SimpleNamespace(max_model_len=512, is_encoder_decoder=False)

        def __del__(self):
            """There is nothing to end."""

        def get_tokenizer(self):
            return TokenizerStandIn()

    async def generate(self, prompt, params, request_id, **more):
        from vllm.outputs import CompletionOutput, RequestOutput

        if self.raises is not None:
            raise self.raises
        made = 0
        for number, ids in enumerate(self.yields):
            made += len(ids)
            end = self.ends if number == len(self.yields) - 1 else None
            out = CompletionOutput(0, TokenizerStandIn().decode(ids), list(ids), None, None, finish_reason=end)
            yield RequestOutput(request_id, None, [1, 2, 3], None, [out], end is not None, num_cached_tokens=0)

    monkeypatch.setattr("vllm.v1.engine.async_llm.AsyncLLM.generate", generate)
    ledger = LedgerStandIn(lambda usage: charge_uhs(RATE, usage))
    book = Metering(
        name="s", model="m", accelerator="H100", charge=lambda usage: charge_uhs(RATE, usage), rate_version=1,
        terms=Terms(grant_tokens=4),
    )  # fmt: skip
    llm = Llm()
    llm.meter = Meter(book, CallLog(tmp_path / "r.outbox"), ledger, retry_s=(0.001, 0.01))
    llm.own, llm.adapters = Loaded("m", llm.meter), {}
    llm.reasoner = ReasoningParserManager.get_reasoning_parser("deepseek_r1")(TokenizerStandIn())
    llm.ledger = ledger
    await llm.meter.start()
    yield llm
    assert await llm.meter.close()
    assert ledger.held("ann") == 0


async def answer(llm, *, balance, most=50):
    from vllm.sampling_params import SamplingParams

    llm.ledger.top_up("ann", balance)
    ticket = SignedPayer(Payer("ann"), "k", "c1", tier_rank=1, salt="s")
    TICKET.set(ticket)
    prompt = {"type": "token", "prompt_token_ids": [1, 2, 3]}
    outputs = [out async for out in llm.generate(prompt, SamplingParams(max_tokens=most), "r1")]
    (call,) = ticket.ended
    return [each for out in outputs for choice in out.outputs for each in choice.token_ids], call, ticket


async def test_tokens_of_reasoning_are_counted_by_vllms_own_parser_and_charged_at_their_rate(engine):
    engine.yields = [(THINK, 5), (6, 7), (DONE, 8), (9,)]
    given, call, ticket = await answer(engine, balance=10_000)
    assert given == [THINK, 5, 6, 7, DONE, 8, 9]
    assert (call.usage.completion_tokens, call.usage.reasoning_tokens) == (7, 3)
    assert ticket.charged_uhs == 3 * IN + 4 * OUT + 3 * REASONING
    assert engine.seen.calls == [("stop", 1, ticket.charged_uhs)]
    assert engine.seen.first == [("m", 1)]


async def test_an_answer_cut_while_it_reasons_is_charged_for_the_reasoning_that_left_and_no_more(engine):
    engine.yields = [(5, THINK), (6, 7), (8, 9, 9), (9,), (DONE,)]
    given, call, ticket = await answer(engine, balance=3 * IN + 5 * OUT)
    kept = call.usage.completion_tokens
    assert given == [5, THINK, 6, 7, 8, 9, 9, 9, DONE][:kept]
    assert call.ended == "balance_exhausted"
    assert call.usage.reasoning_tokens == max(0, kept - 2)
    assert ticket.charged_uhs <= 3 * IN + 5 * OUT


@pytest.mark.parametrize("raises", [ValueError("no such grammar"), RuntimeError("the engine died")])
async def test_what_the_engine_would_not_have_costs_nothing(engine, raises):
    engine.raises = raises
    engine.ledger.top_up("ann", 10_000)
    ticket = SignedPayer(Payer("ann"), "k", "c1", salt="s")
    TICKET.set(ticket)
    from vllm.sampling_params import SamplingParams

    with pytest.raises(type(raises)):
        async for _ in engine.generate({"type": "token", "prompt_token_ids": [1, 2, 3]}, SamplingParams(), "r1"):
            pass
    (call,) = ticket.ended
    assert (call.ended, call.usage.prompt_tokens, ticket.charged_uhs) == ("error", 0, 0)
    assert engine.meter.book.exposure_uhs()[0] == 0


async def test_a_parser_that_fails_leaves_no_call_unsettled(engine):
    engine.reasoner = SimpleNamespace(count_reasoning_tokens=lambda ids: 1 // 0)
    engine.yields = [(5, 6)]
    _, call, ticket = await answer(engine, balance=10_000)
    assert (call.usage.reasoning_tokens, ticket.charged_uhs) == (0, 3 * IN + 2 * OUT)


async def test_what_is_still_free_is_told_with_what_the_slice_has_left(engine):
    engine.yields = [(5, 6)]
    _, _, ticket = await answer(engine, balance=10_000)
    assert ticket.left_uhs == 10_000 - 3 * IN - 2 * OUT


async def test_an_error_that_the_engine_makes_before_its_first_token_costs_nothing(engine):
    """As it does where a grammar can't be compiled: an output without tokens, that ends with an error."""
    engine.yields, engine.ends = [()], "error"
    given, call, ticket = await answer(engine, balance=10_000)
    assert (given, call.ended, call.usage.prompt_tokens, ticket.charged_uhs) == ([], "error", 0, 0)


class GrammarsStandIn:
    def __init__(self, outcome):
        self.outcome, self.asked = outcome, []

    async def check(self, account_id, grammar):
        self.asked.append((account_id, grammar))
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is None:
            await asyncio.Event().wait()
        return self.outcome


def shaped(**how):
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    return SamplingParams(max_tokens=5, structured_outputs=StructuredOutputsParams(**how))


async def test_a_call_whose_ledger_goes_away_is_charged_what_it_had_and_says_why(engine, monkeypatch):
    """The engine's application makes a 500 of whatever it doesn't know: the front goes by what the ticket says."""
    away = Unavailable("away", code="ledger_unreachable")

    async def extend(*_, **__):
        raise away

    monkeypatch.setattr(engine.meter, "extend", extend)
    engine.yields = [(number,) for number in range(60)]
    with pytest.raises(Unavailable):
        await answer(engine, balance=10_000)
    ticket = TICKET.get()
    assert ticket.broke is away
    assert (ticket.is_booked, ticket.charged_uhs > 3 * IN) == (True, True)


async def test_a_call_that_an_engines_end_cuts_off_says_so(engine):
    from vllm.v1.engine.exceptions import EngineDeadError

    engine.raises = EngineDeadError()
    with pytest.raises(EngineDeadError):
        await answer(engine, balance=10_000)
    assert (TICKET.get().broke.code, TICKET.get().charged_uhs) == ("engine_ended", 0)


async def test_a_grammar_that_is_refused_is_the_answer_and_costs_nothing(engine):
    from serving.engines.parts.metered import NotAdmitted

    engine.grammars = GrammarsStandIn(InvalidRequest("too costly", code="grammar_too_costly"))
    engine.yields = [(5, 6)]
    engine.ledger.top_up("ann", 10_000)
    ticket = SignedPayer(Payer("ann"), "k", "c1", salt="s")
    TICKET.set(ticket)
    with pytest.raises(NotAdmitted):
        async for _ in engine.generate({"type": "token", "prompt_token_ids": [1, 2, 3]}, shaped(regex="a"), "r1"):
            pass
    assert (ticket.refusal.code, ticket.admitted, ticket.charged_uhs) == ("grammar_too_costly", 0, 0)
    (call,) = ticket.ended
    assert (call.ended, call.usage.prompt_tokens) == ("error", 0)
    assert engine.grammars.asked == [("ann", {"regex": "a"})]


async def test_who_leaves_while_a_grammar_is_compiled_is_charged_nothing(engine):
    engine.grammars, engine.yields = GrammarsStandIn(None), [(5, 6)]
    engine.ledger.top_up("ann", 10_000)
    ticket = SignedPayer(Payer("ann"), "k", "c1", salt="s")
    TICKET.set(ticket)
    outputs = engine.generate({"type": "token", "prompt_token_ids": [1, 2, 3]}, shaped(regex="a"), "r1")
    asked = asyncio.create_task(anext(outputs))
    async with asyncio.timeout(20):
        while not engine.grammars.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    (call,) = ticket.ended
    assert (call.ended, call.usage.prompt_tokens, ticket.charged_uhs) == ("client_gone", 0, 0)


async def test_who_has_no_tokens_has_no_grammar_compiled(engine):
    from serving.engines.parts.metered import NotAdmitted

    engine.grammars = GrammarsStandIn(None)
    ticket = SignedPayer(Payer("ann"), "k", "c1", salt="s")
    TICKET.set(ticket)
    with pytest.raises(NotAdmitted):
        await anext(engine.generate({"type": "token", "prompt_token_ids": [1, 2, 3]}, shaped(regex="a"), "r1"))
    assert (engine.grammars.asked, ticket.refusal.http_status) == ([], 402)


async def test_an_adapter_that_was_not_asked_for_neither_answers_nor_charges(engine):
    """vLLM takes one whose name is the type of a message's part, whoever asks for whatever."""
    from serving.engines.parts.metered import Loaded

    law = engine.adapters["text"] = Loaded("text", engine.meter, request="as loaded")
    for asked, answers, goes_on in (("m", engine.own, None), ("", engine.own, None), ("text", law, "as loaded")):
        more = {"lora_request": SimpleNamespace(lora_name="text")}
        assert engine._model_of(SignedPayer(Payer("ann"), "k", "c1", model=asked, salt="s"), more) is answers
        assert more["lora_request"] == goes_on
