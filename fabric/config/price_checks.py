"""Whether prices are what they say they are reckoned from: of a file, or of what a fabric has in force."""

from pathlib import Path

import msgspec

from fabric.charging.basis import Finding, findings
from fabric.charging.tariffs import Tariffs
from fabric.config.prices import load_tariffs
from fabric.errors import InvalidRequest


class _InForce(msgspec.Struct, frozen=True):
    """What a fabric answers that is asked for its prices, as far as it is looked at here."""

    tariffs: Tariffs


def check_file(path: Path | str) -> tuple[Finding, ...]:
    """What came of checking each weight of a tariffs file.

    Raises:
        InvalidConfig: it can't be read.
    """
    return findings(load_tariffs(path).weights)


def check_in_force(document: bytes | str) -> tuple[Finding, ...]:
    """What came of checking each weight of the prices that a fabric has answered with.

    Raises:
        InvalidRequest: they are nothing of the kind.
    """
    try:
        return findings(msgspec.json.decode(document, type=_InForce).tariffs.weights)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the fabric's prices can't be read: {error}", code="invalid_prices") from error
