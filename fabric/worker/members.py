"""Which processes of a machine are a lease's: also those that have left it.

A job's process may leave its parents (fork twice, the subreaper switched off), its session, its group, its files, its
environment and its arguments. So a lease's runners are marked, before they run anything of a tenant's, in ways that are
handed down to whatever they start and that none of this takes away:

- a **control group** of their own, where the machine has cgroups v2 and lets us make one: the kernel's own list;
- a pair of **limits** with a number that no other runner has. They limit nothing of use (the real-time budget of a process
  that never is real-time, and one that the kernel doesn't know any more), every child inherits them over fork and exec,
  and only a privileged process could raise one again. Anybody may lower one, but their sum is fixed: so nobody comes by
  another's number, and who has broken the pair is known for that;
- the lease's **mark** in the environment that a process was started with.

And all processes are looked at once a tick, and it is remembered who was seen below whom and who began which session. A
process belongs to the lease that has the strongest claim: the mark, which any process can forge for what it starts, is the
weakest, so that nobody is charged for what another's job has marked as theirs. Linux only; knows no Ray.
"""

import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from fabric.system.processes import NO_LEASE_YET, Identity, Seen, all_processes, mark_of, seen_of
from fabric.worker.strays import Stray
from fabric.worker.traces import BROKEN, has_tag, tag_of, trace_of, traced

_GROUP_PREFIX: Final = "fabric-"
_TRACES_MAX: Final = 50_000
_ENDED_MAX: Final = 10_000
_GONE_MAX: Final = 20_000
_CLOCKS_S: Final = 10.0
"""So far may the clocks of two machines be apart."""


@dataclass(frozen=True, slots=True)
class Container:
    """What a runner was put into: what comes from it is found by this."""

    trace: int
    """The number of its limits; 0 = it could not be given one."""
    group: Path | None
    """Its control group; None = it could not be given one."""


@dataclass(slots=True)
class _Family:
    marks: set[str] = field(default_factory=set)
    roots: set[Identity] = field(default_factory=set)
    seen: set[Identity] = field(default_factory=set)
    sessions: set[int] = field(default_factory=set)


class Members:
    """The leases of one machine, and their processes. Any thread may ask."""

    def __init__(self, *, groups_at: Path | None = None, fabric: str = "", machine: str = "") -> None:
        """Nothing is followed yet.

        Args:
            groups_at: where control groups are made; None = where this process is, if that can be.
            fabric: whose leases' marks are ours; "" = nobody's.
            machine: its address: a fabric may have several agents where nodes are simulated.
        """
        self._fabric, self._tag = fabric, tag_of(fabric or secrets.token_hex(), machine)
        self._groups_at = groups_at if groups_at is not None else own_group()
        self._families: dict[str, _Family] = {}
        self._containers: dict[Identity, Container] = {}
        self._traces: dict[Identity, int] = {}
        self._ended: dict[int | str, None] = {}
        """Traces and marks of what was followed, the newest last: what still carries one has outlived its lease."""
        self._gone: dict[int, tuple[float, float]] = {}
        """By pid, the newest last: when a lease's process had started, and when it was no longer there. Seconds of the epoch."""
        self._lock = threading.Lock()
        for group in self._groups_at.glob(f"{_GROUP_PREFIX}*-*") if self._groups_at is not None else ():
            tag, *runner = group.name.removeprefix(_GROUP_PREFIX).split("-")
            is_ours = tag == _word(self._tag)
            # An agent that was killed has left it: one with somebody in it stays. Those of a former release have no tag.
            if (is_ours or len(runner) == 1) and not _removed(group) and is_ours:
                self._know(Identity(*map(int, runner)), group)

    def follow(self, lease_id: str, roots: Sequence[int], *, marks: Sequence[str] = ()) -> None:
        """From now on: the roots, contained the first time they are followed, and what carries the lease's id or a mark."""
        with self._lock:
            family = self._families.setdefault(lease_id, _Family())
            family.marks |= {lease_id, *marks}
            for mark in family.marks:
                self._ended.pop(mark, None)
            for seen in filter(None, map(seen_of, roots)):
                family.roots.add(seen.identity)
                if seen.identity not in self._containers and seen.pid != os.getpid():
                    self._contain(seen.identity)

    def contain(self, pids: Iterable[int]) -> None:
        """Find what comes of a process that may start nothing: all of it is strays."""
        with self._lock:
            for seen in filter(None, map(seen_of, pids)):
                if seen.identity not in self._containers and seen.pid != os.getpid():
                    self._contain(seen.identity)

    def of(self, lease_id: str) -> list[int]:
        """Its living processes, by number; [] of one that isn't followed."""
        return self.all().get(lease_id, [])

    def all(self) -> dict[str, list[int]]:
        """The same of all leases, by one look."""
        with self._lock:
            return self._given_out(_now())

    def had(self, asked: Mapping[int, float]) -> list[int]:
        """Which of these processes, that were there at that time, by seconds of the epoch, were a lease's; gone by now or not."""
        with self._lock:
            there = {
                identity.pid: identity for family in self._families.values() for identity in family.seen | family.roots
            }
            found = []
            for pid, at_s in asked.items():
                spans = [self._gone[pid]] if pid in self._gone else []
                if pid in there:
                    spans.append((there[pid].started_at_s, time.time()))
                if any(began_s - _CLOCKS_S <= at_s <= ended_s + _CLOCKS_S for began_s, ended_s in spans):
                    found.append(pid)
            return found

    def forget(self, lease_id: str) -> None:
        """No longer. What is contained stays so while its root lives: it may serve another lease."""
        with self._lock:
            family = self._families.pop(lease_id, None)
            self._note_gone(family.seen if family is not None else ())
            for mark in family.marks if family is not None else ():
                self._end(mark)

    def strays(self, runners: Iterable[int]) -> list[Stray]:
        """What came from a runner of ours, or carries a mark of our fabric or of a lease that was, and belongs to no lease that
        is followed, nor is a runner that waits for one. Whether that has outlived its lease, the gate says (`strays`).

        Args:
            runners: all that live here by the gate's word, by number: an agent before this one may have contained them.
        """
        with self._lock:
            now = _now()
            for seen in (now[pid] for pid in runners if pid in now):
                if seen.identity not in self._containers and has_tag(self._trace_of(seen), self._tag):
                    self._know(seen.identity, _group_for(self._groups_at, seen.identity, self._tag))
            living = {seen.identity for seen in now.values()}
            self._clear_away(living)
            claimed = {pid for pids in self._given_out(now).values() for pid in pids}
            roots = {identity: identity.pid if identity in living else 0 for identity in self._containers}
            spared = {*roots.values(), os.getpid()}
            by_trace = {self._containers[identity].trace: root for identity, root in roots.items()}
            grouped = {
                pid: root for identity, root in roots.items() for pid in _in_group(self._containers[identity].group)
            }
            found = (
                self._stray(seen, now, by_trace=by_trace, grouped=grouped)
                for pid, seen in now.items()
                if pid not in claimed | spared
            )
            return [stray for stray in found if stray is not None]

    def _stray(
        self, seen: Seen, now: Mapping[int, Seen], *, by_trace: Mapping[int, int], grouped: Mapping[int, int]
    ) -> Stray | None:
        """One process that no lease has, by what it is known for ours."""
        trace, mark = self._trace_of(seen), mark_of(seen)
        is_ours = mark.lease.strip(NO_LEASE_YET) and (mark.fabric == self._fabric != "" or mark.lease in self._ended)
        said = mark.lease if is_ours else ""
        found = Stray(pid=seen.pid, started_at=seen.started_at)
        if root := grouped.get(seen.pid, by_trace.get(trace, 0) if trace > 0 else 0):
            return msgspec.structs.replace(found, mark=said, root=root)
        is_traced = trace > 0 and (trace in self._ended or trace in by_trace or has_tag(trace, self._tag))
        if seen.pid in grouped or is_traced:
            return found
        return msgspec.structs.replace(found, mark=said) if said or self._has_broken_out(seen, now) else None

    def _has_broken_out(self, seen: Seen, now: Mapping[int, Seen]) -> bool:
        """Whether it has lowered a limit of some runner's, and left whatever was below that runner. One that stayed is the
        affair of whoever follows the runner, which may be another agent.
        """
        if self._trace_of(seen) != BROKEN:
            return False
        above = now.get(seen.parent)
        while above is not None:
            if self._trace_of(above) > 0:
                return False
            above = now.get(above.parent)
        return True

    def _clear_away(self, living: set[Identity]) -> None:
        """Forget runners that are gone."""
        for identity in [identity for identity in self._containers if identity not in living]:
            container = self._containers[identity]
            if container.group is None or _removed(container.group):
                del self._containers[identity]
                if container.trace:
                    self._end(container.trace)
        self._traces = {identity: trace for identity, trace in self._traces.items() if identity in living}

    def _end(self, known_by: int | str) -> None:
        self._ended[known_by] = None
        while len(self._ended) > _ENDED_MAX:
            del self._ended[next(iter(self._ended))]

    def _note_gone(self, identities: Iterable[Identity]) -> None:
        for identity in identities:
            self._gone.pop(identity.pid, None)
            self._gone[identity.pid] = (identity.started_at_s, time.time())
        while len(self._gone) > _GONE_MAX:
            del self._gone[next(iter(self._gone))]

    def _know(self, identity: Identity, group: Path | None) -> None:
        """A runner that another agent has contained."""
        seen = seen_of(identity.pid)
        lives = seen is not None and seen.identity == identity
        self._containers[identity] = Container(max(trace_of(identity.pid), 0) if lives else 0, group)

    def _contain(self, identity: Identity) -> None:
        trace = traced(identity.pid, self._tag)
        self._containers[identity] = Container(trace, _grouped(self._groups_at, identity, self._tag))
        self._traces[identity] = trace
        self._ended.pop(trace, None)

    def _given_out(self, now: dict[int, Seen]) -> dict[str, list[int]]:
        """Every process, to the lease with the strongest claim."""
        children: dict[int, list[int]] = {}
        for seen in now.values():
            children.setdefault(seen.parent, []).append(seen.pid)
        certain = self._certain(now)
        claims: dict[int, str] = {}

        def claim(pids: Iterable[tuple[int, str]]) -> None:
            waiting = [(pid, lease_id) for pid, lease_id in pids if pid not in claims]
            while waiting:
                pid, lease_id = waiting.pop()
                if claims.setdefault(pid, lease_id) == lease_id:
                    below = (child for child in children.get(pid, ()) if child not in claims and child not in certain)
                    waiting += [(child, lease_id) for child in below]

        claim(certain.items())
        sessions = {session: lease_id for lease_id, family in self._families.items() for session in family.sessions}
        claim([(pid, sessions[seen.session]) for pid, seen in now.items() if seen.session in sessions])
        marks = {mark: lease_id for lease_id, family in self._families.items() for mark in family.marks}
        by_mark = ((pid, mark_of(seen).lease) for pid, seen in now.items() if pid not in claims)
        claim([(pid, marks[mark]) for pid, mark in by_mark if mark in marks])
        claims.pop(os.getpid(), None)
        self._remember(claims, now)
        found: dict[str, list[int]] = {lease_id: [] for lease_id in self._families}
        for pid, lease_id in sorted(claims.items()):
            found[lease_id].append(pid)
        return found

    def _certain(self, now: dict[int, Seen]) -> dict[int, str]:
        """By what a process can't shake off: it is a root, was seen before, or is in the container of a root."""
        roots: dict[Identity, str] = {}
        seen_before: dict[Identity, str] = {}
        traces: dict[int, str] = {}
        found: dict[int, str] = {}
        for lease_id, family in self._families.items():
            roots.update(dict.fromkeys(family.roots, lease_id))
            seen_before.update(dict.fromkeys(family.seen, lease_id))
            for container in (self._containers[root] for root in family.roots if root in self._containers):
                traces[container.trace] = lease_id
                found.update({pid: lease_id for pid in _in_group(container.group) if pid in now})
        traces.pop(0, None)
        for pid, seen in now.items():
            by = roots.get(seen.identity) or found.get(pid) or traces.get(self._trace_of(seen))
            if lease_id := by or seen_before.get(seen.identity, ""):
                found[pid] = lease_id
        return found

    def _remember(self, claims: Mapping[int, str], now: dict[int, Seen]) -> None:
        sessions = {seen.session for seen in now.values()}
        for family in self._families.values():
            self._note_gone(identity for identity in family.seen if identity.pid not in now)
            family.seen = set()
            family.sessions &= sessions
        for pid, lease_id in claims.items():
            seen, family = now[pid], self._families[lease_id]
            if seen.identity not in family.roots:
                family.seen.add(seen.identity)
                if seen.session == pid:
                    family.sessions.add(pid)

    def _trace_of(self, seen: Seen) -> int:
        """Read once: it is inherited, and what becomes of it later is the process' own doing."""
        if seen.identity not in self._traces:
            if len(self._traces) > _TRACES_MAX:
                self._traces.clear()
            self._traces[seen.identity] = trace_of(seen.pid)
        return self._traces[seen.identity]


def _now() -> dict[int, Seen]:
    return {seen.pid: seen for seen in all_processes()}


def own_group(pid: int | None = None) -> Path | None:
    """The control group (v2) of this process or another, as a folder; None where there is none."""
    with suppress(OSError, StopIteration, IndexError):
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        mounted = next(words[4] for words in mounts if words[words.index("-") + 1] == "cgroup2")
        lines = Path(f"/proc/{pid or 'self'}/cgroup").read_text().splitlines()
        inside = next(line[3:] for line in lines if line.startswith("0::"))
        folder = Path(mounted) / inside.lstrip("/")
        return folder if os.access(folder, os.W_OK) else None
    return None


def group_of(pid: int) -> str:
    """The control group of ours that a process is in; "" = none."""
    folder = own_group(pid)
    return str(folder) if folder is not None and _GROUP_PREFIX in str(folder) else ""


def join_group(group: str) -> None:
    """Put this process, and all that comes of it, into a control group. Fine if that can't be."""
    if group:
        with suppress(OSError):
            (Path(group) / "cgroup.procs").write_text(str(os.getpid()))


def _group_for(where: Path | None, identity: Identity, tag: int) -> Path | None:
    """What a process' own group is called, there or not; None = it can't have one."""
    if where is None:
        return None
    if where.name.startswith(_GROUP_PREFIX):
        where = where.parent
    return where / f"{_GROUP_PREFIX}{_word(tag)}-{identity.pid}-{identity.started_at}"


def _word(tag: int) -> str:
    return f"{tag:07x}"


def _grouped(where: Path | None, identity: Identity, tag: int) -> Path | None:
    """Put a process into a group of its own."""
    if (group := _group_for(where, identity, tag)) is None:
        return None
    with suppress(OSError):
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text(str(identity.pid))
        return group
    return None


def _in_group(group: Path | None) -> Iterator[int]:
    """Who is in it, or in one that was made within it."""
    if group is None:
        return
    for folder in (group, *(path.parent for path in group.rglob("cgroup.procs"))):
        with suppress(OSError, ValueError):
            yield from map(int, (folder / "cgroup.procs").read_text().split())


def _removed(group: Path) -> bool:
    """Whether an empty group is gone; one with somebody in it stays."""
    try:
        for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
