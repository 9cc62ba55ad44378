"""A gateway process before the benchmark's upstream, with a stand-in for the fabric behind it.

Usage: gateway_process.py PORT UPSTREAM PORT_BEHIND SECRET. At the second port it hears only an ingress with the secret.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import uvloop

from serving.gateway.__main__ import _log_to_standard_error
from serving.gateway.app import Gateway, Limits
from serving.gateway.directory import ModelFacts, Replica
from serving.gateway.server import GatewayServer, bind
from tests.serving.gateway.house import RATE, DirectoryStandin

KEY_ID = "bench"


async def serve(port, upstream, port_behind, secret):
    directory = DirectoryStandin()
    directory.models["tiny"] = ModelFacts(name="tiny", rates=(RATE,), state="ready")
    directory.add_key(KEY_ID, "ann")
    directory.show(Replica(replica_id="r1", model="tiny", address=upstream, capacity=100_000, accelerator="H100"))
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(
            directory, trust="t", repeats_file=Path(folder) / "repeats.sqlite",
            limits=Limits(requests_per_s=10**6),
        )  # fmt: skip
        public, behind = (bind(f"127.0.0.1:{each}", shared=True) for each in (port, port_behind))
        (inner, _), *_ = GatewayServer(gateway, behind, ingress_secret=secret)._servers
        beside = asyncio.create_task(inner.serve(sockets=[behind]))
        await GatewayServer(gateway, public).serve()
        await beside


def main():
    _log_to_standard_error("info")  # as in production, a line for each request
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]))


if __name__ == "__main__":
    main()
