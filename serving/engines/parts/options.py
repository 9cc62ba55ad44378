"""How an engine is started: its arguments and its environment, as vLLM's own command takes them. It knows no engine."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from serving.limits import CHOICES_MAX

QUIET: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
}
"""The environment of every engine: it tells nobody of its use and downloads nothing."""
BOUND: Final = {
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_MEDIA_CACHE": "",
    "VLLM_MEDIA_CONNECTOR": "http",
    "VLLM_MAX_IMAGE_PIXELS": str(64 << 20),
    "VLLM_MAX_N_SEQUENCES": str(CHOICES_MAX),
    "VLLM_XGRAMMAR_CACHE_MB": "512",
    "VLLM_REGEX_COMPILATION_TIMEOUT_S": "120",  # whether it can be afforded was found out before (`serving.grammars`)
}
"""Of every engine too, whatever else is in the environment: nothing is fetched, and what a request makes is bounded."""
_AT_ONCE: Final = "--max-loras"
_KEPT: Final = "--max-cpu-loras"
_ADAPTERS: Final = {_AT_ONCE: 4, _KEPT: 16}
NOWHERE: Final = "media.invalid"
"""The one host that media may be fetched from: the top-level domain is reserved, and never there."""
ON_CPU: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
}
"""On a machine without accelerators: fewer processes, threads that may run on any core, and nothing that is compiled anew
when it is first asked for (alternatives of tokens took half a minute).
"""
FLAGS: Final = (
    "--enable-prompt-tokens-details",
    "--scheduling-policy=priority",
    "--disable-fastapi-docs",
    "--no-enable-log-requests",
    "--disable-uvicorn-access-log",
    "--structured-outputs-config.backend=xgrammar",  # an engine has one, whatever a request asks for
    # Blanks that a schema doesn't ask for are no model's to write: a weak one writes them to the end, and nothing that parses.
    "--structured-outputs-config.disable_any_whitespace=true",
    f"--allowed-media-domains={NOWHERE}",
    "--allowed-local-media-path=",
    "--mm-processor-cache-gb=0",  # what was made of an image would be found by its hash, whoever's it is
)
"""What the meter and the gateway rely on, whatever else a model is started with."""


def arguments(
    folder: Path,
    *,
    name: str,
    max_context: int | None,
    kv_bytes: int | None,
    on_cpu: bool,
    devices: int = 1,
    more: Sequence[str] = (),
) -> list[str]:
    """The arguments of an engine for a model: small and quick to start on a CPU, over all devices of its lease elsewhere."""
    argv = ["--model", str(folder), "--served-model-name", name]
    if max_context is not None:
        argv += ["--max-model-len", str(max_context)]
    if kv_bytes is not None:
        argv += ["--kv-cache-memory-bytes", str(kv_bytes)]
    if on_cpu:
        argv += ["--enforce-eager", "--dtype", "float32"]
    elif devices > 1:  # in processes of this one's, whatever Ray has: a replica is one node's
        argv += ["--tensor-parallel-size", str(devices), "--distributed-executor-backend", "mp"]
    return [*argv, *more, *_for_adapters(more)]


def _for_adapters(more: Sequence[str]) -> list[str]:
    """How many adapters an engine writes with at a time, and has in memory, where its operator doesn't say: by its own
    default it is one, for which all others wait.
    """
    if "--enable-lora" not in more:
        return []
    said = {name: int(value) for name, value in pairwise(more) if name in _ADAPTERS and value.isdecimal()}
    at_once = said.get(_AT_ONCE, min(_ADAPTERS[_AT_ONCE], said.get(_KEPT, _ADAPTERS[_KEPT])))
    wanted = {_AT_ONCE: at_once, _KEPT: said.get(_KEPT, max(_ADAPTERS[_KEPT], at_once))}
    return [word for name, value in wanted.items() if name not in said for word in (name, str(value))]


def set_environment(*, on_cpu: bool) -> None:
    """What vLLM reads from the environment, before it starts its processes."""
    os.environ.update(BOUND)
    for name, value in {**QUIET, **(ON_CPU if on_cpu else {})}.items():
        os.environ.setdefault(name, value)
