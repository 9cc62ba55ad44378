"""What each account's jobs keep in the archive, as a door knows it: who keeps all it may begins nothing that would keep more.

The jobs' own saves are bounded where they run (see `fabric.storage.quota`). Here it is seen from outside of them, so
whoever goes round that bound starts no further job. Looking takes time, so a submission doesn't wait for it unless it may be
refused.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from fabric.api.gate_port import GatePort
from fabric.api.limits import Limits
from fabric.errors import FabricError, RateLimited
from fabric.storage.archive import Stored
from fabric.storage.quota import ARCHIVE_FULL, MEASURE_AGAIN_S, MEASURE_S, REMEDY, jobs_prefix
from fabric.units import AccountId

_SHARE_OF_TIME: Final = 50
_ACCOUNTS_MAX: Final = 10_000


class _Share:
    def __init__(self) -> None:
        self.kept = Stored(0, 0)
        self.measured_at = -math.inf
        self.took_s = 0.0
        self.lock = asyncio.Lock()
        self.measuring: asyncio.Task[None] | None = None


class ArchiveShares:
    """One door's."""

    def __init__(self, port: GatePort, *, limits: Limits, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._limits = limits
        self._monotonic = monotonic
        self._shares: OrderedDict[AccountId, _Share] = OrderedDict()

    async def check(self, account: AccountId, *, more: Stored | None = None) -> None:
        """Refuse who keeps all it may. With `more`, who would then: what is known must be of now, and it counts from now on.

        Raises:
            RateLimited: `archive_full`.
        """
        share = self._share(account)
        over = self._is_over(share, more)
        if (over or more is not None) and not self._is_fresh(share, MEASURE_AGAIN_S):
            await self._measure(account, share)
        elif share.measuring is None and not self._is_fresh(share, MEASURE_S):
            share.measuring = asyncio.create_task(self._measure_soon(account, share))
        if self._is_over(share, more):
            limits = self._limits
            raise RateLimited(
                f"the account's jobs keep {share.kept.bytes:,} bytes in {share.kept.values:,} values in the archive, and may"
                f" keep {limits.archive_bytes:,} in {limits.archive_values:,}: {REMEDY}",
                code=ARCHIVE_FULL,
                limit_bytes=limits.archive_bytes,
                limit_values=limits.archive_values,
                used_bytes=share.kept.bytes,
                used_values=share.kept.values,
            )
        share.kept += more or Stored(0, 0)

    def forget(self, account: AccountId) -> None:
        """Something was deleted: what is known is old."""
        self._share(account).measured_at = -math.inf

    def _share(self, account: AccountId) -> _Share:
        share = self._shares.setdefault(account, _Share())
        self._shares.move_to_end(account)
        if len(self._shares) > _ACCOUNTS_MAX:
            self._shares.popitem(last=False)
        return share

    def _is_over(self, share: _Share, more: Stored | None) -> bool:
        """One that keeps all it may, to the byte, is over, too: nothing of a new job could be kept."""
        after = share.kept + (more or Stored(1, 1))
        return after.bytes > self._limits.archive_bytes or after.values > self._limits.archive_values

    def _is_fresh(self, share: _Share, for_s: float) -> bool:
        return self._monotonic() - share.measured_at < max(for_s, _SHARE_OF_TIME * share.took_s)

    async def _measure_soon(self, account: AccountId, share: _Share) -> None:
        try:
            await self._measure(account, share)
        except FabricError:  # the archive is away: whoever needs it is told
            return
        finally:
            share.measuring = None

    async def _measure(self, account: AccountId, share: _Share) -> None:
        asked = self._monotonic()
        async with share.lock:
            if share.measured_at >= asked:  # by whoever had the lock before
                return
            began = self._monotonic()
            share.kept = await self._port.archive_stored(jobs_prefix(account))
            share.measured_at = self._monotonic()
            share.took_s = share.measured_at - began
