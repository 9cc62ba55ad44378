"""Which parts of a file hold data: of a sparse file only those are kept, and charged.

It does not know what is kept where. Where a file system doesn't tell of holes, all of a file is data.
"""

import errno
import os
from typing import Final

GAP_BYTES: Final = 64 * 1024
"""A smaller hole counts as data: it would cost more to tell of than to keep."""
EXTENTS_MAX: Final = 16_384
"""Of one file. Where there are more, larger holes count as data, too."""

Extent = tuple[int, int]
"""Offset and length."""


def is_sparse(about: os.stat_result) -> bool:
    """Whether a file has holes that are worth looking for."""
    return about.st_blocks * 512 + GAP_BYTES <= about.st_size


def extents_of(handle: int, size: int) -> tuple[Extent, ...]:
    """Where the first `size` bytes of a file hold data, in order."""
    found: list[Extent] = []
    gap, at = GAP_BYTES, 0
    while at < size:
        try:
            start = os.lseek(handle, at, os.SEEK_DATA)
            at = min(os.lseek(handle, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                break
            return ((0, size),)
        if start < size:
            _joined(found, (start, at - start), gap=gap)
        while len(found) > EXTENTS_MAX:
            gap *= 2
            before, found = found, []
            for extent in before:
                _joined(found, extent, gap=gap)
    return tuple(found)


def _joined(found: list[Extent], extent: Extent, *, gap: int) -> None:
    """Append it, or let it lengthen the last one, if what lies between is small."""
    start, length = extent
    if found and start - sum(found[-1]) < gap:
        found[-1] = (found[-1][0], start + length - found[-1][0])
    else:
        found.append(extent)
