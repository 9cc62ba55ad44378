"""What the gate remembers of prices beside those in force: what is announced, what tokens cost before, and terms of subscriptions.

Each is a list of steps in the order of their moments, looked up with `fabric.charging.in_force`.
"""

import msgspec

from fabric.charging.catalogue import Catalogue, Subscription
from fabric.charging.tariffs import Tariffs


class Announced(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Prices that begin later; what it doesn't name stays as it is then."""

    since_us: int
    tariffs: Tariffs | None = None
    catalogue: Catalogue | None = None


class PlanPrices(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a token cost from a moment on, by plan."""

    since_us: int
    microcny_per_ct: dict[str, int]


class OfferTerms(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a subscription is offered for, from a moment on."""

    since_us: int
    told_at_us: int
    """When its subscribers were told of it."""
    offer: Subscription | None
    """None = it is not offered any more."""
