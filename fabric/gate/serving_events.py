"""Events of metered inference: which models are offered, holds that gateways keep, and the calls that these pay for.

A gateway holds tokens for an account, grants from that on its own, and says what was used: see `fabric.gate.events`.
"""

import msgspec

from fabric.charging.rates import Rate
from fabric.gate.event import Event
from fabric.ledger.scopes import Use
from fabric.units import AccountId, HoldId, KeyId

# -- models, from the operator -----------------------------------------------------------------------------------------


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A language model as the operator offers it."""

    name: str
    """What clients ask for."""
    source: str
    """A directory, `archive:<key>`, `job:<job id>`, or a name of a model hub."""
    parent: str = ""
    """The offered model that this one is a LoRA adapter of: the parent's replicas serve it, beside the parent itself."""
    accelerators: tuple[str, ...] = ()
    """Types in order of preference; () = any."""
    devices: int = 1
    """Of one replica."""
    replicas_min: int = 0
    """0 = down to none while nobody asks."""
    replicas_max: int = 1
    ttft_objective_us: int | None = None
    """Time to first token that more replicas are started to keep."""
    dedicated_to: AccountId | None = None
    """Only this account sees it; its own lease pays for the devices. Of an adapter: it pays like anybody for a parent that
    isn't its own.
    """
    max_context: int | None = None
    """LLM tokens; None = what the model says of itself."""
    engine: str = "vllm"
    """The name of what runs it; which there are, the door knows."""
    engine_args: tuple[tuple[str, str], ...] = ()
    """(name, value) of those engine options that may be set."""


class OfferModel(Event, frozen=True, kw_only=True, tag="offer_model"):
    """Serve this model from now on; offered again, it is replaced. Other rates are a new version of its price."""

    spec: ModelSpec
    rates: tuple[Rate, ...] = ()
    """() = those of the tariffs; of an adapter that these don't name, its parent's. The gate fills in model and version."""
    request_id: str = ""


class ScaleModel(Event, frozen=True, kw_only=True, tag="scale_model"):
    """Other bounds on how many replicas there are."""

    model: str
    replicas_min: int
    replicas_max: int
    request_id: str = ""


class WithdrawModel(Event, frozen=True, kw_only=True, tag="withdraw_model"):
    """Serve it no longer. Calls that are under way are settled at its rates."""

    model: str
    request_id: str = ""


# -- holds and calls ---------------------------------------------------------------------------------------------------


class CallUsed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One call of a language model that ended, as its meter counted it: the gate rates it."""

    call_id: str
    """Unique for ever within the account: a call is charged once, whatever hold it is reported with."""
    model: str
    accelerator: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    started_at_us: int
    ended_at_us: int
    ended: str = ""
    key_id: KeyId | None = None
    rate_version: int = 0
    """0 = the rates that were in force when it started."""
    covered: bool = False
    """Ran on the account's own dedicated lease: recorded, and charged nothing."""
    packages: tuple[tuple[str, int], ...] = ()
    """What its meter had promised it of packages of LLM tokens, in the order in which they pay: asset, thousandths."""
    tags: tuple[str, ...] = ()
    """What it was marked with when it was made, with what its key and project gave it."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The LLM tokens that more is asked for: packages are held for as many of them as there are, compute tokens for the rest."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    least_prompt_tokens: int = 0
    """Of them what is of use at least."""
    least_completion_tokens: int = 0
    rate_version: int = 0
    """Of the rates by which the amount was reckoned; 0 = those in force."""


class Authorize(Event, frozen=True, kw_only=True, tag="authorize"):
    """Hold tokens for something the gate doesn't place itself (an inference slice). Leaks are impossible: `ttl_us`."""

    hold_id: HoldId
    account_id: AccountId
    amount_uhs: int
    use: Use
    ttl_us: int
    minimum_uhs: int | None = None
    """Grant less than `amount_uhs`, but not less than this: then `final` is set. None = all or nothing."""
    key_id: KeyId | None = None
    """The key that it is held for: its limit counts too."""
    request_id: str = ""
    wanted: Wanted | None = None
    """What `amount_uhs` and `minimum_uhs` are for; None = compute tokens alone are held."""


class UpdateHold(Event, frozen=True, kw_only=True, tag="update_hold"):
    """Capture `used_uhs` and what `calls` cost, and ask for `more_uhs`, in one step. `seq` counts up from 1; a repeated
    seq repeats the answer.
    """

    hold_id: HoldId
    account_id: AccountId
    seq: int
    used_uhs: int = 0
    more_uhs: int = 0
    ttl_us: int | None = None
    minimum_uhs: int = 1
    """Grant nothing more if it is less than this."""
    calls: tuple[CallUsed, ...] = ()
    wanted: Wanted | None = None
    """What `more_uhs` and `minimum_uhs` are for; None = compute tokens alone are held."""


class SettleHold(Event, frozen=True, kw_only=True, tag="settle_hold"):
    """Capture `used_uhs` and what `calls` cost, and free the rest. Late is accepted; more than was held is booked and
    flagged.
    """

    hold_id: HoldId
    account_id: AccountId
    seq: int
    used_uhs: int = 0
    calls: tuple[CallUsed, ...] = ()


class ReleaseHold(Event, frozen=True, kw_only=True, tag="release_hold"):
    hold_id: HoldId
    account_id: AccountId
    seq: int


class KeepUsage(Event, frozen=True, kw_only=True, tag="keep_usage"):
    """A call that its meter could report in no other way: kept as open, until an operator settles it or writes it off.

    Whatever it says is kept as it was said. `code` and `reason` are what the report was refused with.
    """

    account_id: AccountId
    hold_id: HoldId
    call: CallUsed
    code: str = ""
    reason: str = ""


class SettleUsage(Event, frozen=True, kw_only=True, tag="settle_usage"):
    """Charge an open call now that it can be: from what is free, and what isn't is written off."""

    account_id: AccountId
    call_id: str
    request_id: str = ""


class WriteOffUsage(Event, frozen=True, kw_only=True, tag="write_off_usage"):
    """Let the operator bear an open call, and close it."""

    account_id: AccountId
    call_id: str
    reason: str = ""
    request_id: str = ""


class RecordCalls(Event, frozen=True, kw_only=True, tag="record_calls"):
    """Calls that no hold pays for, because the account's own lease does: recorded. All of them are `covered`."""

    account_id: AccountId
    calls: tuple[CallUsed, ...]


AnyServingEvent = (
    Authorize
    | UpdateHold
    | SettleHold
    | ReleaseHold
    | RecordCalls
    | KeepUsage
    | SettleUsage
    | WriteOffUsage
    | OfferModel
    | ScaleModel
    | WithdrawModel
)
