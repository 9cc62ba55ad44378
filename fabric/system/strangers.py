"""Connections that have shown no key yet: so many may be there, and the oldest makes way for the next.

Whoever has the key shows it at once, so that a flood of others keeps nobody out. Knows neither sockets nor keys. Not safe to
use from several threads at once.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

Connection = TypeVar("Connection")


class Strangers(Generic[Connection]):
    """At one door."""

    def __init__(self, most: int, *, end: Callable[[Connection], object]) -> None:
        """Nobody is there. `end` closes a connection."""
        self._most, self._end = most, end
        self._there: dict[Connection, None] = {}

    def come(self, connection: Connection) -> None:
        """One more; the oldest is ended if that is one too many."""
        self._there[connection] = None
        if len(self._there) > self._most:
            oldest = next(iter(self._there))
            del self._there[oldest]
            self._end(oldest)

    def leave(self, connection: Connection) -> None:
        """It has shown the key, or is gone. Fine if it has made way already."""
        self._there.pop(connection, None)

    def end_all(self) -> None:
        """Nobody may stay."""
        while self._there:
            self._end(self._there.popitem()[0])
