"""An actor of ours that answers only to who knows its secret.

Every process of a Ray cluster can find a named actor and call any of its methods, and jobs are such processes. So what
Ray sees of the gate, of a node agent or of a runner is a shell with two methods, and what it holds is reached by `call`
with the secret. The shell is made from sealed arguments: they are kept in Ray's control store, where a job can read them,
and open with the secret alone. All secrets come from one key, the file that also signs the journal's checkpoints; so
whoever has it finds them again after any restart, and nothing needs to be stored.

`who` tells one that is ours from one that a job has put in its place: before a secret is sent, the actor proves that it
knows it. What Ray itself lets any process of a cluster do is not held off by this: to end an actor, for one.
"""

import asyncio
import hashlib
import hmac
import os
import pickle
import secrets
from typing import Any, ClassVar, Final

import msgspec
import ray
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from ray.util.state import list_actors

from fabric import logs
from fabric.errors import PermissionDenied
from fabric.system.unpickling import restrict_ray

_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_PROOF: Final = b"who"
_TABLE_ROWS: Final = 10_000


class Who(msgspec.Struct, frozen=True, kw_only=True):
    """What an actor says of itself to anybody."""

    digest: bytes
    """Which secret it was made with; not the secret."""
    proof: bytes
    """Over what the asker has sent, with the secret; b"" = nobody has told it yet since it was started."""


def secret_of(key: bytes, purpose: str) -> bytes:
    """The secret for a purpose, from the key: the same every time, and no way back."""
    return hmac.digest(key, b"token-fabric " + purpose.encode(), hashlib.sha256)


def sealed(secret: bytes, *arguments: Any, **options: Any) -> tuple[bytes, bytes]:
    """The arguments for a `Guarded`: they say nothing to who doesn't know the secret."""
    nonce = os.urandom(_NONCE_BYTES)
    inside = pickle.dumps((arguments, options))
    return nonce + AESGCM(secret).encrypt(nonce, inside, None), _digest(secret)


class Guarded:
    """The shell. A subclass says what is inside."""

    INSIDE: ClassVar[type]
    TENANTS: ClassVar = False
    """Whether the process is a tenant's own, in which Ray must be able to unpickle whatever the tenant likes."""

    def __init__(self, closed: bytes, digest: bytes) -> None:
        """Take what `sealed` gave."""
        logs.plain()
        if not self.TENANTS:
            logs.make_written_private()
            restrict_ray()
        self._closed, self._digest = closed, digest
        self._secret = b""
        self._inside: Any = None

    async def who(self, nonce: bytes) -> Who:
        """Whose it is, and a proof of that for who knows the secret."""
        proof = hmac.digest(self._secret, _PROOF + nonce, hashlib.sha256) if self._secret else b""
        return Who(digest=self._digest, proof=proof)

    async def call(self, secret: bytes, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of what is inside, which is made when the secret is heard first.

        Raises:
            PermissionDenied: `not_a_door`: it is not the secret.
        """
        if not isinstance(secret, bytes) or not hmac.compare_digest(_digest(secret), self._digest):
            raise PermissionDenied(_NOT_FOR_YOU, code="not_a_door")
        if self._inside is None:
            self._inside = self._opened(secret)
        if not isinstance(method, str) or method.startswith("_"):
            raise PermissionDenied(_NOT_FOR_YOU, code="not_a_door")
        return await getattr(self._inside, method)(*arguments, **options)

    def _opened(self, secret: bytes) -> Any:
        nonce, inside = self._closed[:_NONCE_BYTES], self._closed[_NONCE_BYTES:]
        try:
            plain = AESGCM(secret).decrypt(nonce, inside, None)
        except InvalidTag:
            raise PermissionDenied(_NOT_FOR_YOU, code="not_a_door") from None
        arguments, options = pickle.loads(plain)  # noqa: S301 - sealed by who knows the secret, and unchanged
        made = self.INSIDE(*arguments, **options)
        self._secret = secret
        return made


class Stranger(Exception):
    """An actor that doesn't answer as one of ours does."""


async def is_ours(actor: "Admitted", *, within_s: float) -> bool:
    """Whether an actor that was found by its name was made with our secret, and, where it has heard it, knows it.

    One that a job has put there can say the first, and not prove the second. Neither can one of ours that nobody has told
    its secret since it was started.

    Raises:
        TimeoutError: it doesn't answer.
    """
    said, nonce = await ask_who(actor, within_s=within_s)
    return actor.is_ours(said) and actor.is_proven(said, nonce)


async def ask_who(actor: "Admitted", *, within_s: float) -> tuple[Who, bytes]:
    """What an actor says of itself, and what it was asked with.

    Raises:
        Stranger: nothing that one of ours would say.
        TimeoutError: nothing.
    """
    nonce = secrets.token_bytes(_KEY_BYTES)
    try:
        reference = actor.actor.who.remote(nonce)
    except AttributeError:
        raise Stranger("it has no word for who it is") from None
    said = await asyncio.wait_for(_awaited(reference), within_s)
    if not isinstance(said, Who):
        raise Stranger("what it says of itself makes no sense")
    return said, nonce


async def _awaited(reference: Any) -> Any:
    return await reference


class Admitted:
    """An actor's handle, and the secret that goes with it: called as the handle itself would be."""

    def __init__(self, actor: Any, secret: bytes, *, name: str = "") -> None:
        self.actor = actor
        self.name = name
        self._secret = secret

    def __repr__(self) -> str:
        return f"Admitted({self.actor!r})"

    def __getattr__(self, method: str) -> "_Method":
        if method.startswith("_"):
            raise AttributeError(method)
        return _Method(self, method)

    def send(self, method: str, *arguments: Any, **options: Any) -> Any:
        """The reference to the answer."""
        return self.actor.call.remote(self._secret, method, *arguments, **options)

    def is_ours(self, said: Who) -> bool:
        """Whether the actor was made with our secret, as far as its words go."""
        return hmac.compare_digest(said.digest, _digest(self._secret))

    def is_proven(self, said: Who, nonce: bytes) -> bool:
        """Whether the actor knows our secret."""
        wanted = hmac.digest(self._secret, _PROOF + nonce, hashlib.sha256)
        return hmac.compare_digest(said.proof, wanted)


class _Method:
    def __init__(self, admitted: Admitted, name: str) -> None:
        self._admitted = admitted
        self._name = name

    def remote(self, *arguments: Any, **options: Any) -> Any:
        return self._admitted.send(self._name, *arguments, **options)


def actor_id_of(admitted: Admitted) -> str:
    """Ray's id of it, in hexadecimal."""
    found = getattr(admitted.actor, "_actor_id", None)
    return str(found.hex()) if found is not None else ""


def end_actor(name: str, namespace: str) -> None:
    """End an actor by its name, without a handle, which would load its class into this process. Blocks."""
    rows = list_actors(
        str(ray.get_runtime_context().gcs_address),
        filters=[("name", "=", name), ("ray_namespace", "=", namespace)],
        limit=_TABLE_ROWS,
    )
    worker = ray._private.worker.global_worker  # noqa: SLF001
    for row in rows:
        if row.state != "DEAD":
            worker.core_worker.kill_actor(ray.ActorID(bytes.fromhex(row.actor_id)), True)  # noqa: FBT003


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(b"token-fabric digest " + secret).digest()


_NOT_FOR_YOU: Final = (
    "this actor answers the fabric's own doors only: ask over gRPC or HTTP with an API key (fabric keys create)"
)
