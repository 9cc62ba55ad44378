"""LoRA adapters: models of which only the difference to another one is loaded. They run in their parent's replicas, beside it.

An adapter has its own name, price, scope and calls; what it runs on is its parent's, and so is not said of it again.
"""

from typing import Final

from fabric.gate import refusals
from fabric.gate.core import Core
from fabric.gate.instructions import Refusal
from fabric.gate.serving_events import ModelSpec
from fabric.gate.state import Model

ENABLE: Final = "enable-lora"
RANK: Final = "max-lora-rank"
RANKS: Final = ("1", "8", "16", "32", "64", "128", "256", "320", "512")
"""What the engine may be told as the highest rank."""
RANK_DEFAULT: Final = 16
ADAPTERS_MAX: Final = 128
"""Of one parent: each is looked at every second, and has an outbox of its own."""
_LISTED: Final = 5
_COUNTS: Final = ("max-loras", "max-cpu-loras")
_COUNT_MAX: Final = 1_024


def home_of(core: Core, model: Model) -> Model:
    """The model whose replicas serve it: its parent, or itself."""
    return core.state.models.get(model.spec.parent, model)


def takes_adapters(spec: ModelSpec) -> bool:
    return (ENABLE, "true") in spec.engine_args


def of(core: Core, parent: str) -> list[Model]:
    """The adapters of a model that are offered."""
    return [model for model in core.state.models.values() if model.spec.parent == parent and not model.withdrawn]


def misfit(core: Core, spec: ModelSpec) -> Refusal | None:
    """Why an offer doesn't go with what else is offered: as an adapter of its parent, or as the parent of its adapters."""
    before = core.state.models.get(spec.name)
    if before is not None and not before.withdrawn and before.spec.parent != spec.parent:
        was = f"as an adapter of {before.spec.parent}" if before.spec.parent else "as a model of its own"
        return refusals.conflict(
            f"{spec.name} is offered {was}: withdraw it first, or choose another name", code="model_exists"
        )
    if spec.parent:
        return _bad_adapter(core, spec)
    return _bad_options(spec) or _bad_parent(core, spec)


def keeps(core: Core, name: str) -> Refusal | None:
    """Why a model can't be withdrawn: what would its adapters run on?"""
    if adapters := of(core, name):
        names = sorted(each.spec.name for each in adapters)
        listed = ", ".join(names if len(names) <= _LISTED else [*names[:_LISTED], "…"])
        return refusals.conflict(
            f"{name} has {len(adapters)} adapters ({listed}): withdraw them first",
            code="has_adapters",
        )
    return None


def runs_elsewhere(spec: ModelSpec) -> Refusal:
    """An adapter has no replicas."""
    return refusals.invalid(
        f"{spec.name} is an adapter and runs in the replicas of {spec.parent}: scale that one", code="is_adapter"
    )


def _bad_adapter(core: Core, spec: ModelSpec) -> Refusal | None:
    parent = core.state.models.get(spec.parent)
    if parent is None or parent.withdrawn:
        return refusals.not_found("model", spec.parent[:128])
    if parent.spec.parent:
        return refusals.invalid(
            f"{spec.parent} is itself an adapter: name its parent, {parent.spec.parent}", code="invalid_parent"
        )
    if not takes_adapters(parent.spec):
        return refusals.invalid(
            f"{spec.parent} takes no adapters: its operator offers it with the engine options {ENABLE}=true and {RANK}="
            f"{RANK_DEFAULT} (or one of {', '.join(RANKS)})",
            code="no_adapters",
        )
    return _says_too_much(spec) or _too_private(parent.spec, spec) or _too_many(core, spec)


def _says_too_much(spec: ModelSpec) -> Refusal | None:
    said = {
        "accelerators": bool(spec.accelerators), "devices": spec.devices != 1, "engine_args": bool(spec.engine_args),
        "max_context": spec.max_context is not None, "replicas": (spec.replicas_min, spec.replicas_max) not in {(0, 1), (1, 1)},
        "ttft_objective": spec.ttft_objective_us is not None,
    }  # fmt: skip
    if given := [name for name, is_said in said.items() if is_said]:
        return refusals.invalid(
            f"{spec.name} runs in the replicas of {spec.parent}: leave out {', '.join(given)}", code="is_adapter"
        )
    return None


def _too_private(parent: ModelSpec, spec: ModelSpec) -> Refusal | None:
    if parent.dedicated_to in (None, spec.dedicated_to):
        return None
    return refusals.invalid(
        f"{parent.name} is only for {parent.dedicated_to}, and so are its adapters", code="invalid_parent"
    )


def _too_many(core: Core, spec: ModelSpec) -> Refusal | None:
    others = [each for each in of(core, spec.parent) if each.spec.name != spec.name]
    if len(others) >= ADAPTERS_MAX:
        return refusals.conflict(
            f"{spec.parent} has {len(others)} adapters, at most {ADAPTERS_MAX} may be: withdraw one",
            code="too_many_adapters",
        )
    return None


def _bad_options(spec: ModelSpec) -> Refusal | None:
    for name, value in spec.engine_args:
        good = value in RANKS if name == RANK else value.isdecimal() and 0 < int(value) <= _COUNT_MAX
        if name in (RANK, *_COUNTS) and not good:
            most = f"one of {', '.join(RANKS)}" if name == RANK else f"1 to {_COUNT_MAX}"
            return refusals.invalid(f"{name} is {value[:40]!r}: it is {most}", code="invalid_engine_arg")
    return None


def _bad_parent(core: Core, spec: ModelSpec) -> Refusal | None:
    """Offered anew, it must still suit its adapters."""
    for each in of(core, spec.name):
        if not takes_adapters(spec):
            return keeps(core, spec.name)
        if spec.dedicated_to not in (None, each.spec.dedicated_to):
            return refusals.conflict(
                f"its adapter {each.spec.name} isn't only for {spec.dedicated_to}: withdraw that first",
                code="has_adapters",
            )
    return None
