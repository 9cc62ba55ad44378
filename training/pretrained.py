"""Begin a run from the weights of a Hugging Face folder: all of them, or a refusal that names what is missing.

    from training.pretrained import load_weights

    model = AutoModelForCausalLM.from_config(config)
    load_weights(model, folder)              # before the session: what a checkpoint holds counts more
    run = session(model=model, opt=opt)

The weights are copied into those of the model, so that optimizers keep theirs; of a sharded model each rank takes its part. Only
safetensors are read, and nothing outside of the folder (`training.state.weight_files`); its configuration is not read at all, so no
code of its maker's runs. Names of other versions, and experts that are kept one by one, are understood as transformers
understands them.
"""

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from fabric.errors import InvalidRequest
from training.integrations.quiet import quietly
from training.state import model_kind
from training.state.plain import is_sharded, widest
from training.state.sharded_state import cut
from training.state.weight_files import WeightFiles, opened

_NAMES_MAX: Final = 5


def load_weights(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    new: Iterable[str] = (),
    unused: Iterable[str] = (),
    rounds: bool = False,
    adapter_name: str = "default",
) -> None:
    """Copy the weights of a folder into the model. Nothing is changed if they don't fit.

    Of a sharded model all ranks call it; each reads all files, and holds the whole model on the host for that time.

    Args:
        model: any module; of transformers, names are understood as `from_pretrained` does. Of peft, `folder` is an adapter's.
        folder: with model.safetensors, or model.safetensors.index.json and its files; or adapter_model.safetensors.
        new: beginnings of names that the folder need not have: these weights stay as they are, as of a new head.
        unused: beginnings of names in the folder that the model need not have.
        rounds: whether weights may lose bits by the model's narrower type.
        adapter_name: which of a peft model's.

    Raises:
        InvalidRequest: `model_without_memory`: it is on the meta device; `no_weights`; `bad_weights`: the files are damaged, or lead out of the folder; `weights_differ`: some
            are missing, unexpected, of another shape or of a wider type: how many, and which.
    """
    model, _ = model_kind.unwrapped(model)
    where = Path(folder)
    if any(value.is_meta for value in model.parameters()):
        raise InvalidRequest(
            "the model is on the meta device, where no weights can be: give it memory first, by model.to_empty(device=...)",
            code="model_without_memory",
        )
    if model_kind.is_adapted(model):
        from peft import get_peft_model_state_dict  # noqa: PLC0415

        own, files = get_peft_model_state_dict(model, adapter_name=adapter_name), opened(where, adapter=True)
        found = _Found(files, set(own).difference(files), set(files).difference(own))
    else:
        own, files = model.state_dict(), opened(where)
        if model_kind.is_pretrained(model):
            found = _as_transformers(model, files)
        else:
            missing = _untied(own, set(own).difference(files))
            found = _Found(files, missing, set(files).difference(own))
    own = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    _check(where, own, found, new=_beginnings(new), unused=_beginnings(unused), rounds=rounds)
    with torch.no_grad():
        for name, target in own.items():
            if name in found.weights and name not in found.missing:
                value = found.weights[name]
                target.copy_(cut(value, target) if is_sharded(target) else value)


def _beginnings(given: Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


class _Found:
    """What a folder has for a model."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        missing: set[str],
        unexpected: set[str],
        misshaped: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """By the model's names; `misshaped` has the shapes of what does not fit."""
        self.weights, self.missing, self.unexpected = weights, missing, unexpected
        self.misshaped = dict(misshaped or {})


def _as_transformers(model: Any, files: WeightFiles) -> _Found:
    """As its class loads them, into another model of the same configuration."""
    tensors = dict(files)
    types = {value.dtype for value in tensors.values() if value.is_floating_point()}
    loads_as = widest(types or {torch.float32})
    with quietly():
        loaded, said = model_kind.class_of(model).from_pretrained(  # type: ignore[attr-defined]
            None, config=copy.deepcopy(model.config), state_dict=tensors, dtype=loads_as,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    misshaped = {name: tuple(shape) for name, shape, _ in said["mismatched_keys"]}
    return _Found(loaded.state_dict(), set(said["missing_keys"]), set(said["unexpected_keys"]), misshaped)


def _untied(own: Mapping[str, Any], missing: set[str]) -> set[str]:
    """Without those that share their memory with one that is there, as tied weights are written once."""
    there = {own[name].data_ptr() for name in set(own) - missing if isinstance(own[name], Tensor)}
    return {name for name in missing if not isinstance(own[name], Tensor) or own[name].data_ptr() not in there}


def _check(
    folder: Path,
    own: Mapping[str, Tensor],
    found: _Found,
    *,
    new: tuple[str, ...],
    unused: tuple[str, ...],
    rounds: bool,
) -> None:
    missing = sorted(name for name in found.missing if not name.startswith(new))
    unexpected = sorted(name for name in found.unexpected if not name.startswith(unused))
    here = {name: found.weights[name] for name in own if name in found.weights and name not in found.missing}
    shapes = {name: tuple(value.shape) for name, value in here.items()} | found.misshaped
    misshaped = [
        f"{name} ({_shape(shape)}, not {_shape(tuple(own[name].shape))})"
        for name, shape in sorted(shapes.items())
        if name in own and shape != tuple(own[name].shape)
    ]
    narrowed = [] if rounds or misshaped else [name for name, value in here.items() if _loses(value, own[name])]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_NAMES_MAX])}{', …' if len(names) > _NAMES_MAX else ''} ({remedy})"
        for names, what, remedy in (
            (missing, "missing", "name what begins anew in new="),
            (unexpected, "that the model has not", "name what is to be left out in unused="),
            (misshaped, "of another shape", "build the model with the folder's config.json"),
            (narrowed, "that would lose bits", "build the model in the folder's type, or allow it with rounds=True"),
        )
        if names
    ]
    if problems:
        raise InvalidRequest(
            f"the weights in {folder} are not those of this model, and nothing was changed. Of {len(own)} weights there are "
            f"{'; '.join(problems)}",
            code="weights_differ",
            missing=len(missing),
            unexpected=len(unexpected),
            misshaped=len(misshaped),
        )


def _loses(value: Tensor, own: Any) -> bool:
    """Whether it isn't the same number any more in the model's type."""
    if value.dtype == own.dtype or torch.promote_types(value.dtype, own.dtype) == own.dtype:
        return False
    back = value.to(own.dtype).to(value.dtype)
    return not torch.equal(back.nan_to_num(), value.nan_to_num())


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"
