"""A gateway in a process of its own, whose memory can be looked at: says where it is, and ends when its input does."""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import uvloop

from fabric.api.tls import ensure_certificate
from serving.gateway.__main__ import _log_to_standard_error
from serving.gateway.app import Gateway, Limits
from serving.gateway.directory import ModelFacts
from serving.gateway.server import GatewayServer, bind
from tests.serving.gateway.house import RATE, DirectoryStandin


async def serve(folder, options):
    directory = DirectoryStandin()
    directory.models["tiny"] = ModelFacts(name="tiny", rates=(RATE,), state="ready")
    key = directory.add_key("k1", "ann")
    files = ensure_certificate(folder / "tls")
    gateway = Gateway(directory, trust="t", repeats_file=folder / "repeats.sqlite", limits=Limits(requests_per_s=10**6))
    public = bind("127.0.0.1:0", shared=False)
    tls = {"cert": files.cert, "key": files.key} if options.pop("tls", True) else {}
    server = GatewayServer(gateway, public, grace_s=1, **tls, **options)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it says so to nobody
        await asyncio.sleep(0.01)
    said = {"port": public.getsockname()[1], "ca": str(files.ca), "key": key}
    print(json.dumps(said), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.stop()
    await serving


if __name__ == "__main__":
    _log_to_standard_error("error")
    with tempfile.TemporaryDirectory() as place:
        uvloop.run(serve(Path(place), json.loads(sys.argv[1])))
