"""A job's checkpoint fetched to this machine: whole and compared, or not there.

A folder that a command kept is that folder again. What a job's own code saved becomes the folder of a run: what
`training.session(directory=...)` goes on from and `python -m training.export` reads. Nothing of it is run or unpickled. What has come lies
beside its place until all of it is there, so a fetch that was broken off goes on where it was.
"""

import hashlib
import json
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from fabric.checkpoints import Checkpoints, DirectoryStore, Shard, is_of_folder, restore_directory
from fabric.client.client import Client
from fabric.errors import CheckpointDamaged, InvalidRequest, NotFound, Unavailable
from fabric.sdk.answers import FetchedCheckpoint
from fabric.storage.keys import checked_key
from fabric.wire import fabric_pb2 as pb

Told = Callable[[int, int], None]
"""Bytes that are here, and of how many."""

_PREFIX: Final = "session"
"""Where a run on its own machine has what it saves, in its directory."""
_INCOMING: Final = "incoming"
_TRIES: Final = 20
"""How often it is asked again in a row with nothing coming."""
_PAUSE_MAX_S: Final = 2.0
_GONE_MAX: Final = 5
"""How often it begins again as a job that runs has saved anew meanwhile."""
_READ_BYTES: Final = 2**20
_NAMED_MAX: Final = 5
"""How many of the files that are in the way are named."""


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a checkpoint is made of."""

    session: str
    checkpoint: pb.Checkpoint
    draft: str
    meta: dict[str, object]
    shards: list[pb.Shard]
    sessions: list[str]

    @property
    def bytes(self) -> int:
        return sum(int(shard.bytes) for shard in self.shards)


def fetch_checkpoint(
    client: Client,
    job_id: str,
    to: Path,
    *,
    step: int | None = None,
    force: bool = False,
    told: Told = lambda _here, _of: None,
) -> FetchedCheckpoint:
    """Fetch the newest checkpoint of a job with all its sessions, or that of a step, into a new folder; with `force` over what is in
    one that isn't: files of the same names, and all that a run has saved there. What else is there stays.

    Raises:
        InvalidRequest: `folder_in_use`: there is something in the folder, or, with `force`, a folder where a file belongs.
        NotFound: `no_checkpoint`: there is none, or none of that step; `checkpoint_gone`: newer ones take its place all the time.
        CheckpointDamaged: what has come is not what was saved; it is deleted, so that the next try asks for it again.
        Unavailable: the fabric stays away, and what has come stays for the next try; `disk_full`: there is no room for it.
    """
    to = to.absolute()
    _check_free(to, force=force)
    beside = to.with_name(f".{to.name}.fetching")
    for more in reversed(range(_GONE_MAX)):
        try:
            contents = list(_contents(client, job_id, step))
            _begin(beside, job_id, contents)
            _check_room(beside, sum(each.bytes for each in contents))
            _fetch(client, job_id, beside, contents, told)
        except NotFound as error:
            if error.code != "checkpoint_gone" or step is not None or not more:
                raise
            continue
        return _finished(beside, to, contents)
    raise AssertionError("the last try either returns or raises")


def _check_free(to: Path, *, force: bool) -> None:
    if not to.exists():
        return
    if not to.is_dir():
        raise InvalidRequest(f"{to} is a file: name a folder", code="folder_in_use", path=str(to))
    there = sorted(path.name for path in to.iterdir())
    if there and not force:
        raise InvalidRequest(
            f"{to} is there and has {_some(there)}: name a new folder, or have files of the same names written over: --force"
            " (force=True)",
            code="folder_in_use",
            path=str(to),
        )


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more:,} more" if more > 0 else "")


def _contents(client: Client, job_id: str, step: int | None) -> Iterator[_Contents]:
    """What there is to fetch: of the newest also what later sessions of the job have, which came after any older step."""
    first = _listed(client, job_id, step, "")
    yield first
    for session in first.sessions if step is None else ():
        try:
            yield _listed(client, job_id, None, session)
        except NotFound as error:  # nothing stands there
            if error.code != "no_checkpoint":
                raise


def _listed(client: Client, job_id: str, step: int | None, session: str) -> _Contents:
    pages = client.collect(pb.ListShardsRequest(job_id=job_id, step=step, session=session), pb.ShardsPage)
    return _Contents(
        session=session,
        checkpoint=pages[0].checkpoint,
        draft=pages[0].draft,
        meta=json.loads(pages[0].meta_json or "{}"),
        shards=[shard for page in pages for shard in page.shards],
        sessions=[checked_key(name) for name in pages[0].sessions],
    )


def _begin(beside: Path, job_id: str, contents: list[_Contents]) -> None:
    """Go on with what has come of this very checkpoint; of another one nothing is of use."""
    about = json.dumps([job_id, *([each.session, each.draft, len(each.shards)] for each in contents)])
    said = beside / "about.json"
    if not said.is_file() or said.read_text() != about:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        said.write_text(about)


def _check_room(beside: Path, size: int) -> None:
    """Begin nothing that the disk can't hold."""
    here = sum(path.stat().st_size for path in beside.rglob("*") if path.is_file())
    free = shutil.disk_usage(beside).free
    if size - here > free:
        raise Unavailable(
            f"{size:,} bytes are to be fetched, {here:,} are here, and {free:,} are free at {beside.parent}: make room there, or"
            " name a folder on another disk",
            code="disk_full",
            size_bytes=size,
            free_bytes=free,
        )


def _own(contents: _Contents) -> str:
    """Where in a run's folder it has what it saves."""
    return f"{_PREFIX}/sessions/{contents.session}" if contents.session else _PREFIX


def _fetch(client: Client, job_id: str, beside: Path, contents: list[_Contents], told: Told) -> None:
    total, before = sum(each.bytes for each in contents), 0
    for each in contents:
        incoming = _Incoming(beside / "run" / _own(each) / _INCOMING, each.shards)
        failures = 0
        with closing(incoming):
            while not incoming.is_whole:
                here = incoming.bytes
                try:
                    for chunk in client.stream(incoming.wanted(job_id, each), pb.CheckpointChunk):
                        incoming.take(chunk)
                        told(before + incoming.bytes, total)
                except Unavailable:
                    failures = 1 if incoming.bytes > here else failures + 1
                    if failures > _TRIES:
                        raise
                    time.sleep(min(_PAUSE_MAX_S, 0.1 * 2**failures))
        before += each.bytes


class _Incoming:
    """The shards of one checkpoint, a file each, of which some are here, and of one a part."""

    def __init__(self, folder: Path, shards: list[pb.Shard]) -> None:
        """Look what is here."""
        self._folder, self._shards = folder, shards
        self._number, self._here = 0, 0
        self._file: IO[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._go_on()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def is_whole(self) -> bool:
        return self._number == len(self._shards)

    @property
    def bytes(self) -> int:
        """That are here."""
        return sum(int(shard.bytes) for shard in self._shards[: self._number]) + self._here

    def wanted(self, job_id: str, contents: _Contents) -> pb.FetchCheckpointRequest:
        """What is not."""
        return pb.FetchCheckpointRequest(
            job_id=job_id, session=contents.session, draft=contents.draft, shard=self._number, offset=self._here
        )

    def take(self, chunk: pb.CheckpointChunk) -> None:
        """What comes next."""
        if self._file is None or (chunk.shard, chunk.offset) != (self._number, self._here):
            raise Unavailable("what came was not what was asked for: try again", code="fetch_out_of_order")
        self._file.write(chunk.data)
        self._digest.update(chunk.data)
        self._here += len(chunk.data)
        if self._here >= self._shards[self._number].bytes:
            self._end()

    def _go_on(self) -> None:
        """To the first shard that isn't here, and of that to where what is here ends."""
        self._here = 0
        while not self.is_whole and self._at(self._number).is_file():
            self._number += 1
        if self.is_whole:
            return
        self._file, self._digest = self._part.open("a+b"), hashlib.sha256()
        self._file.seek(0)
        while data := self._file.read(_READ_BYTES):
            self._digest.update(data)
            self._here += len(data)
        if self._here >= self._shards[self._number].bytes:
            self._end()

    def _end(self) -> None:
        """All of a shard is here: it has its name if it is what was saved."""
        assert self._file is not None
        self._file.close()
        shard, size, self._file = self._shards[self._number], self._here, None
        if (size, self._digest.hexdigest()) != (shard.bytes, shard.sha256):
            self._part.unlink()
            raise CheckpointDamaged(
                f"shard {shard.name} came as {size} bytes that are not the {shard.bytes} that were saved, and was deleted: try again",
                name=shard.name,
            )
        self._part.rename(self._at(self._number))
        self._go_on()

    @property
    def _part(self) -> Path:
        return self._folder / f"{self._number:08d}.part"

    def _at(self, number: int) -> Path:
        return self._folder / f"{number:08d}"


def _finished(beside: Path, to: Path, contents: list[_Contents]) -> FetchedCheckpoint:
    """All is here: what was fetched becomes checkpoints of a run's folder, or the folder that it is of."""
    store = DirectoryStore(beside / "run")
    own = [_committed(store, each) for each in contents]
    first = contents[0]
    made = beside / ("folder" if (is_folder := is_of_folder(own[0].ls()[0])) else "run")
    if is_folder:
        restore_directory(own[0], made)
    if to.exists() and any(to.iterdir()):
        _lay_over(made, to, whole=() if is_folder else (_PREFIX,))
    else:
        if to.exists():
            to.rmdir()
        made.rename(to)
    shutil.rmtree(beside)
    return FetchedCheckpoint(
        path=to, step=first.checkpoint.step, bytes=sum(each.bytes for each in contents), is_folder=is_folder
    )


def _lay_over(made: Path, to: Path, *, whole: Collection[str]) -> None:
    """Move what is in one folder into another one, over files of the same names, and over all that is there of the `whole` ones: a run
    goes on from the newest step that it finds. Nothing is written through a link.
    """
    folders, files = _folders_and_files(made)
    if blocked := [str(path) for path in files if path.parts[0] not in whole and _is_folder(to / path)]:
        raise InvalidRequest(
            f"in {to} there are folders where files belong, {_some(blocked)}: name a new folder, or move these away",
            code="folder_in_use",
            path=str(to),
        )
    for name in whole:
        _clear(to / name)
    modes = {path: stat.S_IMODE((made / path).stat().st_mode) for path in folders if not _is_folder(to / path)}
    for path in folders:
        (made / path).chmod(stat.S_IRWXU)  # until it is moved out of
        if path in modes:
            _clear(to / path)
            (to / path).mkdir()
    for path in files:
        (made / path).replace(to / path)
    for path, mode in modes.items():
        (to / path).chmod(mode)


def _folders_and_files(made: Path) -> tuple[list[Path], list[Path]]:
    """What is below a folder, each after what it lies in. A link is a file."""
    folders: list[Path] = []
    files: list[Path] = []
    for path in sorted(made.rglob("*")):
        (folders if _is_folder(path) else files).append(path.relative_to(made))
    return folders, files


def _clear(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _committed(store: DirectoryStore, contents: _Contents) -> Checkpoints:
    """Shards that have come, linked to where a checkpoint has them."""
    prefix = _own(contents)
    checkpoints = Checkpoints(store, prefix=prefix, model=contents.checkpoint.model)
    draft = checkpoints.begin(contents.checkpoint.step)
    for number, shard in enumerate(contents.shards):
        here = f"{_INCOMING}/{number:08d}"
        draft.take(Shard(name=shard.name, key=here, size=int(shard.bytes), sha256=shard.sha256))
    checkpoints.commit(draft, meta=contents.meta, world=contents.checkpoint.world)
    store.delete_folder(f"{prefix}/{_INCOMING}")
    return checkpoints
