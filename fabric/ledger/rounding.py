"""How money is rounded in the book: half-even."""


def half_even(numerator: int, denominator: int) -> int:
    """The nearest whole number; of two equally near the even one. The denominator is more than 0."""
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1))
