"""Outboxes of replicas that never came back: whoever starts on the same node settles what is in them."""

import asyncio
from pathlib import Path
from typing import Final

import structlog

from fabric.errors import Conflict, Unavailable
from serving.calls import SliceLedger
from serving.metering.book import Metering
from serving.metering.call_log import CallLog
from serving.metering.meter import Meter

_PATIENCE_S: Final = 30.0

_log = structlog.get_logger()


async def settle_left(folder: Path, ledger: SliceLedger, *, timeout_s: float = _PATIENCE_S) -> int:
    """Settle every outbox in the folder that no process has open, and remove those that are done; how many that were.

    What the ledger doesn't take in time stays for the next who starts. Calls are known to it by their ids, so nothing is
    charged twice even if their own replica comes back.
    """
    done = 0
    for path in sorted(await asyncio.to_thread(lambda: list(folder.glob("*.outbox")))):
        try:
            outbox = await asyncio.to_thread(CallLog, path)
        except (Conflict, Unavailable):  # its replica lives, or another one is at it
            continue
        book = Metering(name=f"left/{path.stem}", model="", accelerator="", charge=lambda _: 0)
        meter = Meter(book, outbox, ledger)
        await meter.start()
        if await meter.close(timeout_s=timeout_s, for_good=True):
            done += 1
        else:
            _log.warning("outbox_not_settled", file=path.name)
    return done
