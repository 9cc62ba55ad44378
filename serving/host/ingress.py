"""The ingress: one HAProxy process before all gateways of a host, started, told, and watched as the host's child.

    clients ──TLS──▸ HAProxy (the one public address) ──loopback──▸ gateway processes ──▸ the replica that a gateway chose

Ray Serve's own HAProxy would stand between a gateway and the replicas instead. It can't: a gateway chooses the replica,
by where the prompt's beginning is cached and whose turn it is, and a proxy that chooses again would undo it and add two
or three milliseconds to each first token. What the kernel does when gateways share a port by SO_REUSEPORT is less than
an ingress: it deals connections out by chance, to a process that hangs too, and closes what waits at one that ends.
HAProxy sends a key's requests to one gateway while that one isn't busier than the others, so that rates and turns are
counted in one place; it notices a gateway that is gone at its next connection and one that hangs in seconds; it waits
through a restart; it takes a renewed certificate, and ends, without cutting a stream; it holds slow clients and crowds
off; it speaks HTTP/2.

It knows no gateway by itself: whoever runs them says where each one is. A stream ends with its gateway all the same, and
its client hears so at once. Without one, `ingress: none`, gateways share the port as before.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

import structlog

from fabric.daemon.serving_host import ingress_file, tied
from fabric.errors import Unavailable
from serving.host.haproxy import Frontend, binary, configuration, put_in, take_out

START_S: Final = 15.0
LOOK_S: Final = 30.0
"""How often the certificate's files are looked at."""
PAUSE_S: Final = 0.5
"""Before an ingress that ended is started again."""
_SPARE_FILES: Final = 256
_LINES_KEPT: Final = 10
_LAST_LINES_S: Final = 2.0
_POLL_S: Final = 0.02
_LOOKS: Final = 50
_SIGNALS: Final = 10

_log = structlog.get_logger("ingress")


class Ingress:
    """One HAProxy. Use it as a context; within, `stands` and `falls` say where gateways are.

    Args:
        front: as it should be; its `socket` and `certificate` are filled in here.
        place: the fabric's state directory.
        certificate: the files of the certificate and its key; None = plain HTTP.
        gateways: how many there may be.
    """

    def __init__(
        self,
        front: Frontend,
        *,
        place: Path,
        certificate: tuple[Path, Path] | None,
        gateways: int,
        look_s: float = LOOK_S,
    ) -> None:
        self._file = ingress_file(place)
        self._front = replace(front, connections=min(front.connections, _connections_max()))
        self._certificate = certificate
        self._addresses = [""] * gateways
        self._look_s = look_s
        self._binary = Path()
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._seen: tuple[bytes, ...] = ()

    async def __aenter__(self) -> Self:
        """Start it, and keep it up.

        Raises:
            Unavailable: `no_haproxy`, or `no_ingress` with HAProxy's own last lines: the address is taken, for one.
        """
        self._binary = binary()
        # A Unix socket's path may have about a hundred characters, which a state directory's may be beyond.
        folder = Path(tempfile.mkdtemp(prefix="fabric-ingress-"))
        pem = None if self._certificate is None else self._file.with_suffix(".pem")
        self._front = replace(self._front, socket=folder / "orders", certificate=pem)
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))
        await self._end()

    async def stands(self, number: int, address: str) -> None:
        """Gateway `number` answers at `host:port`."""
        self._addresses[number] = address
        await self._told(put_in(number, address))

    async def falls(self, number: int) -> None:
        """Gateway `number` is gone: nobody is sent there."""
        self._addresses[number] = ""
        await self._told(take_out(number))

    async def reload(self) -> None:
        """Begin anew with the files as they are now. What goes on is finished by the old worker; no connection is cut.

        Raises:
            Unavailable: `no_ingress`: HAProxy doesn't take the files, and goes on with the old ones.
        """
        await asyncio.to_thread(self._write)
        await self._check()
        old = await self._told_by("Pid")
        await self._signal(signal.SIGUSR2, lambda pid: pid not in {"", old}, says="Pid")

    async def drain(self) -> None:
        """Take no more connections; those that are there may finish. It isn't started again."""
        if self._keeping is not None:
            self._keeping.cancel()
        await self._signal(signal.SIGUSR1, lambda stopping: stopping in {"", "1"}, says="Stopping")

    async def _signal(self, number: signal.Signals, is_done: Callable[[str], bool], *, says: str) -> None:
        """Tell the master, again until it shows: one that has only just started may not hear."""
        for _ in range(_SIGNALS):
            if self._process is None or self._process.returncode is not None:
                return
            self._process.send_signal(number)
            for _ in range(_LOOKS):
                if is_done(await self._told_by(says)):
                    return
                await asyncio.sleep(_POLL_S)
        _log.warning("ingress_does_not_hear", signal=number.name)

    async def _told_by(self, name: str) -> str:
        """One of the things that the worker says of itself; "" while there is none."""
        with contextlib.suppress(OSError, TimeoutError):
            lines = (await self.ask("show info")).splitlines()
            return next((line.partition(": ")[2] for line in lines if line.startswith(f"{name}: ")), "")
        return ""

    async def ask(self, order: str) -> str:
        """Give the worker an order; its answer.

        Raises:
            OSError: it can't be reached.
        """
        reader, writer = await asyncio.open_unix_connection(str(self._front.socket))
        try:
            writer.write(f"{order}\n".encode())
            return (await asyncio.wait_for(reader.read(), START_S)).decode(errors="replace").strip()
        finally:
            writer.close()

    async def _told(self, order: str) -> None:
        """Say it to the worker that runs; the next one reads it in its configuration."""
        with _said():
            await asyncio.to_thread(self._write)
        with contextlib.suppress(OSError, TimeoutError):
            if answer := await self.ask(order):
                _log.info("told", order=order, answer=answer)

    async def _keep(self) -> None:
        """Start it again whenever it ends; have it read its certificate again whenever that is another."""
        while True:
            assert self._process is not None
            try:
                code = await asyncio.wait_for(self._process.wait(), self._look_s)
            except TimeoutError:
                await self._look()
                continue
            _log.warning("ingress_ended", code=code, said=list(self._lines))
            await asyncio.sleep(PAUSE_S)
            with _said():
                await self._start()

    async def _look(self) -> None:
        """Take a certificate that was renewed."""
        if await asyncio.to_thread(self._read_certificate) != self._seen:
            with _said():
                await self.reload()
                _log.info("certificate_renewed")

    async def _start(self) -> None:
        await asyncio.to_thread(self._write)
        await self._check()
        self._process = await asyncio.create_subprocess_exec(
            *tied([str(self._binary), "-W", "-f", str(self._file)]),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read(self._process))
        deadline = asyncio.get_running_loop().time() + START_S
        while True:
            with contextlib.suppress(OSError):
                await self.ask("show info")
                return
            if self._process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                await self._kill()
                raise _not_up("\n".join(self._lines))
            await asyncio.sleep(_POLL_S)

    async def _check(self) -> None:
        """Have HAProxy look at its configuration."""
        looked = await asyncio.create_subprocess_exec(
            str(self._binary), "-c", "-f", str(self._file),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await looked.communicate()
        if looked.returncode:
            raise _not_up(said.decode(errors="replace"))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            self._lines.append(line.decode(errors="replace").rstrip())
            _log.info("haproxy", said=self._lines[-1])

    def _write(self) -> None:
        """The configuration and the certificate, whole or not at all, and nobody else's to read."""
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._front.certificate is not None:
            self._seen = self._read_certificate()
            _written(self._front.certificate, b"\n".join(self._seen))
        _written(self._file, configuration(self._front, self._addresses).encode())

    def _read_certificate(self) -> tuple[bytes, ...]:
        with contextlib.suppress(OSError):  # just being replaced: what was read last is still good
            return tuple(file.read_bytes() for file in self._certificate or ())
        return self._seen

    async def _end(self) -> None:
        await self._kill()
        if self._reading is not None:
            await asyncio.wait((self._reading,), timeout=_LAST_LINES_S)
            self._reading.cancel()
        await asyncio.to_thread(shutil.rmtree, self._front.socket.parent, ignore_errors=True)

    async def _kill(self) -> None:
        """What should have finished has, by now."""
        process = self._process
        for number in (*[signal.SIGTERM] * _SIGNALS, signal.SIGKILL):  # one that has only just started may not hear
            if process is None or process.returncode is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 1.0)


def _connections_max() -> int:
    """As many as this process' limit of open files allows; each is two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**20 if hard == resource.RLIM_INFINITY else max(1, (hard - _SPARE_FILES) // 2)


def _written(file: Path, data: bytes) -> None:
    fresh = file.with_name(f"{file.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)
    fresh.replace(file)


def _not_up(said: str) -> Unavailable:
    lines = [line for line in said.splitlines() if line.strip()][-_LINES_KEPT:]
    return Unavailable(
        "the ingress does not come up: HAProxy says " + ("\n".join(lines) or "nothing"), code="no_ingress"
    )


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """What keeps it from coming up may pass: it is tried again."""
    try:
        yield
    except Unavailable as error:
        _log.warning("ingress", code=error.code, error=error.message)
    except OSError as error:
        _log.warning("ingress", error=str(error))
