"""A charging session: one lease from its start until its meters are closed, and the record it leaves.

Samples come in windows of the node agents' own clock. They are counted once each, in order, and never beyond the time
that the gate itself has seen pass. What nobody measured is charged at the full rate and marked as estimated.
"""

from typing import Final

import msgspec

from fabric.charging.burn import BurnCurve
from fabric.charging.rating import Meter, burn_per_s
from fabric.charging.records import Cdr
from fabric.units import PPM

RECENT_US: Final = 5_000_000
"""What the displayed utilisation looks back over."""
CLOCK_SLACK_US: Final = 100_000
"""How far the agents' windows may run ahead of the gate's clock before they are cut."""


class ChargingSession(msgspec.Struct, kw_only=True):
    """What one lease has used and been charged so far. All in µs and µHs."""

    account_id: str
    job_id: str
    lease_id: str
    name: str
    service: str
    accelerator: str
    devices: int
    weight_ppm: int
    tariff_version: int
    curve: BurnCurve
    started_at_us: int
    meter: Meter
    seq: int = 0
    metered_us: int = 0
    busy_us: int = 0
    estimated_us: int = 0
    durable_uhs: int = 0
    refunded_uhs: int = 0
    absorbed_uhs: int = 0
    recent: list[tuple[int, int]] = []
    """The last windows, (window, busy), the newest last."""

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
    ) -> "ChargingSession":
        """A session that has used nothing yet."""
        return cls(
            account_id=account_id,
            job_id=job_id,
            lease_id=lease_id,
            name=name,
            service=service,
            accelerator=accelerator,
            devices=devices,
            weight_ppm=weight_ppm,
            tariff_version=tariff_version,
            curve=curve,
            started_at_us=started_at_us,
            meter=Meter(),
        )

    def extend(self, *, seq: int, window_us: int, busy_us: int, estimated: bool, now_us: int) -> int:
        """Count one sample; what is newly due, in µHs.

        Args:
            seq: counts the lease's samples; one that was counted before, or is older, counts nothing.
            window_us: wall time by the agent's clock; cut to the time that has passed by `now_us`.
            busy_us: device-time in use within the window; cut in proportion with it.
            estimated: whether the agent guessed.
            now_us: the gate's time, or the time at which the lease ended.
        """
        if seq <= self.seq or window_us <= 0:
            return 0
        self.seq = seq
        room_us = max(now_us + CLOCK_SLACK_US - self.started_at_us - self.metered_us, 0)
        counted_us = min(window_us, room_us)
        counted_busy_us = min(max(busy_us, 0) * counted_us // window_us, counted_us * self.devices)
        self.estimated_us += counted_us if estimated else 0
        return self._count(counted_us, counted_busy_us)

    def gap(self, *, window_us: int) -> int:
        """Charge time that nobody measured at the full rate; what is newly due."""
        self.estimated_us += window_us
        return self._count(window_us, window_us * self.devices)

    def mark_durable(self) -> None:
        """What was charged until now bought work that is safe."""
        self.durable_uhs = self.meter.charged_uhs

    def refund_lost(self) -> int:
        """What was charged since the last durable mark, to be given back; counted as refunded from now on."""
        lost = max(self.meter.charged_uhs - self.absorbed_uhs - self.durable_uhs - self.refunded_uhs, 0)
        self.refunded_uhs += lost
        return lost

    def absorb(self, amount_uhs: int) -> None:
        """The hold didn't cover so much of what was due: the operator bears it."""
        self.absorbed_uhs += amount_uhs

    @property
    def utilisation_ppm(self) -> int:
        """Over the last seconds; 0 before the first sample."""
        window = sum(window for window, _ in self.recent)
        return sum(busy for _, busy in self.recent) * PPM // (window * self.devices) if window else 0

    @property
    def burn_uhs_per_s(self) -> int:
        """At the utilisation of the last seconds; at full use before the first sample."""
        utilisation = self.utilisation_ppm if self.recent else PPM
        return burn_per_s(
            devices=self.devices, weight_ppm=self.weight_ppm, curve=self.curve, utilisation_ppm=utilisation
        )

    def close(self, *, ended: str, at_us: int) -> Cdr:
        """The record of it all."""
        return Cdr(
            cdr_id=self.lease_id,
            account_id=self.account_id,
            job_id=self.job_id,
            lease_id=self.lease_id,
            name=self.name,
            service=self.service,
            accelerator=self.accelerator,
            devices=self.devices,
            started_at_us=self.started_at_us,
            ended_at_us=at_us,
            metered_us=self.metered_us,
            busy_us=self.busy_us,
            estimated_us=self.estimated_us,
            tariff_version=self.tariff_version,
            weight_ppm=self.weight_ppm,
            charged_uhs=self.meter.charged_uhs - self.absorbed_uhs - self.refunded_uhs,
            refunded_uhs=self.refunded_uhs,
            absorbed_uhs=self.absorbed_uhs,
            ended=ended,
        )

    def _count(self, window_us: int, busy_us: int) -> int:
        self.metered_us += window_us
        self.busy_us += busy_us
        self.recent.append((window_us, busy_us))
        while sum(window for window, _ in self.recent[1:]) >= RECENT_US:
            del self.recent[0]
        return self.meter.add(
            devices=self.devices, window_us=window_us, busy_us=busy_us, weight_ppm=self.weight_ppm, curve=self.curve
        )
