"""A replica as it says it is, to whoever keeps it."""

from typing import Final

import msgspec

from serving.replica.lora import AdapterStanding

LOADING: Final = "loading"
"""The code of what a replica says until its model is loaded."""
BUSY: Final = "busy"
"""The code of a replica that is there and doesn't get round to an answer."""
STUCK_S: Final = 300.0
"""One that is busy for so long is taken for dead."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A replica as it says it is."""

    address: str
    tls_sha256: str = ""
    running: int = 0
    waiting: int = 0
    capacity: int = 16
    max_context: int = 0
    """Tokens of its engine's context; 0 = it didn't say."""
    ttft_p50_us: int = 0
    ttft_p99_us: int = 0
    rate_version: int = 0
    """By which rates its calls are charged."""
    unreported_calls: int = 0
    """Ended, and not taken by the ledger for a minute: they are in its outbox."""
    behind_us: int = 0
    """How long its engine's event loop has not come round."""
    adapters: tuple[AdapterStanding, ...] = ()
    abilities: tuple[str, ...] = ()
    """What its model can be asked for: text, embeddings, scores."""
