"""A process with an engine in it: vLLM's own application around an engine whose calls are paid for.

This, `serving.engines.parts.metered`, `serving.engines.parts.outputs` and `serving.grammar_process` are what relies on vLLM, held to what they rely on by
tests/serving/test_engine_contract.py.
"""

import asyncio
import contextlib
import itertools
import json
import pickle
from argparse import Namespace
from collections import deque
from collections.abc import Awaitable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.lora.request import LoRARequest
from vllm.reasoning import ReasoningParserManager
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

from serving.engines.parts.admission import Admission
from serving.engines.parts.metered import Loaded, MeteredAsyncLLM
from serving.engines.parts.options import FLAGS, arguments
from serving.engines.parts.reaper import Reaper, watch
from serving.engines.port import Start
from serving.grammars import COMMON, Grammars
from serving.metering.meter import Meter
from serving.metering.metrics import SeenByRay, Unseen
from serving.metering.payer import SignedPayer

_TTFTS_KEPT: Final = 512
_INPUT_TYPES: Final = ("search_document", "search_query", "classification", "clustering")
_ABILITIES: Final = (("text", "/v1/completions"), ("embeddings", "/v1/embeddings"), ("scores", "/v1/score"))
"""What a model can be asked for, by a path that vLLM has for it alone."""


async def open_engine(start: Start, meter: Meter) -> "Engine":
    """As `serving.engines.port` has it: the model is loaded in this process, and in vLLM's own below it."""
    argv = arguments(
        Path(start.source),
        name=start.model,
        max_context=start.max_context,
        kv_bytes=start.kv_bytes,
        on_cpu=start.on_cpu,
        devices=start.devices,
        more=start.options,
    )
    return await Engine.open(argv, meter, trust=start.trust, in_ray=start.in_ray)


class Engine:
    """A running engine and its application. Open it in the event loop that serves it; close it when its calls are over."""

    def __init__(self, llm: MeteredAsyncLLM, app: FastAPI, meter: Meter, reaper: Reaper, *, trust: str) -> None:
        self.llm, self.meter = llm, meter
        self.app = Admission(app, trust=trust, afford=self._afford, is_dead=lambda: bool(llm.errored))
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
            llm.input_processor.structured_outputs_config = (
                None  # it was looked at (`MeteredAsyncLLM`) before it came there
            )
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
        """As `serving.replica.lora.Host`. What is cached of a prompt is found again by the folder too, so that each has its own."""
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
        """As `serving.replica.lora.Host`."""
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

    async def _afford(self, ticket: SignedPayer) -> None:
        model = self.llm.adapters.get(ticket.model, self.llm.own)
        with model.one_more(ticket):
            await model.meter.afford(ticket)

    def load(self) -> dict[str, int]:
        """Calls that are open, how many tokens one may have, and the time to the first token of recent ones, in µs."""
        ttfts = sorted(self.llm.ttfts_us.copy())  # at once: another thread asks
        return {
            "running": len(self.meter.book.calls) + sum(each.calls for each in tuple(self.llm.adapters.values())),
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
    for number, schema in enumerate([None, *COMMON]):
        shape = None if schema is None else StructuredOutputsParams(json=json.dumps(schema))
        if shape is not None:
            shape._backend = "xgrammar"  # noqa: SLF001 - vLLM's own front would do this; no argument of its makes it
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
