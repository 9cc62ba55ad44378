"""A notice: one thing that an account is to hear of, and the id by which a receiver knows it again."""

import hashlib
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import msgspec

from fabric.errors import Fact

_ID_CHARS: Final = 32


class Kind(StrEnum):
    """What a notice is about: the `type` of a webhook's body."""

    RUNWAY = "balance.runway"
    """What can be spent lasts less long than 3 days, 1 day or 3 hours at the burn of now."""
    LIMIT = "limit.used"
    """75 % or 90 % of a limit are used or held."""
    PACKAGE = "package.used"
    """75 % or 90 % of a package of LLM tokens are used."""
    EXPIRY = "lot.expires"
    """Tokens expire in 30, 7 or 1 days."""
    JOB_PARKED = "job.parked"
    JOB_EVICTED = "job.evicted"
    """It lost its devices: to others, to a drain, or with its node. It goes on by itself."""
    JOB_RESUMED = "job.resumed"
    JOB_ENDED = "job.ended"
    PAYMENT_FAILED = "payment.failed"
    TEST = "test"
    """Somebody wanted to see whether it arrives. Every endpoint takes it."""


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What is told, once."""

    notice_id: str
    """Follows from what has happened: however often that is found, it has this id."""
    account_id: str
    kind: Kind
    subject: str
    """What it is about, as "job/j-1": of one subject a receiver hears in order."""
    at_us: int
    """When it happened."""
    text: str
    """For people."""
    facts: dict[str, Fact] = {}

    def body(self) -> bytes:
        """What a webhook is sent, in JSON."""
        at = datetime.fromtimestamp(self.at_us / 1_000_000, UTC).isoformat(timespec="milliseconds")
        data = {"account": self.account_id, "subject": self.subject, "text": self.text, **self.facts}
        return msgspec.json.encode({"type": self.kind, "timestamp": at.replace("+00:00", "Z"), "data": data})


def notice_id(account_id: str, kind: Kind, *what: str | int) -> str:
    """The id of what has happened to an account."""
    said = msgspec.json.encode((account_id, kind, *what))
    return "ntc_" + hashlib.sha256(said).hexdigest()[:_ID_CHARS]
