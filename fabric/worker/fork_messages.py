"""What a runner and the process that was forked for its job say to each other."""

import socket

import msgspec

from fabric.context.link import Reported, Saved, SaveWish, Saving, StopWish
from fabric.system.messages import Talk as AnyTalk
from fabric.worker.stage import JobEnd

__all__ = ["Commission", "Ended", "Exited", "Reported", "SaveWish", "Saved", "Saving", "Started", "StopWish", "Talk"]


class Commission(msgspec.Struct, frozen=True, kw_only=True, tag="commission"):
    """The first word: what is to be done, as whom."""

    order: bytes
    """As `runner.encode_order` has it."""
    archive: bytes
    """Pickled."""
    lease_id: str
    devices: tuple[str, ...]
    environment: dict[str, str]
    """The runner's: its devices are in it."""
    kept_folder: str = ""
    """Which the runner commits, so that it has begun the attempt; "" = there is none."""
    tells_start: bool = False
    """Whether the zygote's side is to say which process the job's is."""


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """The job's process is there."""

    job: int
    stem: int
    """The process above it and above all that it starts."""


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """The job's code has ended, and this is how."""

    end: JobEnd


class Exited(msgspec.Struct, frozen=True, kw_only=True, tag="exited"):
    """The process is gone: its exit code, or the negative number of the signal that ended it."""

    code: int


Word = Commission | Started | StopWish | SaveWish | Saved | Saving | Reported | Ended | Exited
_decode = msgspec.msgpack.Decoder(Word).decode


class Talk(AnyTalk[Word]):
    """One end of their conversation."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, _decode)
