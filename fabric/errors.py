"""Every error of the fabric, in one tree.

    FabricError
    ├── InvalidRequest        400  the request can never succeed as written
    │   ├── InvalidAmount     400  tokens as a float, in scientific notation, beyond int64, ...
    │   ├── InvalidConfig     400  a YAML file that does not say what it must
    │   └── UnknownAccelerator400  no node of that type was ever seen
    ├── Unauthenticated       401  no key, an unknown, expired or revoked key
    ├── InsufficientTokens    402  the account, or the key's own limit, does not cover the hold
    ├── PermissionDenied      403  a tenant at the operator's door
    ├── NotFound              404  no such job, account, hold (or not yours: the answer is the same)
    ├── Conflict              409  same idempotency key, other content; or a state that forbids the call
    ├── RateLimited           429  too many requests, try later
    ├── JobFailed             424  the job's own code failed, or it was cancelled: raised by `Job.result()`
    ├── Unavailable           503  the gate can't be reached, or can't write its journal: safe to retry
    └── Internal              500  our own mistake
        ├── JournalCorrupt    500  the journal does not hash to its signed root: nothing is guessed
        └── CheckpointDamaged 500  a checkpoint is not what was saved: an older good one is used

An error carries `code` (stable, snake_case), `http_status`, `facts` (machine readable) and a message that names the
number, the limit and the remedy. Errors pickle, so they cross actors and processes as what they are. In the core an
expected refusal is a value (`Refusal`), and becomes an error only at a door, by `from_refusal`.
"""

from typing import Any, ClassVar, Final

Fact = str | int | bool | None


class FabricError(Exception):
    """The root of the tree. `facts` are JSON-ready; amounts in them are integers of µHs whose names end `_uhs`."""

    code: str = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str | None = None, **facts: Fact) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.code, self.facts)


class InvalidRequest(FabricError):
    code = "invalid_request"
    http_status = 400
    exit_code = 2


class InvalidAmount(InvalidRequest):
    code = "invalid_amount"

    def __init__(
        self, message: str = "", *, given: str = "", why: str = "", code: str | None = None, **facts: Fact
    ) -> None:
        said = message or f"{given!r} is not an amount of tokens: {why}"
        super().__init__(said, code=code, given=given, why=why, **facts)


class InvalidConfig(InvalidRequest):
    code = "invalid_config"


class UnknownAccelerator(InvalidRequest):
    code = "unknown_accelerator"


class Unauthenticated(FabricError):
    code = "unauthenticated"
    http_status = 401
    exit_code = 3


class InsufficientTokens(FabricError):
    code = "insufficient_tokens"
    http_status = 402
    exit_code = 4


class PermissionDenied(FabricError):
    code = "permission_denied"
    http_status = 403
    exit_code = 3


class NotFound(FabricError):
    code = "not_found"
    http_status = 404
    exit_code = 5


class Conflict(FabricError):
    code = "conflict"
    http_status = 409
    exit_code = 6


class JobFailed(FabricError):
    code = "job_failed"
    http_status = 424
    exit_code = 7


class RateLimited(FabricError):
    code = "rate_limited"
    http_status = 429
    exit_code = 8


class Internal(FabricError):
    code = "internal"
    http_status = 500


class JournalCorrupt(Internal):
    code = "journal_corrupt"


class CheckpointDamaged(Internal):
    code = "checkpoint_damaged"


class Unavailable(FabricError):
    code = "unavailable"
    http_status = 503
    exit_code = 8


def _rebuild(kind: type[FabricError], message: str, code: str, facts: dict[str, Fact]) -> FabricError:
    error = kind.__new__(kind)
    FabricError.__init__(error, message, code=code, **facts)
    return error


_KIND_BY_STATUS: Final[dict[int, type[FabricError]]] = {
    kind.http_status: kind
    for kind in (
        InvalidRequest,
        Unauthenticated,
        InsufficientTokens,
        PermissionDenied,
        NotFound,
        Conflict,
        JobFailed,
        RateLimited,
        Internal,
        Unavailable,
    )
}
_NARROWER: Final[tuple[type[FabricError], ...]] = (
    InvalidAmount,
    InvalidConfig,
    UnknownAccelerator,
    JournalCorrupt,
    CheckpointDamaged,
)
_KIND_BY_CODE: Final[dict[str, type[FabricError]]] = {
    kind.code: kind for kind in (*_KIND_BY_STATUS.values(), *_NARROWER)
}


def error_of(code: str, http_status: int, message: str, facts: dict[str, Fact]) -> FabricError:
    """The error that crossed the network as these four values; an unknown code keeps its status' class."""
    kind = _KIND_BY_CODE.get(code) or _KIND_BY_STATUS.get(http_status, Internal)
    return _rebuild(kind, message, code, facts)
