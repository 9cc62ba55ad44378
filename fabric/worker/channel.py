"""A line from the gate to a runner: one question out, one answer back, in a tenth of the time of a call over Ray.

It carries bytes and knows nothing of what they say. It is a short cut and never the only way: it may be missing (Ray's
own connections are encrypted and this one is not, a firewall, a gate that has restarted) and it may break, and then the
same is asked over Ray, which also knows why a process or a node is gone. Whoever calls shows the key that the runner told
the gate over Ray: the tenants' code shares the network.
"""

import asyncio
import hmac
import os
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Self

import msgspec

from fabric.system.strangers import Strangers

BYTES_MAX: Final = 4 * 2**20
"""Of a question or an answer."""
OPEN_S: Final = 2.0
KEY_BYTES: Final = 32
STRANGERS_MAX: Final = 64
"""Connections that haven't shown the key: the oldest makes way, and the gate shows it at once."""
_LENGTH_BYTES: Final = 4

Answer = Callable[[bytes], Awaitable[bytes]]


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a runner listens, and what it wants to hear first."""

    host: str
    port: int
    key: bytes

    def __repr__(self) -> str:
        return f"Address({self.host}:{self.port})"


class Broken(Exception):
    """The line is gone, or says what it shouldn't: ask over Ray."""


class Line:
    """The gate's end: one question at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._asking = False

    @classmethod
    async def open(cls, address: Address | None) -> Self | None:
        """A line to that address; None if there is none, or it can't be reached soon."""
        if address is None:
            return None
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(OPEN_S):
                reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(address.key)
            return cls(reader, writer)
        return None

    @property
    def is_free(self) -> bool:
        return not (self._asking or self._writer.is_closing())

    def ask(self, question: bytes) -> "asyncio.Task[bytes]":
        """Send the question, at once, and wait for the answer. Given up half-way, the line is closed: nobody could tell
        whose the next answer is. Instead of an answer there may be `Broken`.
        """
        assert self.is_free, "a line carries one question at a time"
        self._asking = True
        self._writer.write(_framed(question))
        return asyncio.create_task(self._heard())

    def close(self) -> None:
        self._writer.close()

    async def _heard(self) -> bytes:
        try:
            answer = await _read(self._reader)
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise Broken(str(error)) from error
        except BaseException:
            self.close()
            raise
        else:
            return answer
        finally:
            self._asking = False


class Listener:
    """The runner's end. Answers whoever knows its key, one question after the other on each line."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._key = secrets.token_bytes(KEY_BYTES)
        self._server: asyncio.Server | None = None
        self._strangers = Strangers[asyncio.StreamWriter](STRANGERS_MAX, end=lambda writer: writer.transport.abort())

    async def address(self, host: str) -> Address | None:
        """Where it listens, from the first time it is asked; None where it may not or can't."""
        if os.environ.get("RAY_USE_TLS", "0") == "1":
            return None
        if self._server is None:
            with suppress(OSError):
                self._server = await asyncio.start_server(self._serve, host, 0)
        if self._server is None:
            return None
        return Address(host=host, port=self._server.sockets[0].getsockname()[1], key=self._key)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._strangers.come(writer)
        try:
            async with asyncio.timeout(OPEN_S):
                shown = await reader.readexactly(KEY_BYTES)
            if hmac.compare_digest(shown, self._key):
                self._strangers.leave(writer)
            while hmac.compare_digest(shown, self._key):
                writer.write(_framed(await self._answer(await _read(reader))))
        except (OSError, EOFError, ValueError):
            pass  # the other end hears that the line is gone, and asks over Ray
        finally:
            self._strangers.leave(writer)
            writer.close()


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(_LENGTH_BYTES, "big") + message


async def _read(reader: asyncio.StreamReader) -> bytes:
    size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    if size > BYTES_MAX:
        raise ValueError(f"{size} bytes are announced, at most {BYTES_MAX} may come")
    return await reader.readexactly(size)
