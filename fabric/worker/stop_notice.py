"""Which processes of a job's program get the notice to stop, and which wait meanwhile.

A program may be one process or a tree: `bash train.sh`, `torchrun`, a pipe into `tee`. Who can save gets the notice: whoever
looks for it through the job's context, and else the outermost that catches the signal and launches no ranks. Whoever starts
all ranks of this machine, the first as well, is a launcher, by whatever name; one that starts all but the first is the first
rank itself. Who only stands above them (a shell,
`make`, a launcher) would pass the signal on too early, die of it, or go on with its next line: it is halted, until those
below have ended. If nobody can save, all get the signal, and it ends them. Knows processes as /proc shows them; Linux only.
"""

import os
import re
import signal
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from fabric.system.processes import all_processes, mark_of, seen_of

SIGNAL_VARIABLE: Final = "FABRIC_STOP_SIGNAL"
"""Which signal a job's program gets as the notice; "" = TERM."""
SIGNALS: Final = ("TERM", "INT", "HUP", "USR1", "USR2")
_SHELL_BASE: Final = 128
_BY_SIGNAL: Final = frozenset(_SHELL_BASE + getattr(signal, f"SIG{name}") for name in SIGNALS)
_SHELLS: Final = frozenset(("bash", "dash", "sh", "zsh", "ksh", "mksh", "ash", "busybox", "fish"))
_LAUNCHERS: Final = frozenset((
    "torchrun", "torch.distributed.run", "torch.distributed.launch", "accelerate", "accelerate.commands.launch",
    "deepspeed", "deepspeed.launcher.launch", "mpirun", "mpiexec", "orterun", "prterun", "horovodrun",
))  # fmt: skip
_RANKS: Final = (
    "RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "HOROVOD_RANK", "SLURM_PROCID",
    "ACCELERATE_PROCESS_INDEX",
)  # fmt: skip
"""By these variables launchers tell a process which rank it is,"""
_WORLD: Final = "WORLD_SIZE"
_WORLD_HERE: Final = "LOCAL_WORLD_SIZE"
_PLACES: Final = (*_RANKS, "GROUP_RANK", "NODE_RANK", "TORCHELASTIC_RUN_ID", _WORLD, _WORLD_HERE)
"""and by these where it is, and how many there are."""
_WORDS_LOOKED_AT: Final = 5
_PROGRAM_WORDS: Final = 2
"""An interpreter and its script: what ranks of one program have in common."""
_DIGITS_MAX: Final = 9
_RAYS_OWN: Final = frozenset(("raylet", "gcs_server"))
_RAYS_WORKERS: Final = ("ray::", "ray-dashboard-")
"""How Ray's processes of Python name themselves, once they can."""
_IN_RAY: Final = re.compile(r"/ray/(_private|dashboard|autoscaler|util/client)/.*\.py$")
_TRAPS: Final = re.compile(r"trap|on-signal|\bsource\b|(^|[;&|\s])\.\s", re.IGNORECASE)
"""What a shell's script has that sets a trap, or may: it reads another one."""
_SCRIPT_BYTES_MAX: Final = 2**20
_EXIT_CODE: Final = 49
"""Where /proc/pid/stat has it, counted from the state on."""


class Standing(NamedTuple):
    """One process of a program."""

    pid: int
    parent: int
    catches: bool = False
    """Whether it has a handler for the signal."""
    listens: bool = False
    """Whether it looks through the job's context whether it should stop."""
    is_shell: bool = False
    """A shell runs its trap only when the command has ended that it waits for."""
    is_launcher: bool = False
    """It starts the ranks that save, ends them all when one has ended, and can't save itself. Known by its name; others are
    known by the places that they give.
    """
    is_ray: bool = False
    """One of Ray's own: it ends at the signal and takes along what runs over it, and saves at most by the context."""
    place: tuple[tuple[str, str], ...] = ()
    """What its environment said of its rank when it was started."""
    words: tuple[str, ...] = ()
    """How its command line begins."""
    environment: int = 0
    """A digest of what it was started with; 0 = not known. A fork has its parent's."""

    @property
    def hears(self) -> bool:
        """Whether it may save at the signal."""
        return self.catches and not self.is_ray

    def launches(self, others: Iterable["Standing"]) -> bool:
        """Whether these, which are below it, are all the ranks that there are here, so that it is none itself."""
        saving = [other for other in others if other.hears or other.listens]
        apart = [other for other in saving if other.place != self.place]
        if self.is_launcher or not apart:
            return self.is_launcher and bool(saving)
        programs = {other.words[:_PROGRAM_WORDS] for other in apart}
        # What has its place is a reader or a helper of its own; or the first rank, which is as the others are.
        alike = [other for other in saving if other.place == self.place and other.words[:_PROGRAM_WORDS] in programs]
        ranks = [*apart, *(other for other in alike if not other.environment or other.environment != self.environment)]
        return _are_all([dict(rank.place) for rank in ranks], above=dict(self.place))


class Notice(NamedTuple):
    """Who gets it."""

    told: frozenset[int]
    """Who can save, by the context or by the signal: what they end with counts."""
    signalled: frozenset[int]
    halted: frozenset[int]
    """Who stands above those that are told."""
    launchers: frozenset[int] = frozenset()
    """Who of all these has nothing to do but to start ranks: its exit code is of no interest."""


def _are_all(ranks: Sequence[Mapping[str, str]], *, above: Mapping[str, str]) -> bool:
    """Whether of the ranks here none is missing, which would be the one above them: by what tells them apart."""
    telling = [name for name in _RANKS if any(rank.get(name) != above.get(name) for rank in ranks)]
    if not telling or any(above.get(name, "0") in {rank.get(name) for rank in ranks} for name in telling):
        return True
    return len({tuple(rank.get(name) for name in telling) for rank in ranks}) >= _world_here(ranks[0], above=above)


def _world_here(rank: Mapping[str, str], *, above: Mapping[str, str]) -> float:
    """How many ranks there are on this machine, by what one of them was told that the one above was not."""
    for name, share in ((_WORLD_HERE, 1), (_WORLD, _number(above.get(_WORLD, "")) or 1)):
        if (said := _number(rank.get(name, ""))) and rank.get(name) != above.get(name):
            return said // share
    return float("inf")


def _number(said: str) -> int:
    return int(said) if said.isdecimal() and len(said) < _DIGITS_MAX else 0


def notice_for(processes: Iterable[Standing], *, root: int, wrappers: Container[int] = ()) -> Notice:
    """Who of a program gets the notice; `root` is its first process. `wrappers` are known to save nothing themselves."""
    by_pid = {process.pid: process for process in processes}
    children: dict[int, list[int]] = {}
    for process in by_pid.values():
        children.setdefault(process.parent if process.parent in by_pid else root, []).append(process.pid)
    children[root] = [pid for pid in children.get(root, ()) if pid != root]
    told: set[int] = set()
    launchers: set[int] = set()
    signalled: set[int] = set()
    halted: set[int] = set()
    waiting = [root] if root in by_pid else children[root]
    while waiting:
        pid = waiting.pop()
        process, below = by_pid[pid], _below(pid, children)
        linked = any(by_pid[each].listens for each in below)
        if process.listens:
            told.add(pid)
            signalled |= {pid} if process.hears else set()
        elif pid not in wrappers and _is_told(process, [by_pid[each] for each in below]):
            told.add(pid)
            signalled |= {pid, *below} if process.is_shell or process.is_launcher else {pid}
            launchers |= {pid} if process.is_launcher else set()
        elif linked or any(by_pid[each].hears and each not in wrappers for each in below):
            halted |= set() if process.is_ray else {pid}
            if not process.is_ray and process.launches(by_pid[each] for each in below):
                launchers.add(pid)
            waiting += children.get(pid, ())
    return Notice(frozenset(told), frozenset(signalled if told else by_pid), frozenset(halted), frozenset(launchers))


def _is_told(process: Standing, below: Sequence[Standing]) -> bool:
    """Whether it is the one to save at the signal, rather than those below it."""
    return process.hears and not any(each.listens for each in below) and not process.launches(below)


def program_of(root: int, *, lease_id: str = "") -> list[int]:
    """The processes of a program of this one's, by number: its first, all that descends from it, is in its session or carries
    the lease's id, and all that descends from those; as far as they descend from this process.
    """
    now = {seen.pid: seen for seen in all_processes()}
    children: dict[int, list[int]] = {}
    for seen in now.values():
        children.setdefault(seen.parent, []).append(seen.pid)
    here = _below(os.getpid(), children)
    starts = [
        pid for pid in here if root in (pid, now[pid].session) or (lease_id and mark_of(now[pid]).lease == lease_id)
    ]
    return sorted({pid for start in starts for pid in (start, *_below(start, children))})


def standing(root: int, *, number: int, listening: frozenset[int], lease_id: str = "") -> list[Standing]:
    """The processes of a program (see `program_of`) as the notice sees them."""
    found = [seen for pid in program_of(root, lease_id=lease_id) if (seen := seen_of(pid)) is not None]
    return [_looked_at(seen.pid, seen.parent, number=number, listens=seen.pid in listening) for seen in found]


def parents_of(pid: int, *, up_to: int) -> frozenset[int]:
    """Those above a process, up to a program's first, or to this process if it is not below that."""
    found, seen = set[int](), seen_of(pid)
    while seen is not None and seen.pid != up_to and seen.parent not in {0, 1, os.getpid()}:
        found.add(seen.parent)
        seen = seen_of(seen.parent)
    return frozenset(found)


def lone_launchers(processes: Iterable[Standing]) -> frozenset[int]:
    """Launchers with nobody below them: their ranks have all ended, or are still to be started."""
    standing_ = list(processes)
    parents = {each.parent for each in standing_}
    return frozenset(each.pid for each in standing_ if each.is_launcher and each.pid not in parents)


def shell_code(code: int) -> int:
    """An exit code as a shell tells it: 128 and the number of a signal that ended it."""
    return _SHELL_BASE - code if code < 0 else code


def is_by_signal(code: int) -> bool:
    """Whether it is that of what was ended by one of the notice's signals: as Popen tells it, or a shell."""
    return shell_code(code) in _BY_SIGNAL


def exit_code_of(pid: int) -> int | None:
    """How a process ended that nobody has waited for yet: as Popen tells it; None if it lives, or is gone for good."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            return os.waitstatus_to_exitcode(int(fields[_EXIT_CODE]))
    return None


def signal_number(name: str) -> int:
    """The signal of a name such as USR1 or SIGUSR1; SIGTERM for one that is none of `SIGNALS`."""
    short = name.upper().removeprefix("SIG")
    return int(getattr(signal, f"SIG{short}")) if short in SIGNALS else int(signal.SIGTERM)


def _below(pid: int, children: Mapping[int, Sequence[int]]) -> set[int]:
    found: set[int] = set()
    waiting = list(children.get(pid, ()))
    while waiting:
        below = waiting.pop()
        if below not in found and below != pid:
            found.add(below)
            waiting += children.get(below, ())
    return found


def _looked_at(pid: int, parent: int, *, number: int, listens: bool) -> Standing:
    caught, all_words = 0, list[str]()
    with suppress(OSError, ValueError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = int(next((line for line in lines if line.startswith("SigCgt:")), "- 0").split()[1], 16)
        all_words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    words = all_words[:_WORDS_LOOKED_AT]
    names = {word.rpartition("/")[2] for word in words}
    catches = bool(caught >> (number - 1) & 1)
    is_shell = bool(words) and words[0].rpartition("/")[2].lstrip("-") in _SHELLS
    if catches and is_shell and number == signal.SIGINT:
        catches = _may_trap(pid, all_words)
    place, environment = _started_with(pid)
    return Standing(
        pid=pid,
        place=place,
        words=tuple(words),
        environment=environment,
        parent=parent,
        catches=catches,
        listens=listens,
        is_shell=is_shell,
        is_launcher=not _LAUNCHERS.isdisjoint(names),
        is_ray=is_rays(words),
    )


def _may_trap(pid: int, words: Sequence[str]) -> bool:
    """Whether a shell that catches the interrupt has a trap for it: each has a handler of its own while it waits for a command,
    and goes on with its next line. By its script, which is among its words or a file that they name; True if it is neither.
    """
    options = [word for word in words[1:] if word.startswith("-") and not word.startswith("--")]
    if any("c" in option for option in options):
        return bool(_TRAPS.search("\n".join(words[1:])))
    for word in words[1:_WORDS_LOOKED_AT]:
        with suppress(OSError, ValueError):
            file = Path(f"/proc/{pid}/cwd") / word
            if word and file.is_file():
                with file.open("rb") as script:
                    return bool(_TRAPS.search(script.read(_SCRIPT_BYTES_MAX).decode(errors="replace")))
    return True


def is_rays(words: Sequence[str]) -> bool:
    """Whether a process with this command line is one of Ray's own: of its control store, its nodes, its workers."""
    first = words[0] if words else ""
    name = first.rpartition("/")[2]
    return name in _RAYS_OWN or first.startswith(_RAYS_WORKERS) or any(_IN_RAY.search(word) for word in words)


def _started_with(pid: int) -> tuple[tuple[tuple[str, str], ...], int]:
    """Its place, and a digest of its environment."""
    with suppress(OSError):
        data = Path(f"/proc/{pid}/environ").read_bytes()
        found = dict(variable.partition("=")[::2] for variable in data.decode(errors="replace").split("\0"))
        return tuple((name, found[name]) for name in _PLACES if name in found), hash(data)
    return (), 0
