"""Charging sessions: one lease, from its start to its charging record.

A session turns samples into charges and remembers what has become of them: charged, given back as lost work, or
absorbed by the operator. It charges nothing twice, never more time than has passed by the gate's clock, and whatever
nobody saw as f = 1. It keeps the weight and curve it was opened with. Does not know holds: whoever asks captures.
"""

from typing import Final, Self

import msgspec

from fabric.charging.burn import REFERENCE_PPM, BurnCurve
from fabric.charging.rating import Meter, burn_per_s, worst_per_s
from fabric.charging.records import Cdr
from fabric.charging.rounding import half_even
from fabric.units import MICROS_PER_S, PPM, Fraction

RECENT_US: Final = 5_000_000
"""How far back the burn and utilisation that people see reach."""


class Window(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One window as it was charged."""

    window_us: int
    busy_us: int
    charged_uhs: int


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
        weight_ppm: int,
        tariff_version: int,
        curve: BurnCurve,
        started_at_us: int,
        fraction: Fraction | None = None,
    ) -> Self:
        """A session that has charged nothing yet."""
        return cls(
            account_id=account_id,
            job_id=job_id,
            lease_id=lease_id,
            name=name,
            service=service,
            accelerator=accelerator,
            devices=devices,
            tariff_version=tariff_version,
            started_at_us=started_at_us,
            meter=Meter(weight_ppm=weight_ppm, curve=curve, fraction=fraction),
        )

    def extend(self, *, seq: int, window_us: int, busy_us: int, now_us: int, estimated: bool = False) -> int:
        """What one sample adds to the charge, in µHs.

        Args:
            seq: counts the samples; one that was charged already, or is older than one that was, adds nothing.
            window_us: wall time by the agent's clock. What goes beyond `now_us` is cut off, at the same utilisation.
            busy_us: device-time in use within it.
            now_us: by the gate's clock: no lease pays for more time than has passed there.
            estimated: the agent could not see all of it: charged as f = 1, whatever `busy_us` says.
        """
        if seq <= self.seq:
            return 0
        self.seq = seq
        unmetered_us = max(now_us - self.started_at_us - self.metered_us, 0)
        charged_us = min(max(window_us, 0), unmetered_us)
        if charged_us == 0:
            return 0
        if estimated:
            return self.gap(window_us=charged_us)
        busy_us = min(max(busy_us, 0), self.devices * window_us) * charged_us // window_us
        due_uhs = self.meter.add(devices=self.devices, window_us=charged_us, busy_us=busy_us)
        self._note(charged_us, busy_us, due_uhs)
        return due_uhs

    def gap(self, *, window_us: int) -> int:
        """What time adds to the charge that nobody metered: it counts as f = 1, and as estimated."""
        if window_us <= 0:
            return 0
        due_uhs = self.meter.estimate(devices=self.devices, window_us=window_us)
        self.estimated_us += window_us
        self._note(window_us, self.devices * window_us * REFERENCE_PPM // PPM, due_uhs)
        return due_uhs

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
            bands=tuple((band.device_us, band.busy_us) for band in self.meter.bands),
            charged_uhs=self.charged_uhs,
            refunded_uhs=self.refunded_uhs,
            absorbed_uhs=self.absorbed_uhs,
            ended=ended,
        )

    @property
    def charged_uhs(self) -> int:
        """What the customer pays so far: all that was rated, less what was given back or absorbed."""
        return self.meter.rated_uhs - self.refunded_uhs - self.absorbed_uhs

    @property
    def lost_uhs(self) -> int:
        """Charged since the last durable mark: what a loss of the lease now would give back at most."""
        return max(self.charged_uhs - self.durable_uhs, 0)

    @property
    def worst_uhs_per_s(self) -> int:
        """What it burns at most in a second, by the weight and curve it was opened with; at least 1."""
        meter = self.meter
        return worst_per_s(self.devices, meter.weight_ppm, meter.curve.max_ppm, meter.fraction)

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
        self.metered_us += window_us
        self.busy_us += busy_us
        self.recent.append(Window(window_us, busy_us, due_uhs))
        seen_us = sum(window.window_us for window in self.recent)
        while seen_us - self.recent[0].window_us >= RECENT_US:
            seen_us -= self.recent.pop(0).window_us
