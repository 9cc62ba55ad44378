"""What a job may ask for, whatever the cluster and the balance: the numbers and names that make no sense anywhere."""

from math import gcd
from typing import Final

from fabric.gate import refusals
from fabric.gate.events import JobKind, JobSpec
from fabric.gate.instructions import Refusal
from fabric.ledger.scopes import Service
from fabric.placement.score import PREFERENCES
from fabric.units import AMOUNT_UHS_MAX, FRACTION_MAX, Fraction, format_fraction

NAME_MAX: Final = 200
DEVICES_MAX: Final = 1_000_000
GRACE_MAX_US: Final = 86_400_000_000
TIME_LIMIT_MAX_US: Final = 10 * 365 * 86_400_000_000
RETRIES_MAX: Final = 1_000
DATASETS_MAX: Final = 32
PREFIX_MAX: Final = 500
BYTES_MAX: Final = 2**60
AUTO_PARK_MIN_US: Final = 5_000_000
MIXES: Final = ("never", "same-vendor", "islands")


def malformed(spec: JobSpec) -> Refusal | None:
    """What is wrong with it; None if nothing is."""
    if not 0 < len(spec.name) <= NAME_MAX:
        return refusals.invalid(
            f"a job's name has 1 to {NAME_MAX} characters, not {len(spec.name)}: choose another", code="invalid_name"
        )
    if not 0 < spec.limit_uhs <= AMOUNT_UHS_MAX and (refusal := refusals.bad_amount("tokens= must be", spec.limit_uhs)):
        return refusal
    return (
        _bad_gang(spec)
        or (None if spec.fraction is None else _bad_part(spec))
        or (None if spec.devices_least is None else _bad_range(spec))
        or _bad_times(spec)
        or (None if not spec.data and spec.estimate_us is None else _bad_data(spec))
    )


def bad_fraction(fraction: Fraction) -> Refusal | None:
    """What is wrong with a part of a device."""
    over, under = fraction
    if 0 < over < under <= FRACTION_MAX and gcd(over, under) == 1:
        return None
    return refusals.invalid(
        f"a part of a device is more than 0 and less than 1, in lowest terms and in parts of at most {FRACTION_MAX}, not"
        f" {over}/{under}: write it as 1/4",
        code="invalid_fraction",
        fraction=f"{over}/{under}",
    )


def _bad_part(spec: JobSpec) -> Refusal | None:
    if spec.fraction is None:
        return None
    if refusal := bad_fraction(spec.fraction):
        return refusal
    said = format_fraction(spec.fraction)
    asked = {
        "devices": spec.devices if spec.devices > 1 else None,
        "devices_least": spec.devices_least,
        "mix": spec.mix if spec.mix != "never" else None,
        "service": spec.service.value if spec.service is Service.INFERENCE else None,
    }
    wrong = next(((name, value) for name, value in asked.items() if value is not None), None)
    if wrong is None:
        return None
    return refusals.invalid(
        f"a job that has {said} of a device has one device, on one node, and this one asks for {wrong[0]}={wrong[1]}: leave that"
        " out, or ask for whole devices, as in accelerators=H100:1 (--accelerators)",
        code="fraction_of_one",
        fraction=said,
        **{wrong[0]: wrong[1]},
    )


def _bad_range(spec: JobSpec) -> Refusal | None:
    least = spec.devices_least
    if least is None:
        return None
    if spec.kind is JobKind.LEASE:
        return refusals.invalid("a bare lease has one size: name one number of devices", code="invalid_devices")
    if not 1 <= least <= spec.devices or (spec.devices_per_node is not None and least % spec.devices_per_node):
        per_node = f", in steps of {spec.devices_per_node}" if spec.devices_per_node else ""
        return refusals.invalid(
            f"an elastic job takes 1 to {spec.devices} devices at least{per_node}, not {least}",
            code="invalid_devices",
            devices=spec.devices,
            devices_least=least,
        )
    return None


def _bad_data(spec: JobSpec) -> Refusal | None:
    if spec.data and (len(spec.data) > DATASETS_MAX or len({each.prefix for each in spec.data}) < len(spec.data)):
        return refusals.invalid(
            f"a job names up to {DATASETS_MAX} datasets, each once; this one {len(spec.data)}", code="invalid_data"
        )
    for each in spec.data:
        if not 0 < len(each.prefix) <= PREFIX_MAX or not 0 <= each.bytes <= BYTES_MAX or len(each.region) > NAME_MAX:
            return refusals.invalid(
                f"a dataset has a prefix of 1 to {PREFIX_MAX} characters and 0 to {BYTES_MAX} bytes, not"
                f" {each.prefix[:50]!r} and {each.bytes}",
                code="invalid_data",
            )
    if spec.estimate_us is not None and not 0 < spec.estimate_us <= TIME_LIMIT_MAX_US:
        return refusals.invalid(
            f"an estimate is more than 0 and at most {TIME_LIMIT_MAX_US} µs, not {spec.estimate_us}",
            code="invalid_estimate",
        )
    return None


def _bad_gang(spec: JobSpec) -> Refusal | None:
    if spec.mix not in MIXES:
        return refusals.invalid(f"mix={spec.mix!r}: choose of {', '.join(MIXES)}", code="invalid_mix")
    if spec.prefer not in PREFERENCES:
        known = ", ".join(name or '""' for name in PREFERENCES)
        return refusals.invalid(f"prefer={spec.prefer!r}: choose of {known}", code="invalid_prefer")
    if not 1 <= spec.devices <= DEVICES_MAX:
        return refusals.invalid(
            f"a job needs 1 to {DEVICES_MAX} devices, not {spec.devices}", code="invalid_devices", devices=spec.devices
        )
    if spec.devices_per_node is not None and (spec.devices_per_node < 1 or spec.devices % spec.devices_per_node):
        return refusals.invalid(
            f"{spec.devices} devices can't be split into {spec.devices_per_node} a node: choose a divisor of"
            f" {spec.devices}, at least 1",
            code="invalid_devices",
            devices=spec.devices,
            devices_per_node=spec.devices_per_node,
        )
    return None


def _bad_times(spec: JobSpec) -> Refusal | None:
    if not 0 <= spec.grace_us <= GRACE_MAX_US:
        return refusals.invalid(f"a grace is 0 to {GRACE_MAX_US} µs, not {spec.grace_us}", code="invalid_grace")
    if not 0 <= spec.max_retries <= RETRIES_MAX:
        return refusals.invalid(
            f"a job is retried 0 to {RETRIES_MAX} times, not {spec.max_retries}", code="invalid_retries"
        )
    if spec.auto_park_us is not None and not AUTO_PARK_MIN_US <= spec.auto_park_us <= TIME_LIMIT_MAX_US:
        return refusals.invalid(
            f"a job is parked after {AUTO_PARK_MIN_US // 1_000_000} s or more of idleness, not {spec.auto_park_us} µs",
            code="invalid_auto_park",
        )
    if spec.time_limit_us is not None and not 0 < spec.time_limit_us <= TIME_LIMIT_MAX_US:
        return refusals.invalid(
            f"a time limit is more than 0 and at most {TIME_LIMIT_MAX_US} µs, not {spec.time_limit_us}",
            code="invalid_time_limit",
        )
    return None
