"""The one place where a charge is rounded: half-even for what is captured or priced, up for what is held."""


def half_even(numerator: int, denominator: int) -> int:
    """The nearest whole number; of two equally near the even one. The denominator is more than 0."""
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))


def up(numerator: int, denominator: int) -> int:
    """The least whole number that is not less. The denominator is more than 0."""
    return -(-numerator // denominator)
