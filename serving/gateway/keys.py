"""Who is calling, and what they may call.

Answers of the fabric are remembered for `REMEMBER_S` and no longer, so that a revoked key is refused within two seconds;
one in use is asked for again after `REFRESH_S`, in the background, so that no request waits for it. Secrets and their
hashes appear in no error and no log. Whether a key was revoked or expired is told only to whoever has its secret.
"""

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Generic, NamedTuple, TypeVar

from fabric.api.connections import network_of
from fabric.api.limits import RateLimit
from fabric.errors import NotFound, PermissionDenied, Unauthenticated, Unavailable
from fabric.wire import hash_secret, parse_key
from serving.gateway.directory import Directory, Entitlement, KeyFacts

REMEMBER_S: Final = 2.0
REFRESH_S: Final = 1.0
_REMEMBERED_MAX: Final = 20_000
_ASK_S: Final = 5.0
GUESSES_PER_S: Final = 500
"""Lookups from one address: one that tries keys must not keep the fabric's door busy."""
_RANKS: Final = 2

Answer = TypeVar("Answer")
_BEARER: Final = b"bearer "


class Caller(NamedTuple):
    """Whoever sent a request."""

    key: KeyFacts
    rank: int
    """Place in the queue: 0 goes first."""

    @property
    def account_id(self) -> str:
        return self.key.account_id

    def entitlement(self, name: str) -> Entitlement:
        """What the caller has for a model.

        Raises:
            NotFound: `model_not_found`, also for one that only others may call: the answer is the same.
        """
        found = self.key.models.get(name)
        if found is None:
            raise NotFound(
                f"the model {name[:100]!r} does not exist or is not yours to call: you may call"
                f" {', '.join(sorted(self.callable())[:20]) or 'none'}",
                code="model_not_found",
                param="model",
            )
        return found

    def callable(self) -> list[str]:
        """The models that the caller's tokens are good for; of one who has none left, all there are."""
        has_some = self.key.free_uhs > 0 or any(has.packaged for has in self.key.models.values())
        return [
            name
            for name, has in self.key.models.items()
            if has.covered or has.packaged or has.free_uhs > 0 or not has_some
        ]

    def bound_elsewhere(self, name: str) -> bool:
        """Whether there are free tokens, but none that are good for this model."""
        has = self.key.models.get(name)
        bound = has is not None and not (has.covered or has.packaged) and has.free_uhs == 0
        return bound and self.key.free_uhs > 0


class Memory(Generic[Answer]):
    """Answers that are good for a moment; asks once however many want to know, and ahead of time what is wanted often."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._known: OrderedDict[str, tuple[float, Answer]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[Answer]] = {}
        self._away: Unavailable | None = None
        """Why the fabric could not be asked last: one at a time tries it then, and the others are told at once."""

    def has(self, name: str) -> bool:
        """Whether it would be answered without asking once more."""
        found = self._known.get(name)
        return name in self._asking or (found is not None and self._monotonic() - found[0] < REMEMBER_S)

    async def get(self, name: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """What is known by that name, at most `REMEMBER_S` old.

        Raises:
            Unavailable: it isn't known, and can't be asked.
        """
        now = self._monotonic()
        found = self._known.get(name)
        if found is not None and now - found[0] < REMEMBER_S:
            if now - found[0] >= REFRESH_S and name not in self._asking:
                self._start(name, ask)
            return found[1]
        if self._away is not None and self._asking and name not in self._asking:
            raise Unavailable(self._away.message, code=self._away.code, **self._away.facts)
        task = self._asking.get(name) or self._start(name, ask)
        return await asyncio.shield(task)

    def _start(self, name: str, ask: Callable[[], Awaitable[Answer]]) -> asyncio.Task[Answer]:
        task = asyncio.ensure_future(self._ask(name, ask))
        self._asking[name] = task
        task.add_done_callback(lambda done: self._asked(name, done))
        return task

    async def _ask(self, name: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        asked_at = self._monotonic()  # what is revoked while the answer is on its way counts from here
        try:
            answer = await asyncio.wait_for(ask(), _ASK_S)
        except TimeoutError:
            self._away = Unavailable("the fabric's gate did not answer in time: try again", code="timeout")
            raise self._away from None
        except Unavailable as error:
            self._away = error
            raise
        self._away = None
        self._known[name] = (asked_at, answer)
        self._known.move_to_end(name)
        if len(self._known) > _REMEMBERED_MAX:
            self._known.popitem(last=False)
        return answer

    def _asked(self, name: str, done: asyncio.Task[Answer]) -> None:
        del self._asking[name]
        if not done.cancelled():
            done.exception()  # of a refresh in the background nobody else asks for it


_REVOKED: Final = ("key_revoked", "was revoked: make another with `fabric keys create`")
_DEAD: Final = {
    "account_closed": ("account_closed", "is of an account that is closed: ask the operator for another one"),
    "member_left": ("member_left", "is of a member who has left: use one of your own"),
    "project_closed": ("project_closed", "is of a project that is closed: use one of another project"),
}
"""Why a key will never count again, by what the gate calls that: its code, and the sentence."""


class Gatekeeper:
    """Checks keys and what they are good for."""

    def __init__(
        self,
        directory: Directory,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._now_us = now_us
        self._keys: Memory[KeyFacts | None] = Memory(monotonic=monotonic)
        self._guesses = RateLimit(per_s=GUESSES_PER_S, monotonic=monotonic)

    async def caller(self, headers: dict[bytes, bytes], *, host: str = "") -> Caller:
        """The caller behind `authorization: Bearer fab_...`, or Anthropic's `x-api-key`.

        Args:
            headers: the request's.
            host: where it comes from, which may guess so many keys a second and no more.

        Raises:
            Unauthenticated: `key_missing`, `invalid_api_key`, `key_revoked` or `key_expired`.
            RateLimited: too many keys from there were not known.
            PermissionDenied: `operator_key`: an operator's key buys nothing.
            Unavailable: the fabric can't be asked.
        """
        given = parse_key(presented(headers).decode("latin-1"))
        key_id = given.key_id if given else ""
        if given and not self._keys.has(key_id):
            self._guesses.spend(network_of(host))
        key = await self._keys.get(key_id, lambda: self._directory.key(key_id)) if given else None
        expected = key.secret_sha256 if key else ""
        if not (given and key and hmac.compare_digest(hash_secret(given.secret), expected)):
            raise Unauthenticated("this API key is not known here: check it, or make one with `fabric keys create`")
        if key.revoked or key.dead:
            code, why = _DEAD.get(key.dead, _REVOKED)
            raise Unauthenticated(f"key {key_id} {why}", code=code, key_id=key_id)
        if key.expires_at_us is not None and key.expires_at_us <= self._now_us():
            raise Unauthenticated(
                f"key {key_id} has expired: make another with `fabric keys create`", code="key_expired", key_id=key_id
            )
        if key.operator:
            raise PermissionDenied(
                f"key {key_id} is an operator's and has no tokens to spend: use a customer's key", code="operator_key"
            )
        return Caller(key, _RANKS - key.tier_rank)


def presented(headers: dict[bytes, bytes]) -> bytes:
    """The key that a request shows."""
    authorization = headers.get(b"authorization", b"")
    if authorization[: len(_BEARER)].lower() == _BEARER and authorization[len(_BEARER) :].strip():
        return authorization[len(_BEARER) :]
    key = headers.get(b"x-api-key", b"")
    if not key:
        raise Unauthenticated(
            "no API key: send `authorization: Bearer fab_...` (or `x-api-key: fab_...`)", code="key_missing"
        )
    return key
