"""Who is calling: from an API key to a caller that may or may not do things.

A key is looked up in the gate and remembered for two seconds, so that it costs no lookup for every call and a key
revoked elsewhere is refused soon; one revoked through this door is forgotten at once. Whether a key is expired or revoked
is told only to whoever has its secret. Neither secrets nor hashes appear in errors or logs.
"""

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fabric.api.gate_port import GatePort
from fabric.clock import Clock
from fabric.errors import InvalidRequest, PermissionDenied, Unauthenticated
from fabric.gate.key_scopes import KeyScope
from fabric.gate.organisation_views import KeyView
from fabric.gate.questions import KeyOf
from fabric.gate.roles import Role, of_scopes
from fabric.gate.views import JobView
from fabric.units import AccountId, KeyId
from fabric.wire import hash_secret, parse_key

REMEMBER_S: Final = 2.0
_REMEMBERED_MAX: Final = 10_000
_DEAD: Final = {
    "revoked": "key {} was revoked: make another with `fabric keys create`",
    "account_closed": "key {} is of an account that is closed: ask the operator for another one",
    "member_left": "key {} is of a member who has left: use one of your own",
    "project_closed": "key {} is of a project that is closed: use one of another project",
}
"""Why a key will never count again (`KeyView.dead`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever sent a request, and for whom."""

    key_id: str
    operator: bool
    home: AccountId
    """The account of the key."""
    acts_for: AccountId | None = None
    """The customer an operator acts for, or another wallet of the key's organisation."""
    scopes: frozenset[KeyScope] = frozenset()
    """All that the key may be used for."""
    limited: bool = False
    """Whether the key has a limit of its own."""
    expires_at_us: int | None = None
    given_role: Role | None = None
    """Its member's; None = that which its scopes come to."""
    project: str = ""
    member: str = ""
    suspended: str = ""
    """Why its account is suspended; "" = it isn't."""

    @property
    def role(self) -> Role:
        return self.given_role or of_scopes(self.scopes)

    def may(self, *scopes: KeyScope) -> bool:
        """Whether the key has one of these; an operator's own has all."""
        return KeyScope.OPERATOR in self.scopes or not self.scopes.isdisjoint(scopes)

    @property
    def own_jobs_only(self) -> bool:
        """Whether other keys' jobs are none of its business: they are answered like those that don't exist."""
        return not self.may(KeyScope.READ, KeyScope.JOBS_ALL)

    def check_may_change(self, job: JobView) -> None:
        """Refuse to touch what was submitted with another key, but for one that is for all jobs.

        Raises:
            PermissionDenied: `restricted_key`.
        """
        if not self.may(KeyScope.JOBS_ALL, KeyScope.HOST) and job.key_id != self.key_id:
            raise PermissionDenied(
                f"job {job.job_id} was submitted with another key, and this one is for its own jobs only: use one with the"
                f" scope {KeyScope.JOBS_ALL}",
                code="restricted_key",
                key_id=self.key_id,
            )

    def check_may_spend_on(self, job: JobView) -> None:
        """Refuse to let more be spent on a job that does not count against this key's limit.

        Raises:
            PermissionDenied: `restricted_key`.
        """
        self.check_may_change(job)
        if self.limited and job.key_id != self.key_id:
            raise PermissionDenied(
                f"job {job.job_id} was submitted with another key, so what it spends would not count against this one's"
                " limit: use a key without a limit",
                code="restricted_key",
                key_id=self.key_id,
            )

    @property
    def counted_as(self) -> str:
        """Whose limits a request counts against: a customer can make keys, an operator's doors each have their own."""
        return f"key/{self.key_id}" if self.operator else f"account/{self.home}"

    @property
    def account(self) -> AccountId:
        """The account that is meant. An operator has to name one.

        Raises:
            InvalidRequest: an operator named none.
        """
        if self.scope is None:
            raise InvalidRequest(
                "say which customer you act for: `--account` of the CLI, `fabric-account` in the metadata",
                code="account_required",
            )
        return self.scope

    @property
    def scope(self) -> AccountId | None:
        """The account whose things are seen; None is all of them, for operators."""
        return self.acts_for if self.operator else self.acts_for or self.home


def _check_wallet(key: KeyView, wanted: str) -> None:
    """Whoever sees everything of an organisation may name another of its wallets; nothing is ever taken from one unnamed.

    Raises:
        PermissionDenied: `operator_only`: it isn't one of its organisation's; `restricted_key`: its role is not for that.
    """
    if wanted not in key.wallets:
        raise PermissionDenied(
            "only an operator acts for others: leave `--account` of the CLI (FABRIC_ACCOUNT), or `fabric-account` in the"
            " metadata, out",
            code="operator_only",
        )
    if key.role == Role.DEVELOPER:
        raise PermissionDenied(
            f"key {key.key_id} is paid by {key.account_id} alone: use a key of a project that {wanted} pays for",
            code="restricted_key",
            key_id=key.key_id,
        )


class KeyRing:
    """Checks keys. Knows the gate's keys only as hashes."""

    def __init__(self, port: GatePort, *, clock: Clock, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._clock = clock
        self._monotonic = monotonic
        self._remembered: OrderedDict[str, tuple[float, KeyView]] = OrderedDict()

    async def caller(self, authorization: str, *, acts_for: str = "") -> Caller:
        """The caller behind an `authorization` header.

        Raises:
            Unauthenticated: `key_missing`, `key_unknown`, `key_revoked` or `key_expired`.
            PermissionDenied: a tenant wants to act for another account.
        """
        key = await self._check(authorization)
        if acts_for and not key.operator and acts_for != key.account_id:
            _check_wallet(key, acts_for)
        return Caller(
            key_id=key.key_id,
            operator=key.operator,
            home=AccountId(key.account_id),
            acts_for=AccountId(acts_for) if acts_for else None,
            scopes=frozenset(KeyScope(scope) for scope in key.scopes),
            limited=key.limit_uhs is not None or any(limit.hard for limit in key.limits),
            expires_at_us=key.expires_at_us,
            given_role=Role(key.role) if key.role else None,
            project=key.project,
            member=key.member,
            suspended=key.suspended,
        )

    async def is_operators(self, key_id: str) -> bool:
        """Whether it is an operator's key, of whatever role."""
        found = await self._look_up(key_id) if key_id else None
        return found is not None and found.operator

    def remembers(self, authorization: str) -> bool:
        """Whether this key, right or wrong, needn't be looked up."""
        given = parse_key(authorization.partition(" ")[2])
        return given is not None and given.key_id in self._remembered

    def forget_all(self) -> None:
        """Ask the gate again about every key: what several are worth has changed."""
        self._remembered.clear()

    def forget(self, key_id: str) -> None:
        """Ask the gate again about this key."""
        self._remembered.pop(key_id, None)

    async def _check(self, authorization: str) -> KeyView:
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise Unauthenticated(
                "no API key: set FABRIC_API_KEY, or send `authorization: Bearer fab_...`", code="key_missing"
            )
        given = parse_key(text)
        key = await self._look_up(given.key_id) if given else None
        secret_sha256 = key.secret_sha256 if key else ""
        if not (given and key and hmac.compare_digest(hash_secret(given.secret), secret_sha256)):
            raise Unauthenticated("this API key is not known here: check FABRIC_API_KEY", code="key_unknown")
        if key.dead:
            raise Unauthenticated(
                _DEAD[key.dead].format(key.key_id),
                code="key_revoked" if key.dead == "revoked" else key.dead,
                key_id=key.key_id,
            )
        if key.expires_at_us is not None and key.expires_at_us <= self._clock.now_us():
            raise Unauthenticated(
                f"key {key.key_id} has expired: make another with `fabric keys create`",
                code="key_expired",
                key_id=key.key_id,
                expired_at_us=key.expires_at_us,
            )
        return key

    async def _look_up(self, key_id: str) -> KeyView | None:
        now = self._monotonic()
        found_at, key = self._remembered.get(key_id, (-REMEMBER_S, None))
        if key is not None and now - found_at < REMEMBER_S:
            return key
        answer = await self._port.ask(KeyOf(key_id=KeyId(key_id)))
        if not isinstance(answer, KeyView):
            return None
        self._remembered[key_id] = (now, answer)
        if len(self._remembered) > _REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return answer
