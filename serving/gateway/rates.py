"""How many requests and LLM tokens a key may have a minute, where it has such limits of its own (RPM and TPM).

Counted at each gateway, for the key's whole limit where an ingress sends its requests to one, else for this gateway's share.
Requests are counted as they come, tokens when it is known how many there were: one request may take more than is left, and
then the next ones wait.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from fabric.errors import RateLimited
from serving.gateway.directory import KeyFacts
from serving.gateway.refusals import Headers

_KINDS: Final = ("requests", "tokens")
_MINUTE_S: Final = 60.0
_REMEMBERED_MAX: Final = 20_000


class KeyRates:
    """Two buckets for each key, filled evenly over a minute."""

    def __init__(self, *, shares: int = 1, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._shares = max(1, shares)
        self._monotonic = monotonic
        self._left: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def spend(self, key: KeyFacts) -> Headers:
        """Count a request; what its answer says of what is left, in OpenAI's headers; [] = the key has no such limits.

        Raises:
            RateLimited: `requests_per_minute` or `tokens_per_minute`.
        """
        if not (key.requests_per_min or key.tokens_per_min):
            return []
        limits = [(kind, most) for kind in _KINDS if (most := self._most(key, kind))]
        for kind, most in limits:
            self._check(key.key_id, kind, most)
        said: Headers = []
        for kind, most in limits:
            left = self._take(key.key_id, kind, most, 1 if kind == "requests" else 0)
            full_s = max(0.0, (most - left) * _MINUTE_S / most)
            said += [
                (f"x-ratelimit-limit-{kind}".encode(), str(most).encode()),
                (f"x-ratelimit-remaining-{kind}".encode(), str(max(0, int(left))).encode()),
                (f"x-ratelimit-reset-{kind}".encode(), f"{full_s:.3f}s".encode()),
            ]
        return said

    def used(self, key: KeyFacts, tokens: int) -> None:
        """So many LLM tokens went to a request of the key."""
        if most := self._most(key, "tokens"):
            self._take(key.key_id, "tokens", most, tokens)

    def _most(self, key: KeyFacts, kind: str) -> int:
        """The share of a limit that is counted here, rounded up; 0 = there is none."""
        return -(-(key.requests_per_min if kind == "requests" else key.tokens_per_min) // self._shares)

    def _check(self, key_id: str, kind: str, most: int) -> None:
        left = self._take(key_id, kind, most, 0)
        if left >= 1:
            return
        wait_s = 1 + int((1 - left) * _MINUTE_S / most)
        raise RateLimited(
            f"key {key_id} may have {most} {kind} a minute, and has had them: try again in {wait_s} s, or ask with a key that"
            " may have more",
            code=f"{kind}_per_minute", limit=most, retry_after_s=wait_s,
        )  # fmt: skip

    def _take(self, key_id: str, kind: str, most: int, amount: float) -> float:
        now = self._monotonic()
        left, at = self._left.pop((key_id, kind), (float(most), now))
        left = min(most, left + (now - at) * most / _MINUTE_S) - amount
        self._left[key_id, kind] = (left, now)
        if len(self._left) > _REMEMBERED_MAX:
            self._left.popitem(last=False)
        return left
