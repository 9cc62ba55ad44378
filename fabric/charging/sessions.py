"""Charging sessions: one lease, from its start to its charging record.

A session turns samples into charges and remembers what has become of them: charged, given back as lost work, or
absorbed by the operator. It charges nothing twice, never more time than has passed by the gate's clock, and whatever
nobody saw as f = 1. Its weight follows the clock: time is cut where another hour's weight, or other prices, begin. Does not
know holds: whoever asks captures.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Self

import msgspec

from fabric.charging.burn import REFERENCE_PPM
from fabric.charging.clockwork import Span, Terms
from fabric.charging.rating import Meter, burn_per_s, worst_per_s
from fabric.charging.records import Cdr
from fabric.charging.rounding import half_even, up
from fabric.units import MICROS_PER_S, PPM, Fraction

RECENT_US: Final = 5_000_000
"""How far back the burn and utilisation that people see reach."""


class Window(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One window as it was charged."""

    window_us: int
    busy_us: int
    charged_uhs: int


class Due(NamedTuple):
    """What a part of metered time adds to the charge."""

    until_us: int
    """Its end; it begins where the part before ends."""
    uhs: int


class ChargingSession(msgspec.Struct, kw_only=True, gc=False):
    """The meter of one lease. Create it with `open`."""

    account_id: str
    job_id: str
    lease_id: str
    name: str
    service: str
    accelerator: str
    devices: int
    tariff_version: int
    started_at_us: int
    meter: Meter
    """Of the span that isn't over."""
    terms: tuple[Terms, ...] = ()
    """What it weighs by the clock: what holds now first, then what begins later. () = always the same."""
    spans: list[Span] = []
    """Those that are over, oldest first."""
    spans_uhs: int = 0
    """What they were rated at, together."""
    span_at_us: int = 0
    """How much had been metered when the span that isn't over began, and"""
    span_estimated_us: int = 0
    """how much of that had been estimated."""
    seq: int = 0
    """The last sample that was charged."""
    metered_us: int = 0
    """Wall time charged so far, estimated or not."""
    estimated_us: int = 0
    """The part of it that was."""
    busy_us: int = 0
    """Device-time in use; what was estimated counts as the reference utilisation. Of a part of a device: of that part."""
    refunded_uhs: int = 0
    absorbed_uhs: int = 0
    durable_uhs: int = 0
    """What had been charged when the last checkpoint became durable,"""
    durable_us: int = 0
    """and how much time had been."""
    recent: list[Window] = []

    @classmethod
    def open(
        cls,
        *,
        account_id: str,
        job_id: str,
        lease_id: str,
        name: str,
        service: str,
        accelerator: str,
        devices: int,
        terms: tuple[Terms, ...],
        started_at_us: int,
        fraction: Fraction | None = None,
    ) -> Self:
        """A session that has charged nothing yet; `terms` are those from its start on, then what is known to begin later."""
        first = terms[0]
        return cls(
            account_id=account_id,
            job_id=job_id,
            lease_id=lease_id,
            name=name,
            service=service,
            accelerator=accelerator,
            devices=devices,
            tariff_version=first.tariff_version,
            started_at_us=started_at_us,
            meter=Meter(weight_ppm=first.weight_ppm(started_at_us), curve=first.curve, fraction=fraction),
            terms=() if len(terms) == 1 == len(first.weights) else terms,
        )

    def extend(self, *, seq: int, window_us: int, busy_us: int, now_us: int, estimated: bool = False) -> int:
        """What one sample adds to the charge, in µHs: all parts of `charge` together."""
        dues = self.charge(seq=seq, window_us=window_us, busy_us=busy_us, now_us=now_us, estimated=estimated)
        return sum(due.uhs for due in dues)

    def charge(
        self,
        *,
        seq: int,
        window_us: int,
        busy_us: int,
        now_us: int,
        estimated: bool = False,
        cuts: Sequence[int] = (),
    ) -> list[Due]:
        """What one sample adds to the charge, by parts of its time: it is cut where its weight turns, and at `cuts`.

        Args:
            seq: counts the samples; one that was charged already, or is older than one that was, adds nothing.
            window_us: wall time by the agent's clock. What goes beyond `now_us` is cut off, at the same utilisation.
            busy_us: device-time in use within it.
            now_us: by the gate's clock: no lease pays for more time than has passed there.
            estimated: the agent could not see all of it: charged as f = 1, whatever `busy_us` says.
            cuts: moments at which something else turns, such as what a token costs.
        """
        if seq <= self.seq:
            return []
        self.seq = seq
        unmetered_us = max(now_us - self.started_at_us - self.metered_us, 0)
        charged_us = min(max(window_us, 0), unmetered_us)
        if charged_us == 0:
            return []
        if estimated:
            return self.charge_gap(window_us=charged_us, cuts=cuts)
        busy_us = min(max(busy_us, 0), self.devices * window_us) * charged_us // window_us
        if not self.terms and not cuts:
            due_uhs = self.meter.add(devices=self.devices, window_us=charged_us, busy_us=busy_us)
            self.metered_us += charged_us
            self._note(charged_us, busy_us, due_uhs)
            return [Due(self.at_us, due_uhs)]
        dues, done_us = list[Due](), 0
        for piece_us in self._pieces(charged_us, cuts):
            done_us, before_us = done_us + piece_us, done_us
            busy = busy_us * done_us // charged_us - busy_us * before_us // charged_us
            due_uhs = self.meter.add(devices=self.devices, window_us=piece_us, busy_us=busy)
            self.metered_us += piece_us
            dues.append(Due(self.at_us, due_uhs))
        self._note(charged_us, busy_us, sum(due.uhs for due in dues))
        return dues

    def gap(self, *, window_us: int) -> int:
        """What time adds to the charge that nobody metered: all parts of `charge_gap` together."""
        return sum(due.uhs for due in self.charge_gap(window_us=window_us))

    def charge_gap(self, *, window_us: int, cuts: Sequence[int] = ()) -> list[Due]:
        """What time adds to the charge that nobody metered, by its parts: it counts as f = 1, and as estimated."""
        dues = list[Due]()
        for piece_us in self._pieces(max(window_us, 0), cuts):
            due_uhs = self.meter.estimate(devices=self.devices, window_us=piece_us)
            self.metered_us += piece_us
            self.estimated_us += piece_us
            dues.append(Due(self.at_us, due_uhs))
        if window_us > 0:
            busy_us = self.devices * window_us * REFERENCE_PPM // PPM
            self._note(window_us, busy_us, sum(due.uhs for due in dues))
        return dues

    def foresee(self, later: tuple[Terms, ...], *, now_us: int) -> None:
        """Other prices begin later than now: these, in the order of their dates, in place of those that were known."""
        known = self.terms or (
            Terms(
                since_us=self.started_at_us,
                tariff_version=self.tariff_version,
                curve=self.meter.curve,
                weights=(self.meter.weight_ppm,),
            ),
        )
        self.terms = (*(each for at, each in enumerate(known) if not at or each.since_us <= now_us), *later)

    @property
    def at_us(self) -> int:
        """Up to when it is metered."""
        return self.started_at_us + self.metered_us

    def next_turn_us(self) -> int | None:
        """When what it weighs turns next, after what is metered; None = never."""
        if not self.terms:
            return None
        turn_us = self.terms[0].turn_us(self.at_us)
        later_us = self.terms[1].since_us if len(self.terms) > 1 else None
        return min((us for us in (turn_us, later_us) if us is not None), default=None)

    def _pieces(self, window_us: int, cuts: Sequence[int]) -> Iterator[int]:
        """The next so much time, cut where its weight turns and at `cuts`; the meter is of each piece's weight while that is in
        hand.
        """
        if window_us and not self.terms and not cuts:
            yield window_us
            return
        while window_us:
            if self.terms:
                self._turn()
            turns = [us for us in (self.next_turn_us(), *cuts) if us is not None and us > self.at_us]
            piece_us = min(window_us, min(turns) - self.at_us) if turns else window_us
            window_us -= piece_us
            yield piece_us

    def _turn(self) -> None:
        """Begin another span where another weight, curve or version holds from here on."""
        at_us = self.at_us
        while len(self.terms) > 1 and self.terms[1].since_us <= at_us:
            self.terms = self.terms[1:]
        now, meter = self.terms[0], self.meter
        weight_ppm = now.weight_ppm(at_us)
        if (weight_ppm, now.tariff_version, now.curve) == (meter.weight_ppm, self.tariff_version, meter.curve):
            return
        if self.metered_us > self.span_at_us:
            self.spans.append(self._span())
            self.spans_uhs += meter.rated_uhs
            self.span_at_us, self.span_estimated_us = self.metered_us, self.estimated_us
        self.tariff_version = now.tariff_version
        self.meter = Meter(weight_ppm=weight_ppm, curve=now.curve, fraction=meter.fraction)

    def _span(self) -> Span:
        """The one that isn't over, as far as it is metered."""
        return Span(
            from_us=self.started_at_us + self.span_at_us,
            until_us=self.at_us,
            estimated_us=self.estimated_us - self.span_estimated_us,
            tariff_version=self.tariff_version,
            weight_ppm=self.meter.weight_ppm,
            bands=self._bands(),
        )

    def _bands(self) -> tuple[tuple[int, int], ...]:
        return tuple([(band.device_us, band.busy_us) for band in self.meter.bands])

    def absorb(self, amount_uhs: int) -> None:
        """So much of what was charged could not be captured: the operator's loss, and off the customer's bill."""
        assert 0 <= amount_uhs <= self.charged_uhs, f"absorbs {amount_uhs} of {self.charged_uhs}"
        self.absorbed_uhs += amount_uhs

    def mark_durable(self) -> None:
        """What was done up to here is safe: it will never be given back as lost."""
        self.durable_uhs, self.durable_us = self.charged_uhs, self.metered_us

    def refund_lost(self, *, most_us: int) -> int:
        """Give back what was charged since the last durable mark; of a longer time than `most_us` as much as that has of it, rounded
        down. What to refund, in µHs.
        """
        since_us = self.metered_us - self.durable_us
        given_uhs = self.lost_uhs if since_us <= most_us else self.lost_uhs * most_us // since_us
        self.refunded_uhs += given_uhs
        return given_uhs

    def close(self, *, ended: str, at_us: int) -> Cdr:
        """The charging record of it all."""
        return Cdr(
            cdr_id=self.lease_id,
            account_id=self.account_id,
            job_id=self.job_id,
            lease_id=self.lease_id,
            name=self.name,
            service=self.service,
            accelerator=self.accelerator,
            devices=self.devices,
            fraction=self.meter.fraction,
            started_at_us=self.started_at_us,
            ended_at_us=at_us,
            metered_us=self.metered_us,
            busy_us=self.busy_us,
            estimated_us=self.estimated_us,
            tariff_version=self.tariff_version,
            weight_ppm=self.meter.weight_ppm,
            bands=() if self.spans else self._bands(),
            spans=(*self.spans, self._span()) if self.spans else (),
            charged_uhs=self.charged_uhs,
            refunded_uhs=self.refunded_uhs,
            absorbed_uhs=self.absorbed_uhs,
            ended=ended,
        )

    @property
    def charged_uhs(self) -> int:
        """What the customer pays so far: all that was rated, less what was given back or absorbed."""
        return self.spans_uhs + self.meter.rated_uhs - self.refunded_uhs - self.absorbed_uhs

    @property
    def lost_uhs(self) -> int:
        """Charged since the last durable mark: what a loss of the lease now would give back at most."""
        return max(self.charged_uhs - self.durable_uhs, 0)

    @property
    def worst_uhs_per_s(self) -> int:
        """What it burns at most in a second, at any hour and by all prices that are known; at least 1."""
        return max(uhs_per_s for _, uhs_per_s in self._worst())

    def covered(self, held_uhs: int) -> tuple[int, int]:
        """`covered_until_us`, and what it burns at most in a second until then: asked of every sample."""
        if self.terms:
            until_us = self.covered_until_us(held_uhs)
            return until_us, self.worst_by(until_us)
        meter = self.meter
        worst = worst_per_s(self.devices, meter.weight_ppm, meter.curve.max_ppm, meter.fraction)
        return self.at_us + held_uhs * MICROS_PER_S // worst, worst

    def covered_until_us(self, held_uhs: int) -> int:
        """When so much would be used up if it burned at its worst from where it is metered: of prices that begin later, from then."""
        at_us, left_uhs = self.at_us, held_uhs
        for until_us, uhs_per_s in self._worst():
            if until_us is None or left_uhs * MICROS_PER_S < (until_us - at_us) * uhs_per_s:
                return at_us + left_uhs * MICROS_PER_S // uhs_per_s
            if until_us > at_us:
                left_uhs -= up((until_us - at_us) * uhs_per_s, MICROS_PER_S)
                at_us = until_us
        raise AssertionError("the last terms that are known hold on")

    def worst_by(self, until_us: int) -> int:
        """What it burns at most in a second until a moment."""
        begins_us, worst = self.at_us, 0
        for ends_us, uhs_per_s in self._worst():
            if not worst or begins_us < until_us:
                worst = max(worst, uhs_per_s)
            begins_us = begins_us if ends_us is None else max(begins_us, ends_us)
        return worst

    def _worst(self) -> Iterator[tuple[int | None, int]]:
        """Until when (None = for good) it burns at most how much in a second, at any hour."""
        meter, terms = self.meter, self.terms
        now = worst_per_s(self.devices, meter.weight_ppm, meter.curve.max_ppm, meter.fraction)
        if not terms:
            yield None, now
        for at, each in enumerate(terms):
            worst = worst_per_s(self.devices, each.peak_ppm, each.curve.max_ppm, meter.fraction)
            until_us = terms[at + 1].since_us if at + 1 < len(terms) else None
            yield until_us, worst if at else max(worst, now)

    @property
    def burn_uhs_per_s(self) -> int:
        """Over the last few seconds; until the first sample what unseen time costs."""
        window_us = sum(window.window_us for window in self.recent)
        if window_us == 0:
            meter = self.meter
            return burn_per_s(
                devices=self.devices, weight_ppm=meter.weight_ppm, curve=meter.curve, fraction=meter.fraction
            )
        return half_even(sum(window.charged_uhs for window in self.recent) * MICROS_PER_S, window_us)

    @property
    def utilisation_ppm(self) -> int:
        """Over the last few seconds; 0 until the first sample."""
        window_us = sum(window.window_us for window in self.recent)
        busy_us = sum(window.busy_us for window in self.recent)
        return half_even(busy_us * PPM, self.devices * window_us) if window_us else 0

    def _note(self, window_us: int, busy_us: int, due_uhs: int) -> None:
        self.busy_us += busy_us
        recent = self.recent
        recent.append(Window(window_us, busy_us, due_uhs))
        if len(recent) > 1:
            seen_us = sum([window.window_us for window in recent])
            while seen_us - recent[0].window_us >= RECENT_US:
                seen_us -= recent.pop(0).window_us
