"""Where each attempt of a job ran: on which nodes, with how many devices, from when until when. Told for good.

Of a job with very many attempts the first and the newest are kept.
"""

from typing import Final

import msgspec

from fabric.gate.instructions import Lease

KEPT_MAX: Final = 32


class Stay(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One attempt on its devices."""

    attempt: int
    accelerator: str
    devices: int
    nodes: tuple[str, ...]
    """Each as "node × devices"."""
    started_at_us: int | None = None
    """None = it never started."""
    ended_at_us: int | None = None
    ended: str = ""
    """How: succeeded, failed, saved, lost, interrupted, or why it was asked to stop; "" = it runs."""


def placed(stays: list[Stay], lease: Lease) -> None:
    """An attempt has been given its devices."""
    nodes = tuple([f"{share.node_id} × {share.devices}" for share in lease.shares])
    stays.append(Stay(attempt=lease.epoch, accelerator=lease.accelerator, devices=lease.devices, nodes=nodes))
    if len(stays) > KEPT_MAX:
        del stays[1]


def started(stays: list[Stay], *, at_us: int) -> None:
    """The newest one burns from here on."""
    if stays:
        stays[-1] = msgspec.structs.replace(stays[-1], started_at_us=at_us)


def ended(stays: list[Stay], *, at_us: int, how: str) -> None:
    """The newest one is over."""
    if stays:
        stays[-1] = msgspec.structs.replace(stays[-1], ended_at_us=at_us, ended=how)
