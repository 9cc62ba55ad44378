"""Charging data records: what one lease used, and what that cost.

A CDR is written once, when a lease's meters are closed, and holds everything needed to compute its charge again: the
devices, the tariff version and weight, the time, the device-time in use in each band of the burn curve, and what part
of it was estimated.
"""

import msgspec


class Cdr(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of one job, rated. Times and durations in µs, amounts in µHs."""

    cdr_id: str
    account_id: str
    job_id: str
    lease_id: str
    name: str
    service: str
    accelerator: str
    devices: int
    started_at_us: int
    ended_at_us: int
    metered_us: int
    busy_us: int
    """Device-time in use; utilisation = busy / (devices x metered)."""
    estimated_us: int
    tariff_version: int
    weight_ppm: int
    bands: tuple[tuple[int, int], ...] = ()
    """(devices x time, device-time in use) in each linear piece of the tariff's burn curve, without what was estimated."""
    charged_uhs: int
    refunded_uhs: int = 0
    """Lost work the platform caused, given back: already taken off `charged_uhs`."""
    absorbed_uhs: int = 0
    """Used beyond what was held, and not charged: the operator's loss."""
    ended: str = ""
    """How the attempt ended: succeeded | failed | saved | lost | cancelled."""
