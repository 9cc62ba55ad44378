"""What one metered call is, and what the ledger's side of a slice promises: the words all of serving shares.

It knows no engine, no wire and no clock. Two kinds of tokens meet here: names that end `_uhs` count compute tokens,
`prompt_tokens` and `completion_tokens` count those of a language model.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from fabric.charging.packages import Limit

TRUST: Final = "x-fabric-trust"
"""The secret that gateways and replicas share. Without it a replica answers nothing but `/health`."""
ACCOUNT: Final = "x-fabric-account"
KEY: Final = "x-fabric-key"
KEY_LIMITED: Final = "x-fabric-key-limited"
"""`1` where the key has a limit of its own: its calls then draw on a slice of their own."""
TIER_RANK: Final = "x-fabric-tier-rank"
"""0 Starter, 1 Professional, 2 Enterprise."""
MODEL: Final = "x-fabric-model"
CALL: Final = "x-fabric-call"
STRICT: Final = "x-fabric-strict"
"""`1`: a stream that ends for want of tokens says so with an error event, after its usage."""
COVERED: Final = "x-fabric-covered"
"""`1`: the account's own dedicated lease pays for the device; the call is recorded and charged nothing."""
AT_ONCE: Final = "x-fabric-at-once"
"""How many prompts of the request the engine may have at a time."""
TAGS: Final = "x-fabric-tags"
"""What the call is marked with: from clients `k=v,…`, from gateways a list in JSON, in ASCII."""
CHARGED_UHS: Final = "x-fabric-charged-uhs"
FREE_UHS: Final = "x-fabric-free-uhs"
"""What the account can still spend on this model, what is held for it here included."""

CALLS_PATH: Final = "/fabric/calls/"
"""Where a replica tells a gateway what a call cost."""

Ended = Literal["stop", "length", "balance_exhausted", "client_gone", "error", "cancelled"]


class Usage(msgspec.Struct, frozen=True):
    """The language-model tokens of one call: cached ⊆ prompt, reasoning ⊆ completion."""

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


class Call(msgspec.Struct, frozen=True):
    """A call that ended: what is settled, once, under its id for ever.

    Args:
        call_id: unique for ever; the gateway makes it, or the replica where there is none.
        key_id: the key that asked; empty where no key did.
        ended: why, one of `Ended`.
        covered: ran on the account's own dedicated lease: recorded, charged 0.
        rate_version: the version of the model's rates it was granted by; 0 = those in force when it started.
        packages: what it was promised of packages of LLM tokens, in the order in which they pay: asset, thousandths.
        tags: what it is marked with: its own, its key's and its project's.
    """

    call_id: str
    account_id: str
    key_id: str
    model: str
    accelerator: str
    usage: Usage
    started_at_us: int
    ended_at_us: int
    ended: str
    covered: bool = False
    rate_version: int = 0
    packages: tuple[Limit, ...] = ()
    tags: tuple[str, ...] = ()


class Wanted(NamedTuple):
    """The LLM tokens that an amount is asked for, those of them that are of use at least, and by which rates it was reckoned."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    least_prompt_tokens: int = 0
    least_completion_tokens: int = 0
    rate_version: int = 0


class Package(msgspec.Struct, frozen=True):
    """What a hold has of a package of LLM tokens, and what it could be given more, in thousandths."""

    asset: str
    held: int
    free: int


class Granted(msgspec.Struct, frozen=True):
    """The ledger's answer: µHs held now, after what was captured. `final`: the account has no more to give.

    `free_uhs`: what the account has free beside, where the ledger says so; a replica sizes its slice by it. `within_key`: the
    limit of the hold's key leaves no more of it. `packages`: beside, in the order in which they pay.
    """

    held_uhs: int
    final: bool
    free_uhs: int | None = None
    within_key: bool = False
    packages: tuple[Package, ...] = ()


class SliceLedger(Protocol):
    """Holds as the meter sees them. Each raises `fabric.errors.Unavailable` when the ledger can't be reached.

    A call may be repeated with the same `seq` (and must be, after `Unavailable`): it is carried out once.
    """

    async def authorize(
        self,
        *,
        hold_id: str,
        account_id: str,
        key_id: str | None,
        model: str,
        accelerator: str,
        amount_uhs: int,
        minimum_uhs: int,
        ttl_us: int,
        wanted: Wanted | None = None,
    ) -> Granted:
        """Hold up to `amount_uhs`, at least `minimum_uhs`; `InsufficientTokens` (with facts) where that isn't free.

        `key_id` only where the key has a limit of its own, which then counts. With `wanted`, packages are held for as many of
        these LLM tokens as there are first, and compute tokens for the rest.
        """
        ...

    async def update(
        self,
        *,
        hold_id: str,
        account_id: str,
        seq: int,
        calls: Sequence[Call],
        more_uhs: int,
        minimum_uhs: int,
        ttl_us: int,
        wanted: Wanted | None = None,
    ) -> Granted:
        """Capture what `calls` used, and hold up to `more_uhs` beside what is left (fewer than `minimum_uhs`: none)."""
        ...

    async def settle(self, *, hold_id: str, account_id: str, seq: int, calls: Sequence[Call]) -> None:
        """Capture what `calls` used and give the rest back. Late, after the hold's end, is accepted too."""
        ...

    async def keep(self, *, hold_id: str, account_id: str, call: Call, code: str, reason: str) -> None:
        """Have one call kept as open that was refused in every other way, with what it was refused with."""
        ...

    async def record(self, *, account_id: str, calls: Sequence[Call]) -> None:
        """Calls that the account's own lease covers: they need no hold. Repeated, they are recorded once."""
        ...
