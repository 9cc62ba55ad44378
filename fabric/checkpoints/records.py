"""What a job's checkpoint log holds, and how one record is written so that no flipped bit passes for another record.

A record is two lines: the sha256 of the second, and JSON. It says which job's log it belongs to and at which slot, so a
record that was moved or swapped is as damaged as one that was changed. It does not know where it is kept.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from fabric.errors import CheckpointDamaged, Conflict, InvalidRequest

FORMAT: Final = 1
"""Of the records and of the layout of keys below a prefix."""
RECORD_BYTES_MAX: Final = 64 * 2**20
COUNT_MAX: Final = 2**63 - 1
"""Of steps and of bytes."""
_DIGEST_CHARS: Final = 64
_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**64 - 1


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """One value of a checkpoint: where it lies below the job's prefix, and what it must be."""

    name: str
    key: str
    size: int
    sha256: str


class _Written(msgspec.Struct, frozen=True, kw_only=True):
    """Where a record stands, and whose it is."""

    format: int = FORMAT
    prefix: str
    slot: int
    """Its place in the log: of two checkpoints the one with the higher slot is newer, whatever their steps."""
    epoch: int
    attempt: str
    writer: str
    """The process: ranks of one attempt are several, and only one at a time appends."""


class Claim(_Written, frozen=True, kw_only=True, tag="claim"):
    """From this slot on only this writer may append, until another claims."""

    stands: tuple[int, ...] = ()
    """The slots before this one that still mean something; all others are void, and are being deleted."""


class Manifest(_Written, frozen=True, kw_only=True, tag="commit"):
    """A checkpoint: it exists when this record does, and this is written last."""

    step: int
    draft: str
    """Names the folder that its shards lie in."""
    shards: tuple[Shard, ...]
    world: int = 1
    model: str = ""
    """What the state is of, in the writer's words; "" = not said."""
    meta: dict[str, Any] = {}
    """The writer's own, JSON: kinds of device, the data cursor, ..."""
    stands: tuple[int, ...] = ()
    origin: str = ""
    """Where it came from, if not from a save: a rollback or a fork."""

    @property
    def bytes(self) -> int:
        """What its shards weigh together."""
        return sum(shard.size for shard in self.shards)

    def shard(self, name: str) -> Shard:
        """The shard of that name.

        Raises:
            InvalidRequest: there is none.
        """
        for shard in self.shards:
            if shard.name == name:
                return shard
        there = ", ".join(shard.name for shard in self.shards[:10]) or "none"
        raise InvalidRequest(
            f"the checkpoint of step {self.step} has no shard {name!r}: it has {there}", code="no_such_shard", name=name
        )


class Retirement(_Written, frozen=True, kw_only=True, tag="retire"):
    """Makes slots void without a new checkpoint."""

    stands: tuple[int, ...]


Record = Claim | Manifest | Retirement


class _Version(msgspec.Struct):
    format: int


def encoded(record: Record) -> bytes:
    """The record as it is kept.

    Raises:
        InvalidRequest: it is larger than RECORD_BYTES_MAX.
    """
    body = msgspec.json.encode(record)
    if len(body) > RECORD_BYTES_MAX:
        raise InvalidRequest(
            f"the manifest has {len(body)} bytes, at most {RECORD_BYTES_MAX} are kept: put large values into shards,"
            " and small ones together into one",
            code="manifest_too_large",
            limit_bytes=RECORD_BYTES_MAX,
        )
    return f"{hashlib.sha256(body).hexdigest()}\n".encode("ascii") + body


def decoded(kept: bytes, *, prefix: str, slot: int | None) -> Record:
    """The record that was kept at this slot of this job's log (None: at any).

    Raises:
        CheckpointDamaged: these are not the bytes that were written there.
        Conflict: they are, but by a version with another format.
    """
    digest, body = kept[:_DIGEST_CHARS], kept[_DIGEST_CHARS + 1 :]
    whole = kept[_DIGEST_CHARS : _DIGEST_CHARS + 1] == b"\n" and digest == _digest(body)
    if not whole:
        raise _damaged(prefix, slot, "its bytes are not those that were written")
    try:
        version = msgspec.json.decode(body, type=_Version).format
        if version != FORMAT:
            raise other_version(prefix, found=version)
        record: Record = msgspec.json.decode(body, type=Claim | Manifest | Retirement)
    except msgspec.DecodeError as error:
        raise _damaged(prefix, slot, f"it says nothing: {error}") from None
    if isinstance(record, Manifest) and not _can_be(record):
        raise _damaged(prefix, slot, "its step, or what its shards weigh, can't be")
    if record.prefix != prefix or slot not in (None, record.slot):
        raise _damaged(prefix, slot, f"it belongs to slot {record.slot} of {record.prefix}")
    return record


def _can_be(manifest: Manifest) -> bool:
    """Whether its numbers are counts of 63 bits. A job's own process can write a record, and others reckon with it."""
    sizes_fit = all(shard.size >= 0 for shard in manifest.shards) and manifest.bytes <= COUNT_MAX
    return 0 <= manifest.step <= COUNT_MAX and sizes_fit


def other_version(prefix: str, *, found: int) -> Conflict:
    """The refusal of a checkpoint that another version wrote: never passed over, for that would lose work silently."""
    return Conflict(
        f"the checkpoints of {prefix} have format {found}, this version reads and writes format {FORMAT}: resume with a"
        f" version that knows format {found}, or start the job anew",
        code="checkpoint_version",
        found=found,
        supported=FORMAT,
    )


def check_model(manifest: Manifest, model: str) -> None:
    """Refuse a checkpoint that says that it is of something else; "" = not said.

    Raises:
        Conflict: `checkpoint_of_another_model`.
    """
    if model and manifest.model and model != manifest.model:
        raise Conflict(
            f"the checkpoint of step {manifest.step} is of {manifest.model}, this job trains {model}: resume with the model"
            " it was saved from, or start another job",
            code="checkpoint_of_another_model",
            found=manifest.model,
            wanted=model,
        )


def plain_meta(meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """`meta` as it will be read back, every number exactly; tuples become lists.

    Raises:
        InvalidRequest: something in it is not JSON, not finite, or a whole number of more than 64 bits.
    """
    return {name: _plain(value, f"meta[{name!r}]") for name, value in (meta or {}).items() if _is_name(name)}


def _plain(value: Any, where: str) -> Any:
    match value:
        case None | bool() | str():
            return value
        case int() if _INT_MIN <= value <= _INT_MAX:
            return int(value)
        case float() if math.isfinite(value):
            return float(value)
        case list() | tuple():
            return [_plain(item, f"{where}[{at}]") for at, item in enumerate(value)]
        case dict() if all(map(_is_name, value)):
            return {name: _plain(item, f"{where}[{name!r}]") for name, item in value.items()}
    raise InvalidRequest(
        f"{where} is {str(value)[:40]} ({type(value).__name__}): a checkpoint's meta holds None, bools, strings, finite"
        " numbers of at most 64 bits, lists, and dicts by string; put anything else into a shard",
        code="meta_invalid",
        where=where,
    )


def _is_name(name: object) -> bool:
    if not isinstance(name, str):
        raise InvalidRequest(f"a key of a checkpoint's meta is {name!r}: use strings", code="meta_invalid")
    return True


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode("ascii")


def _damaged(prefix: str, slot: int | None, why: str) -> CheckpointDamaged:
    return CheckpointDamaged(f"record {slot} of {prefix} is damaged: {why}", prefix=prefix, slot=slot)
