"""Whether a process is as it was before a function ran in it: then its account's next one may run there too."""

import os

from fabric.system.process_state import HooksWatch, ProcessState, left_in, state_now
from fabric.system.threads import Threads, as_many_as, threads_beside, threads_now
from fabric.worker.ray_use import RayUse


class CleanProcess:
    """What is looked for is in `process_state` and `threads`. It begins in the main thread, before any job."""

    def __init__(self) -> None:
        self._ray_use = RayUse()
        self._ray_use.watch()
        self._hooks = HooksWatch()
        self._hooks.watch()
        self._threads: Threads | None = None
        self._state: ProcessState | None = None
        """Before its first job."""

    @property
    def used_ray(self) -> bool:
        """Whether any job in it has started Ray tasks or actors."""
        return self._ray_use.seen

    def before_a_job(self) -> None:
        """Note how things are. May be said before there is one, and again when it comes: what was noted stands as long as there
        are as many threads, for looking at each takes as long as a short job.
        """
        if self._threads is None or not as_many_as(self._threads):
            self._threads = threads_now(self._threads)
        self._state = self._state or state_now()

    def is_as_before(self) -> bool:
        """Whether the job left no thread, no child process, no Ray work and nothing else behind in this process that goes on,
        or holds something, without it.
        """
        if self._threads is None or self._state is None:
            return True
        if self._ray_use.seen or self._hooks.seen or threads_beside(self._threads) or left_in(self._state):
            return False
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return False
