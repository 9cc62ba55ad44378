"""A slice: an ordinary hold of one account from which a replica spends by itself, and how large it should be.

Pure. The idea is telecom charging's (RFC 8506: grant, threshold, validity time, final unit): ask the ledger for a bit
more than is needed soon, spend from it locally, renew it when a fifth is left, and stop using it before it ends.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from fabric.charging.packages import Limit
from serving.calls import Call, Usage, Wanted

Charge = Callable[[Usage], int]
"""What a usage costs in µHs. It never falls when a count rises; the ledger computes the same."""


@dataclass(frozen=True, slots=True)
class Payer:
    """Whose tokens: an account, or one key of it where the key has a limit of its own."""

    account_id: str
    key_id: str = ""
    covered: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """How a replica sizes and keeps its slices.

    Args:
        grant_tokens: completion tokens a call is given at a time, beyond what it has used.
        horizon_us: a slice should last so long at the account's present burn.
        renew_part: renewed when one part in this many is left.
        share: a slice is at most one part in this many of what is free, so that many replicas can have one.
        ttl_us: validity of a hold; each message to the ledger extends it.
        margin_us: a slice is not used any more so long before it ends.
        report_us: ended calls are reported within this time while the slice is in use.
        idle_us: a slice that no call uses is settled and given back after this time.
        report_calls: in one message at most, well below what the ledger takes.
        report_bytes: of calls in one message at most, as their names and counts come to.
        retry_us: how soon what the ledger would not even keep is offered to it again; doubled each time, up to an hour.
    """

    grant_tokens: int = 256
    horizon_us: int = 5_000_000
    renew_part: int = 5
    share: int = 8
    ttl_us: int = 300_000_000
    margin_us: int = 5_000_000
    report_us: int = 5_000_000
    idle_us: int = 2_000_000
    report_calls: int = 500
    report_bytes: int = 256 << 10
    retry_us: int = 5_000_000


@dataclass(frozen=True, slots=True)
class Ask:
    """One message to the ledger. Sent again unchanged until it is answered: the ledger carries it out once.

    `record` is for calls that cost nothing and need no hold; `keep` has one call kept as open that was refused in every
    other way, with what it was refused with.
    """

    kind: Literal["authorize", "update", "settle", "record", "keep"]
    hold_id: str
    payer: Payer
    seq: int
    calls: tuple[Call, ...] = ()
    amount_uhs: int = 0
    minimum_uhs: int = 0
    asked_at_us: int = 0
    code: str = ""
    reason: str = ""
    wanted: Wanted | None = None


@dataclass(slots=True)
class Pot:
    """What a slice holds of one package of LLM tokens, in thousandths: `bound` + `spent` ≤ `held`, as of compute tokens."""

    asset: str
    held: int = 0
    spent: int = 0
    bound: int = 0
    free: int = 0
    """What the account had free beside at the last answer."""
    burned: int = 0
    burned_at_us: int = 0


@dataclass(slots=True)
class Slice:
    """One hold as the replica sees it: `bound` + `spent` ≤ `held`, always."""

    payer: Payer
    hold_id: str
    held_uhs: int = 0
    """What the ledger holds, as far as it has answered."""
    spent_uhs: int = 0
    """Charges of ended calls that the ledger has not captured yet."""
    bound_uhs: int = 0
    """The most that the calls now open may come to, with what they have been granted."""
    until_us: int = 0
    """End of validity by the replica's own clock, from before the ledger was asked; 0 = never granted."""
    seq: int = 0
    final: bool = False
    """At the last answer the account had no more to give."""
    free_uhs: int | None = None
    """What the account had free beside, if the ledger said so."""
    within_key: bool = False
    """It was the limit of the payer's key that left no more."""
    asked: Ask | None = None
    ended: list[Call] = field(default_factory=list)
    """Calls not reported yet."""
    open_calls: int = 0
    used_at_us: int = 0
    report_since_us: int = 0
    burned_uhs: int = 0
    """Decayed sum of charges: the account's burn over about one horizon."""
    burned_at_us: int = 0
    quiet_until_us: int = 0
    """No unneeded renewal before this: the account gave nothing a moment ago."""
    report_calls_max: int | None = None
    """Fewer in a message than the terms say: a report was refused, and which of its calls is at fault is being found."""
    pots: dict[str, Pot] = field(default_factory=dict)
    """What it holds of packages, in the order in which they pay."""

    def available_uhs(self, now_us: int, margin_us: int) -> int:
        """What may still be granted to calls."""
        return 0 if now_us >= self.until_us - margin_us else self.held_uhs - self.spent_uhs - self.bound_uhs

    def packages(self, now_us: int, margin_us: int) -> list[Limit]:
        """What may still be granted to calls of packages."""
        if not self.pots or now_us >= self.until_us - margin_us:
            return []
        return [(pot.asset, pot.held - pot.spent - pot.bound) for pot in self.pots.values()]

    def burn(self, uhs: int, now_us: int, horizon_us: int) -> None:
        """Note that so much was used; what is older than a horizon fades, by halves."""
        self.burned_uhs = faded(self.burned_uhs, now_us - self.burned_at_us, horizon_us) + uhs
        self.burned_at_us = now_us


@dataclass(slots=True)
class OpenCall:
    """A call in the engine. `paid` of its completion tokens are covered by the slice; `wants` is the most it may get."""

    call_id: str
    payer: Payer
    key_id: str
    usage: Usage
    wants: int
    paid: int
    bound_uhs: int
    started_at_us: int
    piece: Slice
    rate_version: int
    charge: Charge
    limits: tuple[Limit, ...] = ()
    """What it may take of packages, in the order in which they pay."""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Short:
    """Not covered yet: ask for `need_uhs`, then try again. `free_uhs` was available. `within_key`: at the last answer it was the
    limit of the payer's key that left no more, and not what the account has. `prompt_tokens` and `completion_tokens` are what
    no package covers.
    """

    need_uhs: int
    free_uhs: int
    within_key: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


_HALVES: Final = 40


def faded(uhs: int, elapsed_us: int, horizon_us: int) -> int:
    """An amount after it has halved once a horizon, linearly between: integers, the same everywhere."""
    halves, rest_us = divmod(max(0, elapsed_us), horizon_us)
    if halves > _HALVES:
        return 0
    halved = uhs >> halves
    return halved - halved * rest_us // (2 * horizon_us)


def size_uhs(piece: Slice, *, need_uhs: int, unit_uhs: int, now_us: int, terms: Terms) -> int:
    """How large the free part of a slice should be: the burn of a horizon, at least a few grants, at most a fair
    share of what is free; when the account runs dry, no more than is needed.
    """
    least = need_uhs + unit_uhs
    wanted = max(least, 2 * faded(piece.burned_uhs, now_us - piece.burned_at_us, terms.horizon_us))
    if piece.free_uhs is not None:
        wanted = min(wanted, max(piece.free_uhs // terms.share, need_uhs))
    return need_uhs if piece.final and need_uhs else max(wanted, need_uhs)


def worst_uhs(charge: Charge, prompt: int, completion: int) -> int:
    """The most that so many tokens can come to, cached or not, reasoning or not."""
    return max(
        charge(Usage(prompt, cached, completion, reasoning)) for cached in {0, prompt} for reasoning in {0, completion}
    )


def affordable(charge: Charge, prompt: int, *, least: int, most: int, budget_uhs: int) -> int:
    """The most completion tokens, between `least` (known to fit) and `most`, whose worst charge is within budget."""
    if worst_uhs(charge, prompt, most) <= budget_uhs:
        return most
    low, high = least, most
    while high - low > 1:
        middle = (low + high) // 2
        if worst_uhs(charge, prompt, middle) <= budget_uhs:
            low = middle
        else:
            high = middle
    return low
