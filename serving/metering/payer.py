"""Who pays for the request at hand: what the gateway said in trusted headers, on its way through the engine's app.

The engine's application knows nothing of it; the ticket travels in a context variable from the front to the meter.
"""

import asyncio
import hmac
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

import msgspec

from fabric.errors import FabricError, InvalidRequest, PermissionDenied
from serving import calls
from serving.calls import Call, Usage
from serving.metering.slices import Payer

_DIGITS: Final = 6
TICKET: ContextVar["SignedPayer | None"] = ContextVar("ticket", default=None)


@dataclass(slots=True)
class SignedPayer:
    """One HTTP request. It may make several calls of the engine: one for each prompt in it."""

    payer: Payer
    key_id: str
    call_id: str
    tier_rank: int = 0
    model: str = ""
    """What is asked for, where the gateway says so: an adapter, or the replica's own."""
    tags: tuple[str, ...] = ()
    """What its calls are marked with."""
    strict: bool = False
    salt: str = ""
    """What marks the account's cached prompts: whatever enters the engine for this request carries it, and no other."""
    at_once: int = 1
    """How many of its prompts the engine may have at a time: as many as the gateway has seats for."""
    calls_begun: int = 0
    admitted: int = 0
    refusal: FabricError | None = None
    """Why it was not admitted: the answer is this error, whatever the application makes of it."""
    broke: FabricError | None = None
    """Why it could not go on after it was admitted: the ledger was away for too long, or the engine ended. Whatever the
    application makes of it, that is the answer, or its end.
    """
    opened: int = 0
    """Calls that the meter has begun for it, those it ended at once included."""
    only_prompt: bool = False
    """Nothing is to be written for it."""
    cut: bool = False
    """It ended because the account had no more."""
    within_key: bool = False
    """Or rather, because the limit of its key left no more."""
    charged_uhs: int = 0
    left_uhs: int | None = None
    """What the account can still spend, as far as the ledger has said."""
    ended: list[Call] = field(default_factory=list)
    turns: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.turns = asyncio.Semaphore(self.at_once)

    def next_call_id(self) -> str:
        """The first call has the request's own id; each further one a number behind it."""
        self.calls_begun += 1
        return self.call_id if self.calls_begun == 1 else f"{self.call_id}.{self.calls_begun}"

    @property
    def is_booked(self) -> bool:
        """Whether all its calls have ended, so that what it costs is known."""
        return bool(self.ended) and len(self.ended) == self.opened

    def llm_tokens(self) -> dict[str, int]:
        """Of all its calls that have ended."""
        used = [call.usage for call in self.ended]
        return {name: sum(getattr(usage, name) for usage in used) for name in Usage.__struct_fields__}

    @property
    def decided(self) -> bool:
        """Whether the answer may begin: a call was admitted, or refused."""
        return self.admitted > 0 or self.refusal is not None


def ticket_of(headers: Iterable[tuple[bytes, bytes]], *, trust: str) -> SignedPayer:
    """The ticket that a gateway's headers give.

    Raises:
        PermissionDenied: not from a gateway of ours.
        InvalidRequest: the gateway named no account, or a tier that there is not.
    """
    said = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    if not hmac.compare_digest(said.get(calls.TRUST, "").encode(), trust.encode()):
        raise PermissionDenied("this is a replica: send requests to the gateway", code="not_a_gateway")
    account_id, key_id = said.get(calls.ACCOUNT, ""), said.get(calls.KEY, "")
    rank = said.get(calls.TIER_RANK, "0")
    if not account_id or rank not in {"0", "1", "2"}:
        raise InvalidRequest(f"the gateway named account {account_id!r} and tier {rank!r}", code="bad_ticket")
    covered = said.get(calls.COVERED) == "1"
    limited = said.get(calls.KEY_LIMITED) == "1" and not covered
    return SignedPayer(
        payer=Payer(account_id, key_id if limited else "", covered),
        key_id=key_id,
        call_id=said.get(calls.CALL) or f"call_{secrets.token_hex(12)}",
        tier_rank=int(rank),
        model=said.get(calls.MODEL, ""),
        tags=_tags(said.get(calls.TAGS, "")),
        strict=said.get(calls.STRICT) == "1",
        at_once=_at_once(said.get(calls.AT_ONCE, "")),
        salt=salt_of(account_id, secret=trust),
    )


def _tags(said: str) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(said, type=tuple[str, ...]) if said else ()
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"the gateway named tags that can't be read: {error}", code="bad_ticket") from error


def _at_once(said: str) -> int:
    return max(1, int(said)) if said.isdecimal() and said.isascii() and len(said) < _DIGITS else 1


def salt_of(account_id: str, *, secret: str) -> str:
    """What an account's cached prompts are marked with: the same at every replica, and nobody's to guess.

    Without it one account could find out, by the time to the first token or by what is said and charged of cached tokens,
    what others have asked.
    """
    return hmac.digest(secret.encode(), f"cache/{account_id}".encode(), sha256).hex()[:43]
