"""Whether the Ray that this process has started ends in the middle of the program's run: noted for whoever judges its end.

A raylet ends with its agents, two Pythons, whatever ends one of them, and of a kill from outside. What the program waits for then
fails, and it with that: no fault of its own (see `ray_start`). So the processes are waited for that its Ray is nothing without; and
when the program fails, or comes to its end, it is looked once more, as a raylet that ends takes a moment, in which Ray knows it to be
dead already. Then its other nodes are looked after, too: what a lease has on other machines is lost to the program in the same way.
"""

import atexit
import os
import select
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from fabric.worker.ray_start import note_end

_BELL: Final = ""
_ASK_S: Final = 5.0
_DOOR_S: Final = 1.0


class RayWatch:
    """Of one Ray, from its start until the program lets it go."""

    def __init__(self, folder: Path, processes: Mapping[str, int], *, knows: Callable[[], bool]) -> None:
        """Begin.

        Args:
            folder: where its sessions are.
            processes: those that it is nothing without, children of this one: what they are, and their ids.
            knows: whether Ray still knows all of its nodes to be alive. Asked only while these run; what it raises says nothing.
        """
        self._folder, self._knows = folder, knows
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._why = ""
        self._is_let_go = False
        self._bell = os.eventfd(0)
        self._names = {self._bell: _BELL}
        for name, pid in processes.items():
            try:
                self._names[os.pidfd_open(pid)] = name
            except ProcessLookupError:  # it has ended, and somebody has waited for it
                self._note(f"its {name} has ended")
        _going.append(self)
        atexit.register(self.let_go)  # before what Ray has registered, which ends these processes
        self._waiting = threading.Thread(target=self._wait, name="fabric-ray-end", daemon=True)
        self._waiting.start()

    def look(self) -> None:
        """Note it if it has ended by itself."""
        if self._owner != os.getpid() or self._is_let_go or self._why:
            return
        if gone := self._gone(wait=False):
            self._note(gone)
            return
        with suppress(Exception):
            if not self._knows():
                self._note("its node, or one of them, is dead to it")

    def let_go(self) -> None:
        """The program ends it, or itself: from now on it may end. That it had before counts for a while."""
        if self._owner != os.getpid() or self._is_let_go:
            return
        self.look()
        with self._lock:
            self._is_let_go = True
            if self._why:
                note_end(self._folder, self._why, is_let_go=True)
        _going.remove(self)
        atexit.unregister(self.let_go)
        os.eventfd_write(self._bell, 1)
        self._waiting.join()
        os.close(self._bell)

    def _wait(self) -> None:
        if gone := self._gone(wait=True):
            self._note(gone)
        for handle in self._names:
            if handle != self._bell:
                os.close(handle)

    def _gone(self, *, wait: bool) -> str:
        """Which of the processes has ended; "" if none has, or nobody wants to know any more."""
        poll = select.poll()
        for handle in self._names:
            poll.register(handle, select.POLLIN)
        ended = [name for handle, _ in poll.poll(None if wait else 0) if (name := self._names.get(handle, _BELL))]
        return f"its {ended[0]} has ended" if ended else ""

    def _note(self, why: str) -> None:
        with self._lock:
            if not self._is_let_go and not self._why:
                self._why = why
                note_end(self._folder, why)


_going: Final[list[RayWatch]] = []


def watch_own(folder: Path) -> RayWatch:
    """Watch the Ray that this process has just started."""
    import ray  # noqa: PLC0415  # whoever judges an end has none
    from ray._private import worker  # noqa: PLC0415
    from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET  # noqa: PLC0415
    from ray._raylet import NodeID  # noqa: PLC0415

    node = worker._global_node  # noqa: SLF001
    store = node.get_gcs_client()
    nodes = [each for each in ray.nodes() if each["Alive"]]
    ids = [NodeID.from_hex(each["NodeID"]) for each in nodes]
    doors = [(each["NodeManagerAddress"], each["NodeManagerPort"]) for each in nodes]
    needed = {"control store": PROCESS_TYPE_GCS_SERVER, "raylet": PROCESS_TYPE_RAYLET}
    return RayWatch(
        folder,
        {name: node.all_processes[kind][0].process.pid for name, kind in needed.items()},
        knows=lambda: (
            False not in store.check_alive(ids, timeout=_ASK_S) and not any(_is_shut(*door) for door in doors)
        ),
    )


def _is_shut(address: str, port: int) -> bool:
    """Whether a raylet isn't there any more, on a machine that is: Ray itself takes a quarter of a minute to see that."""
    try:
        socket.create_connection((address, port), timeout=_DOOR_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # nobody knows
        return False
    return False


def look() -> None:
    """Note it if a Ray that this process has started, and not let go, has ended."""
    for watch in tuple(_going):
        watch.look()
