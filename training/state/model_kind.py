"""What a model is besides its weights: the class of Hugging Face's that it is of, its configuration and its adapters, as text.

A session keeps that beside the weights, so that a checkpoint alone is enough to write a folder that others load. `empty` makes
the model again, without weights. It makes classes of `transformers` and `peft` alone: what a checkpoint says runs no code of its
maker's.
"""

import copy
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from fabric.errors import InvalidRequest

_WRAPPERS: Final = ("module", "_orig_mod")
"""Attributes by which DistributedDataParallel and torch.compile hold the model, and begin the names of its weights."""
_TEXT_MAX: Final = 2**20
"""Characters of a configuration that is kept."""
Kind = Mapping[str, Any]
"""class, prefix (of its weights' names), config, generation, adapters: texts of JSON."""


def unwrapped(module: Any) -> tuple[Any, str]:
    """The model in what wraps it, and what its weights' names begin with by that."""
    prefix = ""
    while True:
        held = next((name for name in _WRAPPERS if _wraps(module, name)), None)
        if held is None:
            return module, prefix
        module, prefix = module._modules[held], f"{prefix}{held}."  # noqa: SLF001  # attributes may be anything


def _wraps(module: Any, name: str) -> bool:
    return list(getattr(module, "_modules", {})) == [name] and type(module).__module__.startswith("torch.")


def class_of(module: Any) -> type:
    """Its class, without what FSDP2 has put before it."""
    return next(kind for kind in type(module).__mro__ if "FSDPModule" not in [base.__name__ for base in kind.__mro__])


def is_adapted(module: Any) -> bool:
    """Whether it is one of peft's."""
    return any(kind.__name__ == "PeftModel" and kind.__module__.startswith("peft.") for kind in type(module).__mro__)


def is_pretrained(module: Any) -> bool:
    """Whether it is of a class of Hugging Face's, or of one made from it."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(module, transformers.PreTrainedModel)


def kind_of(module: Any) -> dict[str, Any] | None:
    """What `empty` makes the model of again; None = it is no model of Hugging Face's, or says it in no way that is kept."""
    model, prefix = unwrapped(module)
    with suppress(Exception):  # a model's own code may raise anything, and is asked for no more than this
        adapters = (
            {name: _adapter_text(config) for name, config in model.peft_config.items()} if is_adapted(model) else {}
        )
        model = model.get_base_model() if adapters else model
        if not is_pretrained(model) or not class_of(model).__module__.startswith("transformers."):
            return None  # a class of the script's own may have any name
        generation = getattr(model, "generation_config", None)
        kind = {
            "class": class_of(model).__name__,
            "prefix": prefix,
            "config": model.config.to_json_string(use_diff=False),
            "generation": "" if generation is None else generation.to_json_string(use_diff=False),
            "adapters": adapters,
        }
        return kind if len(repr(kind)) <= _TEXT_MAX else None
    return None


def _adapter_text(config: Any) -> str:
    said = copy.copy(config).to_dict()
    said.pop("runtime_config", None)
    return json.dumps(said, default=sorted)


def empty(kind: Kind) -> Any:
    """The model without weights, on the `meta` device.

    Raises:
        InvalidRequest: `model_unknown`: this version of transformers has no such class, or doesn't take its configuration.
    """
    import torch  # noqa: PLC0415  # takes seconds, and only who exports has both
    import transformers  # noqa: PLC0415

    made = getattr(transformers, str(kind["class"]), None)
    if not (isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)):
        raise _unknown(kind, "there is no such class in it")
    try:
        with torch.device("meta"):
            config_class: Any = made.config_class
            model = made(config_class.from_dict(json.loads(kind["config"])))
            if kind.get("generation") and model.can_generate():
                model.generation_config = transformers.GenerationConfig.from_dict(json.loads(kind["generation"]))
            return _with_adapters(model, kind.get("adapters", {}))
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise _unknown(kind, f"{type(error).__name__}: {str(error)[:200]}") from error


def emptied(model: Any) -> Any:
    """Another model of the same class, configuration and adapters, without weights."""
    import torch  # noqa: PLC0415

    base = model.get_base_model() if is_adapted(model) else model
    with torch.device("meta"):
        made: Any = class_of(base)(copy.deepcopy(base.config))
        if getattr(base, "generation_config", None) is not None:
            made.generation_config = copy.deepcopy(base.generation_config)
        return _adapted(made, copy.deepcopy(model.peft_config)) if is_adapted(model) else made


def _with_adapters(model: Any, adapters: Mapping[str, str]) -> Any:
    if not adapters:
        return model
    from peft import PeftConfig  # noqa: PLC0415

    made: Any = PeftConfig  # peft's own types are not all there
    return _adapted(model, {name: made.from_peft_type(**json.loads(said)) for name, said in adapters.items()})


def _adapted(model: Any, configs: Mapping[str, Any]) -> Any:
    from peft import get_peft_model  # noqa: PLC0415

    first, *others = configs
    adapted = get_peft_model(model, configs[first], adapter_name=first)
    for name in others:
        adapted.add_adapter(name, configs[name])
    return adapted


def _unknown(kind: Kind, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model is a {str(kind['class'])[:100]}, which the transformers of this environment can't make: {why}. Install the "
        "version that it was trained with, or give the model as the script builds it (model=)",
        code="model_unknown",
    )
