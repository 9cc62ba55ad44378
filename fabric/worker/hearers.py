"""Who of a job's program hears the notice to stop, who waits above them meanwhile, and what those that heard it ended with.

Who can save is told; who only stands above them, a launcher or a shell, is halted until they have ended. Some have ended by
themselves, when the notice comes or after it: then whoever stood above them is let go on for a moment, without a signal, to
end as it would. It may also start the next one that can save, and is halted again before that one goes on.
"""

import signal
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from fabric import context
from fabric.system.processes import is_there, kill
from fabric.worker.stop_notice import Standing, exit_code_of, is_by_signal, lone_launchers, notice_for, parents_of

MOMENT_S: Final = 5.0
"""How long who stood above those that have ended by themselves may take to end, too, from when they had."""


class Listeners(Protocol):
    """The processes that look by themselves whether they should stop."""

    silent_since: float | None
    """Since when none of them is left (`time.monotonic`); None = some are, or there never was one."""
    on_listening: Callable[[int], None]
    """Told of each before it goes on."""

    def listening(self) -> frozenset[int]: ...


class Hearers:
    """Those of one program. Its methods are for one thread, but for `note_listener`."""

    def __init__(self, listeners: Listeners, standing: Callable[[frozenset[int]], list[Standing]]) -> None:
        """`standing` finds the program's processes, of which these listen; its first process is among them while it lives."""
        self._listeners, self._standing = listeners, standing
        self.root = 0
        """The first process."""
        self.halting = threading.Lock()
        """Taken by whoever has halted processes that somebody else could wake."""
        self.halted: frozenset[int] = frozenset()
        self.told: frozenset[int] = frozenset()
        self.launchers: frozenset[int] = frozenset()
        """Who of all these has nothing to do but to start ranks: its exit code is of no interest."""
        self._signalled: frozenset[int] = frozenset()
        self.codes: dict[int, int | None] = {}
        """What those ended with that were told; None = nobody knows."""
        self.is_open = False
        """Whether the notice is under way, and whoever begins to listen is waited for."""
        self.has_trained = False
        """Whether those that could save have ended by themselves, and only what stood above them is left."""
        self._wrappers: frozenset[int] = frozenset()
        self._done_at: float | None = None
        listeners.on_listening = self.note_listener

    def note_listener(self, pid: int) -> None:
        """A process is about to look whether it should stop. If it should, nobody above it goes on when it has ended."""
        above = parents_of(pid, up_to=self.root)
        with self.halting:
            self._wrappers |= above
            if self.is_open and not above & self.told:
                notice = notice_for(self._found(), root=self.root, wrappers=self._wrappers)
                self._halt(notice.halted - self.told)
                self.told |= notice.told & {pid}

    def begin_moment(self) -> None:
        """From here on those that stood above others may end by themselves."""
        self.has_trained = self._have_just_ended()

    def look(self, *, in_moment: bool) -> tuple[frozenset[int], bool]:
        """Find who is to be told, and halt whoever is above. Who of them is to get the signal; and whether somebody may be about
        to end by itself, which is only said, and waited for, in a moment.
        """
        with self.halting:
            found = self._found()
            stood = self._wrappers if in_moment and self._have_just_ended() else frozenset[int]()
            ending = stood | (lone_launchers(found) if in_moment else frozenset())
            notice = notice_for(found, root=self.root, wrappers=ending)
            self._halt(notice.halted - self.told)
            new = notice.told - self.told
            self.has_trained = self.has_trained and new <= self._wrappers
            self.launchers |= notice.launchers | (new if self.has_trained else frozenset())
            self.told |= new
            signalled = notice.signalled if new or not notice.told else frozenset[int]()
            self._signalled |= signalled & self.told
            return signalled, any(each.pid in ending for each in found)

    @property
    def awaited(self) -> frozenset[int]:
        """Who was told and is not known to have ended."""
        return self.told - self.codes.keys()

    @property
    def has_saved(self) -> bool:
        """Whether one of them has said so at its end."""
        return context.EXIT_SAVED in self.codes.values()

    @property
    def are_spoiled(self) -> bool:
        """Whether one has ended otherwise than by itself, by the signal, or as a launcher does."""
        codes = [code for pid, code in self.codes.items() if pid not in self.launchers]
        return any(code not in (None, 0, context.EXIT_SAVED) and not is_by_signal(code) for code in codes)

    def note_ends(self) -> None:
        """Look who has ended, whom nobody waits for while their parents are halted."""
        for pid in self.awaited:
            code = exit_code_of(pid)
            if code is not None or not is_there(pid):
                self.codes[pid] = code

    def wake(self, number: int) -> bool:
        """All have ended that were told: end those that waited for it, or let them go on. Whether these may end by themselves, as
        all that were told have done: then they don't get the signal.
        """
        with self.halting:
            now = {each.pid: each for each in self._found()}
            waking = [now[pid] for pid in self.halted if pid in now]
            self.halted = frozenset()
            if self.has_saved and not any(each.catches and each.pid not in self.launchers for each in waking):
                for pid in now:
                    kill(pid)
                return False
            are_done = not any(code != 0 for code in self.codes.values())
            goes_on = are_done and not self.told & self._signalled
            ends = not goes_on and any(each.catches for each in waking)
            ends = ends or (not self.has_saved and any(self.codes.values()))
            for each in waking:
                if each.catches and not goes_on:
                    kill(each.pid, number)
                elif ends:  # or it goes on as if what it waited for had done what it was to do
                    kill(each.pid, signal.SIGTERM)
                kill(each.pid, signal.SIGCONT)
            self._wrappers |= {each.pid for each in waking}
            self._done_at = time.monotonic() if are_done else None
            return are_done

    def _found(self) -> list[Standing]:
        return self._standing(self._listeners.listening())

    def _halt(self, pids: frozenset[int]) -> None:
        for pid in pids - self.halted:
            kill(pid, signal.SIGSTOP)
        self.halted |= pids

    def _have_just_ended(self) -> bool:
        ends = [at for at in (self._listeners.silent_since, self._done_at) if at is not None]
        return bool(ends) and time.monotonic() < max(ends) + MOMENT_S
