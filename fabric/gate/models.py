"""Models that are offered: which, on what, between which bounds, and at what rates.

What is journaled is what the operator wants; which replicas there are, and how they get on, nobody here knows. A model's
price has versions, all of which are kept, so that a call settled late costs what it cost when it began.
"""

import re
from typing import Final

from fabric.charging.in_force import in_force
from fabric.charging.rates import Rate, flaw_of, rate_for
from fabric.gate import lora, refusals
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.serving_events import CallUsed, ModelSpec, OfferModel, ScaleModel, WithdrawModel
from fabric.gate.specs import DEVICES_MAX
from fabric.gate.state import Model, Price
from fabric.units import MICROS_PER_S, AccountId

ENGINE_ARGS: Final = frozenset(
    {
        "block-size", "chat-template", "convert", "dtype", "enable-auto-tool-choice", "enable-chunked-prefill",
        "enable-lora", "enable-prefix-caching", "enforce-eager", "gpu-memory-utilization", "kv-cache-dtype",
        "kv-cache-memory-bytes", "load-format", "max-cpu-loras", "max-lora-rank", "max-loras", "max-num-batched-tokens",
        "max-num-seqs", "quantization", "reasoning-parser", "runner", "seed", "swap-space", "tool-call-parser",
    }
)  # fmt: skip
"""Options of the engine that an offer may set. None of them runs code, opens a port, or changes what is metered."""
REPLICAS_MAX: Final = 1_000
CONTEXT_MAX: Final = 100_000_000
TTFT_MAX_US: Final = 3_600 * MICROS_PER_S
TEXT_MAX: Final = 500
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?", re.ASCII)


def offer(core: Core, event: OfferModel) -> Outcome:
    """Take a model into the offer, or replace it there."""
    if core.state.tariffs is None:
        return refusals.not_configured()
    spec = event.spec
    if refusal := _malformed(core, spec):
        return refusal
    rates = _stamped(event.rates, spec.name) if event.rates else _rates_in_force(core, spec)
    if refusal := _bad_rates(core, spec, rates):
        return refusal
    model = core.state.models.get(spec.name)
    if model is None:
        model = core.state.models[spec.name] = Model(spec=spec, offered_at_us=core.now_us, changed=0)
    elif model.withdrawn:
        model.offered_at_us = core.now_us
    model.spec, model.withdrawn, model.follows_tariffs = spec, False, not event.rates
    model.changed += 1
    _price(core, model, rates)
    for adapter in lora.of(core, spec.name):
        _follow(core, adapter)
    return Accepted(facts={"model": spec.name, "rate_version": model.prices[-1].version})


def scale(core: Core, event: ScaleModel) -> Outcome:
    model = core.state.models.get(event.model)
    if model is None or model.withdrawn:
        return _unknown(event.model)
    if model.spec.parent:
        return lora.runs_elsewhere(model.spec)
    spec = _scaled(model.spec, replicas_min=event.replicas_min, replicas_max=event.replicas_max)
    if refusal := _bad_numbers(spec):
        return refusal
    model.spec = spec
    model.changed += 1
    return Accepted(facts={"model": spec.name})


def withdraw(core: Core, event: WithdrawModel) -> Outcome:
    model = core.state.models.get(event.model)
    if model is None or model.withdrawn:
        return _unknown(event.model)
    if refusal := lora.keeps(core, model.spec.name):
        return refusal
    model.withdrawn = True
    model.changed += 1
    return Accepted(facts={"model": event.model})


def reprice(core: Core, *, dated_us: int | None = None) -> None:
    """Tariffs were set: models without rates of their own follow them, where these have one; adapters come after parents.

    Args:
        core: whose models.
        dated_us: since when the tariffs hold, of those that had been announced; None = since now.
    """
    for model in sorted(core.state.models.values(), key=lambda model: bool(model.spec.parent)):
        if not model.withdrawn:
            _follow(core, model, dated_us=dated_us)


def rate_of(core: Core, call: CallUsed) -> Rate | None:
    """The rate of the version that the call names, or else of the one in force when it began."""
    model = core.state.models.get(call.model)
    if model is None:
        return None
    price = price_of(model, version=call.rate_version, at_us=call.started_at_us)
    return None if price is None else rate_for(price.rates, accelerator=call.accelerator)


def price_of(model: Model, *, version: int, at_us: int) -> Price | None:
    """A version of the price; 0 = the one in force at that time, or the first, if that is before all of them. So is of a version that
    others had followed by then on a date that was known.
    """
    then = in_force(model.prices, at_us) or model.prices[0]
    found = next((price for price in reversed(model.prices) if price.version == version), None)
    if version == 0:
        return then
    is_over = found is not None and any(
        price.dated and price.since_us <= at_us for price in model.prices if price.version > version
    )
    return then if is_over else found


def visible_to(model: Model, account_id: AccountId | None) -> bool:
    """Whether an account (None = the operator) sees that the model is offered."""
    return not model.withdrawn and (account_id is None or model.spec.dedicated_to in (None, account_id))


def _price(core: Core, model: Model, rates: tuple[Rate, ...], *, dated_us: int | None = None) -> None:
    """Other rates than the ones in force are a new version."""
    current = model.prices[-1] if model.prices else None
    version = 1 if current is None else current.version + 1
    if current is None or _unversioned(current.rates) != _unversioned(rates):
        stamped = tuple(_versioned(rate, model.spec.name, version) for rate in rates)
        since_us = core.now_us if dated_us is None else dated_us
        model.prices.append(Price(version=version, since_us=since_us, rates=stamped, dated=dated_us is not None))


def _follow(core: Core, model: Model, *, dated_us: int | None = None) -> None:
    """What a model without rates of its own follows has changed."""
    if model.follows_tariffs:
        rates = _rates_in_force(core, model.spec)
        if not _bad_rates(core, model.spec, rates):
            _price(core, model, rates, dated_us=dated_us)


def _rates_in_force(core: Core, spec: ModelSpec) -> tuple[Rate, ...]:
    """What a model costs that has no rates of its own: as the tariffs say of its name; else an adapter as much as its parent
    costs now, and other models as the tariffs say of any.
    """
    rates = tuple(rate for rate in core.tariffs.rates if rate.model == spec.name)
    if not rates and spec.parent:
        rates = core.state.models[spec.parent].prices[-1].rates
    return _stamped(rates or tuple(rate for rate in core.tariffs.rates if not rate.model), spec.name)


def _stamped(rates: tuple[Rate, ...], name: str) -> tuple[Rate, ...]:
    return tuple(_versioned(rate, name, 0) for rate in rates)


def _unversioned(rates: tuple[Rate, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((rate.accelerator, rate.numbers) for rate in rates)


def _versioned(rate: Rate, name: str, version: int) -> Rate:
    return Rate(
        model=name,
        version=version,
        accelerator=rate.accelerator,
        input_uhs_per_mtok=rate.input_uhs_per_mtok,
        cached_uhs_per_mtok=rate.cached_uhs_per_mtok,
        output_uhs_per_mtok=rate.output_uhs_per_mtok,
        reasoning_uhs_per_mtok=rate.reasoning_uhs_per_mtok,
    )


def _scaled(spec: ModelSpec, *, replicas_min: int, replicas_max: int) -> ModelSpec:
    return ModelSpec(
        name=spec.name,
        source=spec.source,
        parent=spec.parent,
        accelerators=spec.accelerators,
        devices=spec.devices,
        replicas_min=replicas_min,
        replicas_max=replicas_max,
        ttft_objective_us=spec.ttft_objective_us,
        dedicated_to=spec.dedicated_to,
        max_context=spec.max_context,
        engine=spec.engine,
        engine_args=spec.engine_args,
    )


# -- what makes no sense -----------------------------------------------------------------------------------------------


def _malformed(core: Core, spec: ModelSpec) -> Refusal | None:
    if not _NAME.fullmatch(spec.name):
        return refusals.invalid(
            f"{spec.name[:TEXT_MAX]!r} can't name a model: use 1 to 128 letters, digits, '.', '_', '/' and '-', beginning"
            " and ending with a letter or digit",
            code="invalid_model",
        )
    if not 0 < len(spec.source) <= TEXT_MAX:
        return refusals.invalid(
            f"a model's source has 1 to {TEXT_MAX} characters, not {len(spec.source)}: a directory, archive:KEY or"
            " job:ID",
            code="invalid_source",
        )
    for name in spec.accelerators:
        if name not in core.prices.accelerators:
            return refusals.unknown_accelerator(name, tuple(core.prices.accelerators))
    if spec.dedicated_to is not None and spec.dedicated_to not in core.state.accounts:
        return refusals.not_found("account", spec.dedicated_to)
    return _bad_engine_args(spec) or _bad_numbers(spec) or lora.misfit(core, spec)


def _bad_engine_args(spec: ModelSpec) -> Refusal | None:
    for name, value in spec.engine_args:
        if name not in ENGINE_ARGS:
            return refusals.invalid(
                f"the engine option {name[:TEXT_MAX]!r} can't be set: choose of {', '.join(sorted(ENGINE_ARGS))}",
                code="invalid_engine_arg",
            )
        if len(value) > TEXT_MAX:
            return refusals.invalid(
                f"the value of {name!r} has {len(value)} characters, at most {TEXT_MAX} are allowed",
                code="invalid_engine_arg",
            )
    return None


def _bad_numbers(spec: ModelSpec) -> Refusal | None:
    checks = (
        ("devices", spec.devices, 1, DEVICES_MAX),
        ("replicas_max", spec.replicas_max, 1, REPLICAS_MAX),
        ("replicas_min", spec.replicas_min, 0, spec.replicas_max),
        ("ttft_objective_us", spec.ttft_objective_us, 1, TTFT_MAX_US),
        ("max_context", spec.max_context, 1, CONTEXT_MAX),
    )
    for name, value, least, most in checks:
        if value is not None and not least <= value <= most:
            return refusals.invalid(f"{name} is {value}: it is {least} to {most}", code="invalid_count", field=name)
    return None


def _bad_rates(core: Core, spec: ModelSpec, rates: tuple[Rate, ...]) -> Refusal | None:
    if not rates:
        return refusals.invalid(
            f"there are no rates for {spec.name!r}: give some (`fabric calibrate serving` measures them), or add it to the"
            " tariffs",
            code="no_rates",
            model=spec.name,
        )
    types = [rate.accelerator for rate in rates]
    for rate in rates:
        if flaw := flaw_of(rate):
            return refusals.invalid(flaw, code="invalid_rate", model=spec.name)
        if types.count(rate.accelerator) > 1:
            return refusals.invalid(
                f"{rate.accelerator or 'any accelerator'} has two rates: give one", code="invalid_rate", model=spec.name
            )
    home = core.state.models[spec.parent].spec if spec.parent else spec
    for name in home.accelerators or ("",):
        if rate_for(rates, accelerator=name) is None:
            return refusals.invalid(
                f"there is no rate for {spec.name!r} on {name or 'any accelerator'}: add one", code="no_rates"
            )
    return None


def _unknown(name: str) -> Refusal:
    return refusals.not_found("model", name[:TEXT_MAX])
