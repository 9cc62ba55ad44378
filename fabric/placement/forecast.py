"""When a job that waits is likely to start: a range p50 to p90, learned from how long others like it have waited.

Jobs are alike that are of one class, name the same types, and are of about one size. How many of them wait ahead, times how
long it took lately from one start of them to the next (while somebody waited), is a first guess: it knows nothing of run times, evictions
and reservations but by what comes of them. How wrong such guesses were is what the range is made of (conformal prediction):
of the newest errors the quantile below which so many lie. It was aimed lower, where fewer starts than promised came before
their p90, it is aimed higher (adaptive conformal inference: Gibbs and Candès, 2021); so it holds whatever the waits are distributed like,
as long as the errors of tomorrow resemble those of today, and finds back where they don't. Whoever asks later is told by
the errors of guesses about jobs that had waited as long.

Pure and in whole numbers; it looks at what has happened, decides nothing, and no decision looks at it.
"""

import heapq
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from fabric.units import PPM

MINUTE_US: Final = 60_000_000
HOUR_US: Final = 60 * MINUTE_US
AGES_US: Final = (MINUTE_US, 10 * MINUTE_US, 2 * HOUR_US, 12 * HOUR_US, 48 * HOUR_US)
"""Guesses are made, and judged, of jobs that have waited so long: who starts within a minute hasn't waited."""
SIZES_MAX: Final = (1, 7, 8, 15)
AIMED_PPM: Final = 940_000
"""At least so many of the errors that are known lie below what p90 allows for: a little more than is promised, as the newest
errors are known only when those jobs have started."""
_MISSED_PPM: Final = 20_000
"""So much higher it is aimed after a miss, and with so many starts in time (of ten) as low again."""
_HIGHEST_PPM: Final = 999_900
_BORROWED_PPM: Final = 985_000
"""What is aimed at where too few of its own kind are known."""
_ERRORS_KEPT: Final = 300
_ERRORS_MIN: Final = 20
_STARTS_KEPT: Final = 30
_LONGEST_TIMES: Final = 3
"""Nobody is told more than so many times the longest wait of such jobs that was ever seen."""


class Kind(NamedTuple):
    """Jobs that are alike."""

    rank: int
    """The class, best first."""
    types: tuple[str, ...]
    size: int


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """When it is likely to start, from now on."""

    p50_us: int
    p90_us: int
    known: int
    """From the errors of how many guesses."""


class Fact(NamedTuple):
    """What became of one job."""

    kind: Kind
    arrived_us: int
    started_us: int | None
    left_us: int | None = None
    """When it was withdrawn, if it never started."""


class Judged(NamedTuple):
    """A guess, and how long it really took from then on."""

    job: int
    """Its place among the facts."""
    age: int
    """Which of the ages."""
    range: Range
    took_us: int


def kind_of(rank: int, types: tuple[str, ...], devices: int) -> Kind:
    """The jobs that this one is like."""
    return Kind(rank, tuple(sorted(types)), bisect_left(SIZES_MAX, devices))


class _Line:
    """The jobs of one kind that wait, and how fast they were started."""

    __slots__ = ("arrivals", "busy_us", "longest_us", "seen_us", "starts")

    def __init__(self) -> None:
        self.arrivals: list[int] = []
        self.busy_us = 0
        """For how long somebody waited."""
        self.seen_us = 0
        self.starts: deque[int] = deque(maxlen=_STARTS_KEPT)
        """At which of that time the newest were started."""
        self.longest_us = HOUR_US

    def tick(self, now_us: int) -> None:
        if self.arrivals:
            self.busy_us += now_us - self.seen_us
        self.seen_us = now_us

    def remove(self, arrived_us: int) -> None:
        del self.arrivals[bisect_left(self.arrivals, arrived_us)]

    def guess_us(self, ahead: int, now_us: int) -> int:
        """A first guess of how long it takes until so many, and one more, have started."""
        busy_us = self.busy_us + (now_us - self.seen_us if self.arrivals else 0)
        each_us = (busy_us - self.starts[0]) // len(self.starts) if self.starts else busy_us + 10 * MINUTE_US
        return (ahead + 1) * each_us + MINUTE_US

    def most_us(self, now_us: int) -> int:
        """More than anybody has waited."""
        oldest_us = now_us - self.arrivals[0] if self.arrivals else 0
        return _LONGEST_TIMES * max(self.longest_us, oldest_us)


class _Errors:
    """Of guesses of one sort: what it took, by what was guessed, in ppm; the newest."""

    __slots__ = ("aimed_ppm", "by_guess", "ordered")

    def __init__(self) -> None:
        self.aimed_ppm = AIMED_PPM
        self.by_guess: dict[int, int] = {}
        self.ordered: list[int] = []

    def put(self, guess: int, error_ppm: int) -> None:
        known = self.by_guess.pop(guess, None)
        if known is None and len(self.by_guess) >= _ERRORS_KEPT:
            known = self.by_guess.pop(next(iter(self.by_guess)))
        if known is not None:
            del self.ordered[bisect_left(self.ordered, known)]
        self.by_guess[guess] = error_ppm
        insort(self.ordered, error_ppm)

    def quantile(self, ppm: int) -> int:
        """What so many of one more error than are known don't exceed; more than all of them, if it must."""
        at = -(-(len(self.ordered) + 1) * ppm // PPM) - 1
        return self.ordered[at] if at < len(self.ordered) else self.ordered[-1] * 3 // 2

    def aim(self, *, missed: bool) -> None:
        """Higher after a miss, and slowly back."""
        if missed:
            self.aimed_ppm = min(self.aimed_ppm + _MISSED_PPM * AIMED_PPM // PPM, _HIGHEST_PPM)
        else:
            self.aimed_ppm = max(self.aimed_ppm - _MISSED_PPM * (PPM - AIMED_PPM) // PPM, AIMED_PPM)


_Sort = tuple[object, ...]


class _Open(msgspec.Struct):
    """A guess of which it isn't known yet how wrong it is."""

    number: int
    sorts: tuple[_Sort, ...]
    guess_us: int
    at_us: int
    age: int
    range: Range | None
    missed: bool = False
    done: bool = False


class Starts:
    """What is known of starts. Told of everything in the order of time."""

    def __init__(self) -> None:
        self._lines: dict[Kind, _Line] = {}
        self._errors: dict[_Sort, _Errors] = {}
        self._open: dict[int, list[_Open]] = {}
        self._due: list[tuple[int, int, _Open]] = []
        self._guesses = 0

    def arrive(self, kind: Kind, now_us: int) -> None:
        """A job waits."""
        line = self._line(kind, now_us)
        insort(line.arrivals, now_us)

    def leave(self, job: int, fact: Fact, now_us: int) -> Iterator[Judged]:
        """A job waits no longer: it has started, or was withdrawn. What was guessed of it is judged."""
        line = self._line(fact.kind, now_us)
        line.remove(fact.arrived_us)
        guesses = self._open.pop(job, [])
        for guess in guesses:
            guess.done = True
        if fact.started_us is None:
            return
        waited_us = now_us - fact.arrived_us
        if waited_us >= AGES_US[0]:
            line.longest_us = max(line.longest_us, waited_us)
            line.starts.append(line.busy_us)
        for guess in guesses:
            took_us = now_us - guess.at_us
            if not guess.missed and guess.range is not None:
                self._of(guess.sorts[0]).aim(missed=False)
            self._put(guess, took_us)
            if guess.range is not None:
                yield Judged(job, guess.age, guess.range, took_us)

    def look(self, job: int, fact: Fact, age: int, now_us: int) -> None:
        """Guess when a job that has waited so long starts, to learn from it."""
        line = self._line(fact.kind, now_us)
        ahead = bisect_left(line.arrivals, fact.arrived_us)
        guess_us, sorts = line.guess_us(ahead, now_us), _sorts(fact.kind, age)
        found = self._range(line, guess_us, sorts, now_us)
        self._guesses += 1
        guess = _Open(self._guesses, sorts, guess_us, now_us, age, found)
        self._open.setdefault(job, []).append(guess)
        if found is not None:
            heapq.heappush(self._due, (now_us + found.p90_us, guess.number, guess))

    def expect(self, kind: Kind, *, ahead: int, waited_us: int, now_us: int) -> Range | None:
        """When one with so many of its kind ahead of it starts; None if too little is known."""
        line = self._lines.get(kind) or _Line()
        age = max(sum(waited_us >= age_us for age_us in AGES_US) - 1, 0)
        found = self._range(line, line.guess_us(ahead, now_us), _sorts(kind, age), now_us)
        early_us = max(AGES_US[0] - waited_us, 0)
        if found is None or not early_us:
            return found
        return msgspec.structs.replace(found, p50_us=found.p50_us + early_us, p90_us=found.p90_us + early_us)

    def pass_time(self, now_us: int) -> None:
        """Note who hasn't started by when he was to."""
        while self._due and self._due[0][0] < now_us:
            guess = heapq.heappop(self._due)[2]
            if not guess.done and guess.range is not None:
                guess.missed = True
                self._of(guess.sorts[0]).aim(missed=True)
                self._put(guess, guess.range.p90_us * 3 // 2)

    def _range(self, line: _Line, guess_us: int, sorts: tuple[_Sort, ...], now_us: int) -> Range | None:
        own = self._errors.get(sorts[0])
        aimed_ppm = AIMED_PPM if own is None else own.aimed_ppm
        for sort in sorts:
            errors = self._errors.get(sort)
            if errors is None or len(errors.ordered) < _ERRORS_MIN:
                continue
            ppm = aimed_ppm if errors is own else max(aimed_ppm, _BORROWED_PPM)
            most_us = self._most_us(line, now_us)
            p90_us = min(guess_us * errors.quantile(ppm) // PPM, most_us)
            p50_us = min(guess_us * errors.quantile(PPM // 2) // PPM, p90_us)
            return Range(p50_us=p50_us, p90_us=p90_us, known=len(errors.ordered))
        return None

    def _most_us(self, line: _Line, now_us: int) -> int:
        """More than such a job has ever waited; of a kind of which few have started, than any has."""
        if len(line.starts) == _STARTS_KEPT:
            return line.most_us(now_us)
        return max(each.most_us(now_us) for each in (line, *self._lines.values()))

    def _put(self, guess: _Open, took_us: int) -> None:
        for sort in guess.sorts:
            self._of(sort).put(guess.number, took_us * PPM // guess.guess_us)

    def _of(self, sort: _Sort) -> _Errors:
        found = self._errors.get(sort)
        if found is None:
            found = self._errors[sort] = _Errors()
        return found

    def _line(self, kind: Kind, now_us: int) -> _Line:
        line = self._lines.get(kind)
        if line is None:
            line = self._lines[kind] = _Line()
        line.tick(now_us)
        return line


def _sorts(kind: Kind, age: int) -> tuple[_Sort, ...]:
    """The errors that say most of such a guess first, then those of ever wider kinds."""
    return (kind, age), (kind.rank, kind.size, age), (kind.rank, age), (age,), ()


_ARRIVES, _LEAVES, _LOOKED_AT = range(3)


def learn(facts: Iterable[Fact], *, until_us: int) -> tuple[Starts, list[Judged]]:
    """Go through what has happened up to a moment, and guess and judge as if it were then: what is known by that moment, and all
    guesses that could be judged. No guess knows anything of later than it was made.
    """
    starts = Starts()
    judged: list[Judged] = []
    told = list(facts)
    for now_us, what, job, age in sorted(_moments(told, until_us)):
        fact = told[job]
        starts.pass_time(now_us)
        if what == _ARRIVES:
            starts.arrive(fact.kind, now_us)
        elif what == _LEAVES:
            judged += starts.leave(job, fact, now_us)
        else:
            starts.look(job, fact, age, now_us)
    starts.pass_time(until_us)
    return starts, judged


def _moments(facts: list[Fact], until_us: int) -> Iterator[tuple[int, int, int, int]]:
    for job, fact in enumerate(facts):
        if fact.arrived_us > until_us:
            continue
        yield fact.arrived_us, _ARRIVES, job, 0
        ends_us = fact.started_us if fact.started_us is not None else fact.left_us
        if ends_us is not None and ends_us <= until_us:
            yield max(ends_us, fact.arrived_us), _LEAVES, job, 0
        last_us = until_us if ends_us is None else min(ends_us - 1, until_us)
        for age, age_us in enumerate(AGES_US):
            if fact.arrived_us + age_us <= last_us:
                yield fact.arrived_us + age_us, _LOOKED_AT, job, age
