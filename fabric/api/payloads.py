"""What a request says is to be run, checked and put into words for the runner.

Every key in a payload is made here, from the caller's account: what a caller sends can name nothing of anybody else's.
What no machine could start is refused here too, before tokens are held for it.
"""

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec

from fabric.api.service import ApiService
from fabric.errors import InvalidRequest
from fabric.units import AccountId
from fabric.wire import INLINE_BYTES_MAX
from fabric.wire import fabric_pb2 as pb
from fabric.worker.environments import check_variables, environment_of
from fabric.worker.payload import Payload, inlined

JOURNALED_BYTES_MAX: Final = 4 * 1024
"""A pickle up to this size rides in the job's own record: that saves the archive a write and the runner a read."""
PAYLOAD_CHARS_MAX: Final = 64 * 1024
"""Of a payload without its function: command, variables and runtime_env are in the job's record for ever."""
PATH_FOLDERS_MAX: Final = 256
PRELOADS: Final = ("", "torch")
RANKS: Final = ("", "node", "device")


async def payload_of(door: ApiService, account: AccountId, given: pb.Payload, *, kind: str) -> Payload:
    """What the runner is told. Every key in it is made here, from the caller's account."""
    ways = sum(map(bool, (given.function, given.function_sha256, given.command)))
    if ways != (0 if kind == "lease" else 1):
        wanted = "no payload" if kind == "lease" else "a function or a command, and one of them"
        raise InvalidRequest(f"a job of kind {kind!r} has {wanted}", code="invalid_payload")
    _check_process(given.command, given.env)
    _check_python(given.python)
    blob = inline = ""
    if given.function:
        if len(given.function) > INLINE_BYTES_MAX:
            raise InvalidRequest(
                f"an inline function may have {INLINE_BYTES_MAX} bytes, this one has {len(given.function)}: send it"
                " with PutBlob",
                code="payload_too_large",
                limit_bytes=INLINE_BYTES_MAX,
            )
        if len(given.function) <= JOURNALED_BYTES_MAX:
            inline = inlined(given.function)
        else:
            blob = blob_key(account, hashlib.sha256(given.function).hexdigest())
            async with door.blobs.upload(account) as upload:
                await upload.add(given.function)
                await door.blobs.keep(blob, upload)
    elif given.function_sha256:
        blob = blob_key(account, _sha256(given.function_sha256))
    return Payload(
        blob=blob,
        inline=inline,
        entrypoint=tuple(given.command),
        working_dir_blob=blob_key(account, _sha256(given.working_dir_sha256)) if given.working_dir_sha256 else "",
        python_path=_python_path(given.python_path),
        env=dict(given.env),
        runtime_env=_runtime_env(given.runtime_env_json, forks=given.ranks == "device"),
        preload=_preload(given.preload, kind=kind),
        ranks=_ranks(given.ranks, preload=given.preload),
    )


def _check_python(given: str) -> None:
    """Code that was pickled runs on the minor version of Python that made it, and on no other."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if given not in ("", here):
        raise InvalidRequest(
            f"the function was pickled by Python {given[:16]}, and the fabric's nodes run Python {here}, which can't run its code:"
            f" use Python {here}, or put the function into a module beside your script (it travels as source then), or"
            " submit a script",
            code="other_python",
            python=given[:16],
            nodes_python=here,
        )


def _sha256(given: str) -> str:
    if len(given) != hashlib.sha256().digest_size * 2 or not set(given) <= set("0123456789abcdef"):
        raise InvalidRequest(
            "name a blob by the sha256 that PutBlob answered, in lower-case hex", code="invalid_sha256"
        )
    return given


def _python_path(given: Sequence[str]) -> tuple[str, ...]:
    parts = [PurePosixPath(each).parts for each in given]
    if (
        len(given) > PATH_FOLDERS_MAX
        or any("\0" in each or each[:1] == "/" for each in given)
        or any(".." in each for each in parts)
    ):
        raise InvalidRequest(
            f"python_path names up to {PATH_FOLDERS_MAX} folders inside the working directory", code="invalid_payload"
        )
    return tuple(given)


def _preload(given: str, *, kind: str) -> str:
    if given not in PRELOADS:
        raise InvalidRequest(f"preload {given[:100]!r}: choose torch, or none", code="invalid_preload")
    if given and kind not in ("function", "script"):
        raise InvalidRequest(
            f"a job of kind {kind!r} is no process to be forked: leave preload out", code="invalid_preload"
        )
    return given


def _ranks(given: str, *, preload: str) -> str:
    if given not in RANKS:
        raise InvalidRequest(f"ranks {given[:100]!r}: choose node or device", code="invalid_ranks")
    if given == "device" and preload != "torch":
        raise InvalidRequest(
            "a rank for each device is a process forked from one that has torch: add preload torch",
            code="invalid_ranks",
        )
    return "" if given == "node" else given


def _runtime_env(text: str, *, forks: bool) -> dict[str, Any]:
    if not text:
        return {}
    try:
        given = msgspec.json.decode(text or "{}", type=dict[str, Any])
        msgspec.convert(given.get("env_vars", {}), dict[str, str])
    except (ValueError, RecursionError):
        raise InvalidRequest(
            "runtime_env is a JSON object, and its env_vars are text by name", code="invalid_runtime_env"
        ) from None
    _check_process((), given.get("env_vars", {}))
    check_variables(given.get("env_vars", {}))
    if environment_of(given) is not None and forks:
        raise InvalidRequest(
            "a rank for each device is forked from a process that has torch, and has no packages of its own: leave pip and uv"
            " out, or ranks",
            code="invalid_ranks",
        )
    return given


def _check_process(command: Iterable[str], variables: Mapping[str, str]) -> None:
    """What no operating system could start."""
    if any("\0" in word for word in command):
        raise InvalidRequest("a command can't have a NUL character in it", code="invalid_payload")
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidRequest(
                f"{name[:100]!r} can't be an environment variable: a name without '=', and no NUL in name or value",
                code="invalid_env",
            )


def recorded(payload: Payload) -> str:
    """The payload as it stands in the job's record."""
    text = msgspec.json.encode(payload).decode()
    if len(text) - len(payload.inline) > PAYLOAD_CHARS_MAX:
        raise InvalidRequest(
            f"command, env and runtime_env together may have {PAYLOAD_CHARS_MAX} characters, these have"
            f" {len(text) - len(payload.inline)}: put what is large into a file of the working directory",
            code="payload_too_large",
            limit_bytes=PAYLOAD_CHARS_MAX,
        )
    return text


def blob_key(account: str, sha256: str) -> str:
    """Where the archive keeps what a customer sent: below the account, by content."""
    return f"blobs/{account}/{sha256}"
