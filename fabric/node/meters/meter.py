"""The port of meters, and the meter of everything that has a gauge.

A gauge reads its devices' own utilisation; `GaugeMeter` integrates it at several hertz, so that short bursts between two
reads count. What can't be read counts as in use, and as estimated. Nothing here knows prices, leases' owners or Ray.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import structlog

_PERCENT: Final = 100
LOOK_AGAIN_S: Final = 10.0
_log = structlog.get_logger(__name__)


class Meter(Protocol):
    """Counts device time in use. One lease may be read by one caller only."""

    def attach(self, lease_id: str, *, devices: Sequence[str], roots: Sequence[int], shared: bool = False) -> None:
        """Begin: `devices` as the node numbers them, `roots` the processes the lease's work descends from. Of devices that are
        `shared` with others only what its own processes use counts.
        """

    def read(self, lease_id: str, *, members: Sequence[int] | None = None) -> int:
        """Device-µs in use since `attach` or the last `read`; 0 for a lease that isn't attached.

        `members` are the lease's processes, where the caller has looked for them a moment ago.
        """

    def is_estimated(self, lease_id: str) -> bool:
        """Whether a device could not be read for some of the time that `read` told of last: it counts as in use then."""

    def readable(self, devices: Sequence[str] | None = None) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Of these devices, or of all, those that can be read now and those that can't; None where none has a counter by
        declaration.
        """

    def detach(self, lease_id: str) -> None:
        """End; fine if it isn't attached."""


Gauge = Callable[[], Mapping[str, int]]
"""Reads the utilisation of the node's devices, in percent, by a name of its own for each. One that can't be read is missing.

It may have `name_of`, from whatever a device is called to its name, or None; `names`, of all that there are; and `by_process`, of a device
what each process used of it since a time, in percent of all of that time, and until when that is known, or None where that can't be told.
"""


class LateGauge:
    """The first of several gauges that finds a device, whenever that is: a driver may come up after whoever reads it."""

    def __init__(self, kinds: Sequence[Callable[[], Any]], *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._kinds = kinds
        self._clock_s = clock_s
        self._found: Any = None
        self._look_at_s = 0.0
        self.why: list[str] = []
        """Why none was found, when one was last looked for."""

    def __call__(self) -> Mapping[str, int]:
        if self._found is None and self._clock_s() >= self._look_at_s:
            self._look_at_s = self._clock_s() + LOOK_AGAIN_S
            self._found = self._look()
        return self._found() if self._found is not None else {}

    @property
    def names(self) -> tuple[str, ...]:
        return self._found.names if self._found is not None else ()

    def name_of(self, said: str) -> str | None:
        return self._found.name_of(said) if self._found is not None else None

    def by_process(self, name: str, since_us: int) -> tuple[Mapping[int, int], int] | None:
        """As a gauge's; None of one that can't tell."""
        ask = getattr(self._found, "by_process", None)
        return None if ask is None else ask(name, since_us)

    def _look(self) -> Any:
        why = []
        for kind in self._kinds:
            try:
                gauge = kind()
                gauge()
            except Exception as error:  # noqa: BLE001  # no library, driver or device: each vendor has an error class for each
                why.append(f"{getattr(kind, '__name__', kind)}: {type(error).__name__}: {error}"[:200])
                continue
            if gauge.names:
                return gauge
        if why != self.why:
            _log.warning("no_gauge", why=why)
            self.why = why
        return None


class _Reading(NamedTuple):
    """What had been counted of a device at some time."""

    busy_us: float = 0.0
    read_us: int = 0
    """For how long it could be read."""


class _GaugeLease:
    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = tuple(devices)
        self.before: dict[str, _Reading] = {}
        self.total_us = 0
        self.rest_us = 0.0
        self.estimated = False
        self.roots: tuple[int, ...] = ()
        self.shared_at_us: int | None = None
        """When it was read last, of devices that others use, too."""
        self.seen_us: dict[str, int] = {}
        """Until when what processes use of each of them is known, by the driver's clock."""


class GaugeMeter:
    """Integrates a utilisation gauge. Between two readings a device counts with the later one, and one that can't be read as
    in use all the time: a tenant, or a broken driver, gains nothing by keeping a counter from being read.
    """

    def __init__(self, gauge: Gauge, *, period_s: float = 0.2, clock_us: Callable[[], int] | None = None) -> None:
        self._gauge = gauge
        self._name_of: Callable[[str], str | None] = getattr(gauge, "name_of", None) or (lambda said: said)
        self._clock_us = clock_us or monotonic_us
        self._counted: dict[str, _Reading] = {}
        self._readable: frozenset[str] = frozenset()
        self._total_us = 0
        self._read_at_us = self._clock_us()
        self._leases: dict[str, _GaugeLease] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        if period_s > 0:
            threading.Thread(target=self._watch, args=(period_s,), name="fabric-gauge", daemon=True).start()

    def attach(self, lease_id: str, *, devices: Sequence[str], roots: Sequence[int], shared: bool = False) -> None:
        self.sample()
        lease = self._leases[lease_id] = _GaugeLease(devices)
        lease.roots = tuple(roots)
        lease.shared_at_us = self._clock_us() if shared else None
        self._count(lease)
        lease.rest_us, lease.estimated = 0.0, False

    def read(self, lease_id: str, *, members: Sequence[int] | None = None) -> int:
        lease = self._leases.get(lease_id)
        if lease is None:
            return 0
        if lease.shared_at_us is not None:
            return self._read_shared(lease, members if members is not None else lease.roots)
        self.sample()
        used_us = self._count(lease) + lease.rest_us
        lease.rest_us = used_us - int(used_us)
        return int(used_us)

    def is_estimated(self, lease_id: str) -> bool:
        lease = self._leases.get(lease_id)
        return lease is not None and lease.estimated

    def detach(self, lease_id: str) -> None:
        self._leases.pop(lease_id, None)

    def readable(self, devices: Sequence[str] | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        self.sample()
        said = tuple(devices) if devices is not None else tuple(getattr(self._gauge, "names", self._readable))
        seen = [name for name in said if self._name_of(name) in self._readable]
        return tuple(seen), tuple(name for name in said if name not in seen)

    def sample(self) -> None:
        """Read the gauge once and add what it says about the time since the last reading."""
        with self._lock:
            try:
                percents = self._gauge()
            except Exception as error:  # noqa: BLE001  # whatever is the matter, nothing could be read
                if self._readable:
                    _log.warning("gauge_unreadable", why=f"{type(error).__name__}: {error}"[:200])
                percents = {}
            now_us = self._clock_us()
            elapsed_us = max(now_us - self._read_at_us, 0)
            self._read_at_us = now_us
            self._total_us += elapsed_us
            self._readable = frozenset(percents)
            for device, percent in percents.items():
                before = self._counted.get(device, _Reading())
                busy_us = before.busy_us + elapsed_us * min(max(percent, 0), _PERCENT) / _PERCENT
                self._counted[device] = _Reading(busy_us, before.read_us + elapsed_us)

    def close(self) -> None:
        self._closed.set()

    def _read_shared(self, lease: "_GaugeLease", members: Sequence[int]) -> int:
        """What its own processes used of its devices; where that can't be told all of the time, as estimated."""
        now_us, since_us = self._clock_us(), lease.shared_at_us or 0
        lease.shared_at_us, lease.estimated = now_us, False
        passed_us, used_us = max(now_us - since_us, 0), 0
        own = frozenset(members)
        for said in lease.devices:
            name = self._name_of(said)
            percents = self._by_process(name, lease) if name is not None else None
            if percents is None:
                lease.estimated = True
                used_us += passed_us
            else:
                percent = sum([used for pid, used in percents.items() if pid in own])
                used_us += passed_us * min(percent, _PERCENT) // _PERCENT
        return used_us

    def _by_process(self, name: str, lease: "_GaugeLease") -> Mapping[int, int] | None:
        ask = getattr(self._gauge, "by_process", None)
        if ask is None:
            return None
        with self._lock:
            try:
                found = ask(name, lease.seen_us.get(name, 0))
            except Exception as error:  # noqa: BLE001  # whatever is the matter, nothing could be read
                _log.debug("use_by_process_unreadable", why=f"{type(error).__name__}: {error}"[:200])
                return None
            if found is None:
                return None
            percents, lease.seen_us[name] = found
        return dict(percents)

    def _count(self, lease: _GaugeLease) -> float:
        """What its devices were in use since the last count; for as long as one could not be read, all of the time."""
        with self._lock:
            passed_us, lease.total_us = self._total_us - lease.total_us, self._total_us
            used_us, unread_us = 0.0, 0
            for said in lease.devices:
                name = self._name_of(said)
                now = self._counted.get(name, _Reading()) if name is not None else _Reading()
                before = lease.before.get(said)
                lease.before[said] = now
                if name is None or before is None:
                    before = now
                missing_us = max(passed_us - (now.read_us - before.read_us), 0)
                unread_us += missing_us
                used_us += max(now.busy_us - before.busy_us, 0.0) + missing_us
        lease.estimated = unread_us > 0
        return used_us

    def _watch(self, period_s: float) -> None:
        while not self._closed.wait(period_s):
            self.sample()


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000
