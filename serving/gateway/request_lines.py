"""The log's line for each request: no prompt, no key, no answer.

Whoever shows no key writes few of them, or the disk that the journal is on would be a stranger's to fill: the others are
counted, and their number is a line.
"""

import time
from collections.abc import Callable
from typing import Final

import structlog

from serving.gateway.exchange import Exchange

KEYLESS_LINES_MAX: Final = 20
KEYLESS_WINDOW_S: Final = 10.0
_log = structlog.get_logger("gateway")


class RequestLines:
    """Of one gateway."""

    def __init__(self, *, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._since = -KEYLESS_WINDOW_S
        self._keyless = 0

    def say(self, exchange: Exchange, model: str) -> None:
        """A request is over."""
        self.catch_up()
        if not exchange.showed_key:
            self._keyless += 1
            if self._keyless > KEYLESS_LINES_MAX:
                return
        _log.info(
            "request",
            call=exchange.call_id,
            path=exchange.route.path if exchange.route else "-",
            model=model,
            status=exchange.status,
            ended=exchange.ended,
            ms=round((time.monotonic() - exchange.started_at) * 1000, 1),
        )

    def catch_up(self) -> None:
        """Say how many had no line, once in a while."""
        now = self._monotonic()
        if now - self._since < KEYLESS_WINDOW_S:
            return
        if self._keyless > KEYLESS_LINES_MAX:
            _log.warning(
                "requests_without_a_key", count=self._keyless, without_a_line=self._keyless - KEYLESS_LINES_MAX
            )
        self._since, self._keyless = now, 0
