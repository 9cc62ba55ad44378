"""The engine `sglang`: a server of SGLang in the lease, asked over HTTP. **Not run here**: it needs an accelerator and the
package, neither of which the machines have that this is tested on; what it starts and says is tested with a stand-in.

It follows SGLang 0.5: `/tokenize` takes messages, `stream_options.continuous_usage_stats` and `--enable-cache-report` report
usage, `rid`, `priority` and `cache_salt` are fields of a request, and `/abort_request` ends one.
"""

import importlib.util
import secrets
import sys
from typing import Any, Final

from fabric.errors import InvalidRequest, Unavailable
from serving.engines.parts.proxy import ProxiedEngine
from serving.engines.parts.server_process import ServerProcess, free_port
from serving.engines.port import Start, pairs
from serving.metering.meter import Meter
from serving.metering.payer import SignedPayer

MODULE: Final = "sglang.launch_server"
_KEY: Final = "FABRIC_ENGINE_KEY"
_BEGIN: Final = (
    f"import os, runpy, sys; sys.argv += ['--api-key', os.environ.pop({_KEY!r})];"
    " runpy.run_module(sys.argv[1], run_name='__main__', alter_sys=True)"
)
"""Its key comes by its environment: arguments of a process are everybody's on a machine to read."""
_FLAGS: Final = ("--enable-cache-report", "--enable-priority-scheduling", "--disable-custom-logit-processor")
_NAMES: Final = {
    "chat-template": "--chat-template",
    "dtype": "--dtype",
    "gpu-memory-utilization": "--mem-fraction-static",
    "kv-cache-dtype": "--kv-cache-dtype",
    "load-format": "--load-format",
    "max-num-batched-tokens": "--chunked-prefill-size",
    "max-num-seqs": "--max-running-requests",
    "quantization": "--quantization",
    "reasoning-parser": "--reasoning-parser",
    "seed": "--random-seed",
    "tool-call-parser": "--tool-call-parser",
}
"""The options that an offer may set, by the names that they have for every engine, as SGLang calls them."""


async def open_engine(start: Start, meter: Meter) -> ProxiedEngine:
    """As `serving.engines.port` has it.

    Raises:
        Unavailable: it isn't installed (code `no_engine`), or its server doesn't come up.
        InvalidRequest: it has no such option (code `invalid_engine_arg`).
    """
    if importlib.util.find_spec(MODULE.partition(".")[0]) is None:
        raise Unavailable("sglang is not installed on this node: install it there first", code="no_engine")
    port, key = free_port(), secrets.token_urlsafe(32)
    process = await ServerProcess.start(command(start, port=port), port=port, env={_KEY: key})
    try:
        headers = {"authorization": f"Bearer {key}"}
        return await ProxiedEngine.open(process.url, Sglang(), start, meter, process=process, headers=headers)
    except BaseException:
        await process.close()
        raise


def command(start: Start, *, port: int) -> list[str]:
    """What starts the server.

    Raises:
        InvalidRequest: it has no such option (code `invalid_engine_arg`).
    """
    argv = [sys.executable, "-c", _BEGIN, MODULE, "--model-path", start.source, "--served-model-name", start.model]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--tp-size", str(start.devices), *_FLAGS]
    if start.max_context is not None:
        argv += ["--context-length", str(start.max_context)]
    for name, value in pairs(start.options):
        if name not in _NAMES:
            raise InvalidRequest(
                f"the engine sglang has no option {name[:100]!r}: choose of {', '.join(sorted(_NAMES))}",
                code="invalid_engine_arg",
            )
        argv += [_NAMES[name], value]
    return argv


class Sglang:
    """As SGLang's server is spoken to."""

    def marked(self, body: dict[str, Any], ticket: SignedPayer, call_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        return {**body, "cache_salt": ticket.salt, "rid": call_id, "priority": ticket.tier_rank}, {}

    def stopped(self, path: str, call_id: str) -> tuple[str, dict[str, Any]]:  # noqa: ARG002 - it asks on no surface
        return "/abort_request", {"rid": call_id}
