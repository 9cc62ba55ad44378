"""What a replica was told since its start: other rates, adapters. Kept in a file beside its outbox, so that a restart in place
begins with it: whoever restarts it knows only what it was started with, and the pool tells it again at its next look.
"""

from pathlib import Path
from typing import Final

import msgspec
import structlog

from fabric.charging.rates import Rate
from serving.replica.listener import ReplicaSpec
from serving.replica.lora import Adapter

_SUFFIX: Final = ".told"

_log = structlog.get_logger()


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    rate: Rate
    adapters: tuple[Adapter, ...]


def state_file(spec: ReplicaSpec) -> Path:
    return Path(spec.state_dir) / f"{spec.replica_id.replace('/', '_')}{_SUFFIX}"


def kept(spec: ReplicaSpec) -> ReplicaSpec:
    """The spec with what the replica was told last; as it is where nothing is known of that. Blocks."""
    try:
        told = msgspec.json.decode(state_file(spec).read_bytes(), type=_Told)
    except FileNotFoundError:
        return spec
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        _log.warning("replica_state_unreadable", replica=spec.replica_id, why=str(error))
        return spec
    return msgspec.structs.replace(spec, rate=told.rate, adapters=told.adapters)


def keep(spec: ReplicaSpec) -> None:
    """Keep what it is told now. Where the disk refuses that, it is told all the same. Blocks."""
    file = state_file(spec)
    draft = file.with_name(f"{file.name}.new")
    try:
        draft.write_bytes(msgspec.json.encode(_Told(rate=spec.rate, adapters=spec.adapters)))
        draft.replace(file)
    except OSError as error:
        _log.warning("replica_state_not_kept", replica=spec.replica_id, why=str(error))


def forget(spec: ReplicaSpec) -> None:
    """It doesn't come back. Blocks."""
    state_file(spec).unlink(missing_ok=True)
