"""What a gateway has to know of the fabric, and whom it asks: keys, what an account may call, which replicas there are.

`Directory` is the port; `serving.gateway.fabric_directory` asks the fabric's own door, tests bring their own.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from fabric.charging.rates import Rate

ReplicaState = Literal["starting", "ready", "draining", "gone"]


class Entitlement(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller has for one model."""

    model: str
    free_uhs: int = 0
    """What of the account's tokens is good for this model and not held, by any slice either."""
    covered: bool = False
    """Whether it is the account's own, and its lease pays."""
    packaged: bool = False
    """Whether something is free of a package of LLM tokens that is good for it."""


class LimitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that resets, of the key or of its account. Amounts in its unit: µHs, 10⁻⁶ CNY, LLM tokens."""

    whose: str
    period: str
    unit: str
    amount: int
    hard: bool = True
    zone: str = "UTC"
    used: int = 0
    held: int = 0
    left: int = 0
    resets_at_us: int | None = None


class KeyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the gate knows it. The secret is known only as its hash."""

    key_id: str
    secret_sha256: str
    account_id: str
    tier_rank: int = 0
    """0 standard, 1 priority, 2 dedicated."""
    operator: bool = False
    limited: bool = False
    """Whether the key has a limit of its own."""
    may_call: bool = True
    """Whether the key is for calling models."""
    role: str = "owner"
    """Its member's; of a key of nobody's, that which its scopes come to."""
    project: str = ""
    """What it works for."""
    member: str = ""
    revoked: bool = False
    """It will never count again."""
    dead: str = ""
    """Why: revoked | account_closed | member_left | project_closed."""
    suspended: str = ""
    """Why its account is; "" = it isn't."""
    expires_at_us: int | None = None
    free_uhs: int = 0
    """What is free for whatever use."""
    name: str = ""
    limit_uhs: int | None = None
    """Of its own, ever."""
    spent_uhs: int = 0
    requests_per_min: int = 0
    """0 = no limit of its own."""
    tokens_per_min: int = 0
    price_microcny_per_ct: int = 0
    """Of a compute token, on the account's plan; 0 = not known."""
    held_uhs: int = 0
    limits: tuple[LimitFacts, ...] = ()
    """Those that reset."""
    models: dict[str, Entitlement] = {}
    """Every model that the account may ask for, by name."""
    packages: dict[str, int] = {}
    """What is free of packages of LLM tokens, by asset, in thousandths."""
    tags: tuple[str, ...] = ()
    """What all calls with it are marked with, its project's among them."""


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is offered."""

    name: str
    parent: str = ""
    """The model in whose replicas it runs, where it is an adapter."""
    created_at_us: int = 0
    max_context: int | None = None
    rates: tuple[Rate, ...] = ()
    """In force, one for each type of accelerator."""
    abilities: frozenset[str] = frozenset()
    """Of text, embeddings and scores those that it can be asked for; none = no replica has said."""
    calls_tools: bool = False
    """Whether its engine finds calls of tools in what the model writes."""
    reasons: bool = False
    """Whether its engine tells reasoning from answers."""
    state: str = ""
    """ready | starting | idle (none runs, a call starts one) | draining | failed | waiting (nobody serves)."""
    why: str = ""
    """What is wrong, where something is."""


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One engine that serves one model."""

    replica_id: str
    model: str
    address: str
    """Its own listener, as a URL without a path."""
    state: ReplicaState = "ready"
    tls_sha256: str = ""
    """The certificate it must show, as hex; "" = plain HTTP, on this machine only."""
    accelerator: str = ""
    max_context: int = 0
    """Tokens of its engine's context; 0 = it didn't say."""
    capacity: int = 16
    """How many requests it works on at once."""
    running: int = 0
    waiting: int = 0
    dedicated_to: str = ""
    """The account whose own it is: nobody else's requests go there, and the account's are covered by its lease."""
    adapters: frozenset[str] = frozenset()
    """Models that it serves beside its own."""
    abilities: frozenset[str] = frozenset()
    """What its model can be asked for."""


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """How serving stands: what is offered, and who serves it."""

    models: dict[str, ModelFacts] = {}
    replicas: tuple[Replica, ...] = ()

    def home_of(self, name: str) -> str:
        """The model whose replicas serve it: its parent, or itself."""
        model = self.models.get(name)
        return name if model is None else model.parent or name


class QueueLength(NamedTuple):
    """What a gateway tells of one model's line: it is what wakes a model of which nothing runs."""

    model: str
    waiting: int
    running: int
    oldest_us: int
    """How long the first in line has waited."""


class Directory(Protocol):
    """Asks the fabric. Every call raises `fabric.errors.Unavailable` when the fabric can't be reached."""

    async def key(self, key_id: str) -> KeyFacts | None:
        """What is known of a key; None if there is none."""
        ...

    def boards(self) -> AsyncIterator[Board]:
        """How serving stands, again whenever something changes, and at least every two seconds."""
        ...

    async def notice(self, provider: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """Hand on what a provider of payments has sent: what it is answered with, once that is booked.

        Raises:
            NotFound: payments of it are not taken here.
            PermissionDenied: it isn't signed by it.
        """
        ...

    def focus(self, key: str, *, dataset: str, form: str, from_us: int, until_us: int | None) -> AsyncIterator[bytes]:
        """A customer's costs in FOCUS, piece by piece, asked for with its own key: the fabric says whether that may.

        Raises:
            InvalidRequest: there is no such dataset or form.
            PermissionDenied: the key is not for books.
        """
        ...

    async def report(self, queues: Sequence[QueueLength]) -> None:
        """Say how long the lines are."""
        ...
