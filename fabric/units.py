"""Amounts and ids that must not be mixed.

Everything that is counted is an integer: tokens in µHs (10⁻⁶ H100-seconds), money in 10⁻⁶ CNY, time in µs, ratios in
parts per million. One device of weight 1 that runs for 1 µs at the reference utilisation burns exactly 1 µHs, so no
charge needs a fraction to be exact. Strings become amounts here and nowhere else; floats never do.
"""

import re
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction as Ratio
from typing import Final, NewType

from fabric.errors import InvalidAmount, InvalidRequest

Uhs = NewType("Uhs", int)
"""Compute tokens in 10⁻⁶ H100-seconds."""
MicroCny = NewType("MicroCny", int)
"""Money in 10⁻⁶ CNY."""
Micros = NewType("Micros", int)
"""A duration, or a time since the Unix epoch, in microseconds."""

AccountId = NewType("AccountId", str)
JobId = NewType("JobId", str)
LeaseId = NewType("LeaseId", str)
NodeId = NewType("NodeId", str)
HoldId = NewType("HoldId", str)
KeyId = NewType("KeyId", str)

Fraction = tuple[int, int]
"""Of one device, in lowest terms: (1, 4) is a quarter."""
FRACTION_MAX: Final = 1_000
"""A device has at most so many units."""
_DIGITS_MAX: Final = 4

UHS_PER_CT: Final = 3_600_000_000
MICROS_PER_S: Final = 1_000_000
PPM: Final = 1_000_000
INT64_MAX: Final = 2**63 - 1
INT32_MAX: Final = 2**31 - 1
AMOUNT_UHS_MAX: Final = 10_000_000 * UHS_PER_CT
"""The most that one booking, limit or hold is about: 0.4 % of what the books have room for in all, so that no slip of the
pen fills them.
"""
CT_DECIMALS: Final = 8
"""The finest decimal of a token that is a whole number of µHs (10⁻⁸ CT = 36 µHs)."""

THOUSANDTHS: Final = 1_000
"""Of an LLM token: what packages of them are counted in."""
LLM: Final = "llm:"
"""How the names of the assets of such packages begin."""

_PLAIN_DECIMAL = re.compile(r"\d{1,19}(\.\d+)?", re.ASCII)


def parse_ct(text: str | int | Decimal) -> Uhs:
    """Compute tokens as a person writes them ("1.5", 2, Decimal("0.1")), in µHs.

    Raises:
        InvalidAmount: a float, scientific notation, a sign, more than 8 decimals, zero, or beyond int64.
    """
    if isinstance(text, bool) or not isinstance(text, str | int | Decimal):
        raise InvalidAmount(given=repr(text), why="give tokens as an integer or a decimal string, never a float")
    plain = str(text).strip()
    if not _PLAIN_DECIMAL.fullmatch(plain):
        raise InvalidAmount(given=plain, why='write tokens as a plain positive decimal such as "12.5"')
    if len(plain.partition(".")[2]) > CT_DECIMALS:
        raise InvalidAmount(given=plain, why=f"at most {CT_DECIMALS} decimals of a token can be counted")
    uhs = int(Decimal(plain) * UHS_PER_CT)
    if uhs == 0:
        raise InvalidAmount(given=plain, why="the amount must be more than zero")
    if uhs > INT64_MAX:
        raise InvalidAmount(given=plain, why=f"at most {INT64_MAX // UHS_PER_CT} tokens fit an account")
    return Uhs(uhs)


def parse_fraction(text: str) -> Fraction | None:
    """A part of one device as a person writes it: "1/4", "0.25"; None of all of it ("1", "4/4").

    Raises:
        InvalidRequest: no such number, nothing, more than one, or finer than a thousandth.
    """
    plain = text.strip()
    over, _, under = plain.partition("/")
    if "/" in plain and all(part.isascii() and part.isdigit() and len(part) <= _DIGITS_MAX for part in (over, under)):
        given = Ratio(int(over), int(under) or 1) if int(under) else None
    else:
        given = Ratio(plain) if _PLAIN_DECIMAL.fullmatch(plain) and "/" not in plain else None
    if given is None or not 0 < given <= 1 or given.denominator > FRACTION_MAX:
        raise InvalidRequest(
            f"{plain[:40]!r} is no part of a device: write it as 1/4 or 0.25, more than 0, at most 1, in parts of at most"
            f" {FRACTION_MAX}; `fabric ops nodes` shows which there are",
            code="invalid_fraction",
            given=plain[:40],
        )
    return None if given == 1 else (given.numerator, given.denominator)


def lowest(over: int, under: int) -> Fraction:
    """The same part in lowest terms."""
    ratio = Ratio(over, under)
    return ratio.numerator, ratio.denominator


def format_fraction(fraction: Fraction | None) -> str:
    """As in `1/4`; nothing for whole devices."""
    return "" if fraction is None else f"{fraction[0]}/{fraction[1]}"


def format_ct(uhs: int, *, decimals: int = 4, round_up: bool = False) -> str:
    """µHs as tokens for people: rounded down (or up) to `decimals` places, trailing zeros dropped.

    An amount so small that fewer than two digits of it would be left is given two: what isn't nothing is never shown as 0.
    """
    rounding = ROUND_CEILING if round_up else ROUND_FLOOR
    if uhs > 0 and not round_up:
        decimals = max(decimals, 1 - (Decimal(uhs) / UHS_PER_CT).adjusted())
    ct = (Decimal(uhs) / UHS_PER_CT).quantize(Decimal(1).scaleb(-decimals), rounding=rounding)
    text = f"{ct:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_cny(text: str) -> MicroCny:
    """Money as a person writes it ("12.50"), in 10⁻⁶ CNY.

    Raises:
        InvalidAmount: no plain positive decimal, more than 6 decimals, zero, or beyond int64.
    """
    plain = text.strip()
    amount = Decimal(plain) * MICROS_PER_S if _PLAIN_DECIMAL.fullmatch(plain) else Decimal(0)
    if not 0 < amount <= INT64_MAX or amount != int(amount):
        raise InvalidAmount(
            given=plain, why='write CNY as a plain positive decimal such as "12.50", with at most 6 decimals'
        )
    return MicroCny(int(amount))


def format_cny(amount: int) -> str:
    """10⁻⁶ CNY as yuan with at least two decimals."""
    whole, rest = divmod(abs(amount), 1_000_000)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole}.{decimals}"


def family_of(asset: str) -> str:
    """As people call it: `llm:qwen`."""
    return asset.partition("@")[0]


def format_llm_tokens(units: int) -> str:
    """Thousandths as tokens for people, trailing zeros dropped."""
    whole, rest = divmod(abs(units), THOUSANDTHS)
    return f"{'-' if units < 0 else ''}{whole}" + (f".{rest:03d}".rstrip("0") if rest else "")
