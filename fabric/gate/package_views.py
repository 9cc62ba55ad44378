"""Packages of LLM tokens as they are seen from outside: plain values, in thousandths of a token of weight 1."""

import msgspec


class PackageRoom(msgspec.Struct, frozen=True, kw_only=True):
    """A package of LLM tokens beside a client's hold, in thousandths of a token of weight 1."""

    asset: str
    held: int
    """What the hold has of it."""
    free: int
    """What it could be given more."""


class PackageLotView(msgspec.Struct, frozen=True, kw_only=True):
    """One lot of a package that isn't used up, in thousandths of a token of weight 1."""

    lot_id: str
    origin: str
    granted: int
    free: int
    held: int
    used: int
    effective_at_us: int
    expires_at_us: int | None
    scope: str
    price_microcny: int
    worth_uhs: int


class PackageView(msgspec.Struct, frozen=True, kw_only=True):
    """What an account has of one package of LLM tokens, in thousandths of a token of weight 1."""

    asset: str
    family: str
    weights: tuple[int, ...]
    """What a token of the prompt, a cached one, one of the answer and one of reasoning take."""
    granted: int
    """Of all lots there have ever been: free + held + used + expired + voided."""
    free: int
    held: int
    used: int
    expired: int
    voided: int
    worth_uhs: int
    """The most that calls would cost in compute tokens which what is left can pay for."""
    lots: tuple[PackageLotView, ...]
    """Those that aren't used up."""
