"""A stand-in for a network between two programs: passes bytes on over TCP, or lets them vanish, come late, or break off.

It listens on loopback in a thread of its own, so that programs of this process and of others can be cut off at any instant.
"""

import asyncio
import threading
from contextlib import suppress

CHUNK = 65_536
DRIP_BYTES = 7
DRIP_S = 0.05


class Relay:
    """One address that leads to another.

    `how` says what becomes of bytes: "open" passes them on; "silent" lets them vanish, and new connections get no answer;
    "reset" breaks connections off; "late" passes each piece on after `late_s`; "drip" passes a few bytes at a time.
    """

    def __init__(self, port, *, host="127.0.0.1"):
        self.to = (host, port)
        self.how, self.late_s = "open", 0.0
        self.connections = 0
        """So many were made."""
        self.swallowed = 0
        """So many bytes have vanished."""
        self._lines = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._began = threading.Event()
        self._thread.start()
        assert self._began.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def cut(self, how="silent", *, late_s=0.0):
        """From now on; what is under way is lost with its connection, as it is where a firewall forgets it."""
        self.late_s = late_s
        self._loop.call_soon_threadsafe(self._cut, how)

    def mend(self):
        """Pass on what comes from now on. Connections over which anything has vanished stay silent for ever."""
        self._loop.call_soon_threadsafe(self._set, "open")

    def close(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    def _set(self, how):
        self.how = how

    def _cut(self, how):
        self.how = how
        if how == "reset":
            for writer in self._lines:
                writer.transport.abort()

    def _run(self):
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._take, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._began.set()
        self._loop.run_forever()
        server.close()
        for writer in self._lines:
            writer.transport.abort()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _take(self, reader, writer):
        self.connections += 1
        if self.how == "reset":
            writer.transport.abort()
            return
        self._lines.add(writer)
        there = None
        try:
            if self.how == "silent":
                await asyncio.Event().wait()
            from_there, there = await asyncio.open_connection(*self.to)
            self._lines.add(there)
            await asyncio.gather(self._pass(reader, there), self._pass(from_there, writer))
        except OSError:
            pass
        finally:
            for each in (writer, there):
                if each is not None:
                    self._lines.discard(each)
                    each.transport.abort()

    async def _pass(self, reader, writer):
        while data := await reader.read(CHUNK):
            if self.how == "silent":
                self.swallowed += len(data)
                await asyncio.Event().wait()
            if self.how == "late":
                await asyncio.sleep(self.late_s)
            for start in range(0, len(data), step := DRIP_BYTES if self.how == "drip" else CHUNK):
                writer.write(data[start : start + step])
                with suppress(ConnectionError):
                    await writer.drain()
                if self.how == "drip":
                    await asyncio.sleep(DRIP_S)
        with suppress(OSError, RuntimeError):
            writer.write_eof()
