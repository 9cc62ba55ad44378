"""A replica with a stand-in for the engine and everything else real: front, meter, outbox, and the ledger over gRPC.

Usage: metered_standin.py REPLICA_ID STATE_DIR ADDRESS CA OPERATOR_KEY TRUST PORT TOKEN_S. It keeps a file of its own of what the
engine produced, a line for each token, which no accounting reads: what is charged is compared with it.
"""

import asyncio
import contextlib
import os
import signal
import sys
from functools import partial
from pathlib import Path

import uvicorn

from fabric.charging.rates import charge_uhs
from fabric.client.profile import Profile
from fabric.errors import FabricError
from serving.engines.parts.admission import Admission
from serving.fabric_client import FabricClient
from serving.metering.book import Metering
from serving.metering.call_log import CallLog
from serving.metering.meter import Meter
from serving.metering.payer import TICKET
from serving.metering.slices import Terms
from tests.serving.engine_standin import EngineStandin
from tests.serving.gateway.house import RATE, bind

TERMS = Terms(grant_tokens=16, idle_us=300_000, report_us=500_000)


class NotAdmitted(Exception):
    """The front answers with the ticket's refusal."""


class MeteredStandin(EngineStandin):
    """Asks the meter at the same places as the real engine does."""

    def __init__(self, meter, engine_log, **more):
        super().__init__(**more)
        self.meter = meter
        self.engine_log = engine_log
        self.cut_at = {}

    async def admit(self, call, prompt, wanted):
        ticket = TICKET.get()
        try:
            await self.meter.open(call, payer=ticket.payer, key_id=ticket.key_id, prompt_tokens=prompt, wants=wanted)
        except FabricError as error:
            ticket.refusal = error
            raise NotAdmitted from None
        ticket.admitted += 1
        ticket.opened += 1
        os.write(self.engine_log, f"{call} {prompt} prompt\n".encode())

    async def made(self, call, count):
        os.write(self.engine_log, f"{call} {count} made\n".encode())
        paid = self.meter.advance(call, completion=count, cached=0)
        if paid < count:
            try:
                paid = await self.meter.extend(call, completion=count, cached=0)
            except FabricError:
                await self.over(
                    call, "error"
                )  # as the engine does: what was paid for is charged, and the stream breaks off
                raise asyncio.CancelledError from None
        if paid < count:
            TICKET.get().cut = True
            self.cut_at[call] = paid
            return False
        return True

    async def over(self, call, ended):
        if call in self.meter.book.calls:
            ticket = TICKET.get()
            done, charged = self.meter.end(call, "balance_exhausted" if call in self.cut_at else ended)
            ticket.ended.append(done)
            ticket.charged_uhs += charged
            return ticket.charged_uhs
        return 0


async def main():
    replica_id, state_dir, address, ca, key, trust, port, token_s = sys.argv[1:]
    place = Path(state_dir)
    book = Metering(
        name=f"slice/{replica_id}/{os.getpid()}", model="tiny", accelerator="H100", charge=partial(charge_uhs, RATE),
        terms=TERMS, rate_version=1,
    )  # fmt: skip
    ledger = FabricClient(Profile(address=address, api_key=key, ca=ca))
    meter = Meter(book, CallLog(place / f"{replica_id}.outbox"), ledger)
    await meter.start()
    engine_log = os.open(place / f"{replica_id}.engine", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    app = Admission(MeteredStandin(meter, engine_log, token_s=float(token_s), trust=trust), trust=trust)
    config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: setattr(server, "should_exit", True))
    await server.serve(sockets=[bind(f"127.0.0.1:{port}", shared=False)])  # from here on SIGTERM is understood
    settled = await meter.close(timeout_s=40)
    if not settled:
        book = meter.book
        print("not settled:", book.calls, book._slices, book._leaving, list(meter._sending), file=sys.stderr)
    await ledger.close()
    return 0 if settled else 3


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
