"""A replica as a plain process for the tests: real vLLM, real meter and outbox, the stand-in ledger over a socket.

Usage: replica_process.py SPEC_JSON LEDGER_PORT. Says its address on stdout, then serves until SIGTERM.
Its event loop is uvloop's, as in a Ray actor and in vLLM's own server.
"""

import asyncio
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from ledger_wire import WireLedger  # the folder is no package

from serving.replica.listener import Listener, ReplicaSpec


async def main():
    spec = msgspec.json.decode(sys.argv[1], type=ReplicaSpec)
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    listener = await Listener.open(spec, WireLedger(int(sys.argv[2])))
    sys.stdout.write(f"abilities {' '.join(listener.engine.abilities)}\n")
    sys.stdout.write(f"serving {listener.address}\n")
    sys.stdout.flush()
    await asked.wait()
    settled = await listener.close(drain_s=10)
    sys.stdout.write(f"settled {settled}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(main())
