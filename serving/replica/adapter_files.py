"""A LoRA adapter's folder, as `peft` saves it: looked at before an engine hears of it, and taken over as data.

Of the folder two files are read, both of them data. An engine takes matrices of another model's shape as far as they go, and says nothing: so the rank, the size and the
shapes are looked at here, by what the files say of their tensors, not only by what stands in the configuration.
"""

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from fabric.errors import InvalidRequest
from serving.limits import ADAPTER_BYTES_MAX, ADAPTER_TENSORS_MAX

CONFIG: Final = "adapter_config.json"
"""Written last by peft: a folder with it is whole."""
WEIGHTS: Final = "adapter_model.safetensors"
_CONFIG_BYTES_MAX: Final = 1 << 20
_PLAIN: Final[dict[str, tuple[Any, ...]]] = {
    "bias": ("none", None), "modules_to_save": (None, []), "use_dora": (False, None), "lora_bias": (False, None),
    "layers_to_transform": (None, []), "layer_replication": (None, []), "alora_invocation_tokens": (None, []),
    "trainable_token_indices": (None, []), "target_parameters": (None, []),
}  # fmt: skip
"""Fields of a configuration by which an adapter is more than pairs of matrices, and what they are where it isn't."""
_PAIR: Final = re.compile(r"(.+)\.lora_([AB])\.weight")
_PREFIX: Final = "base_model.model."
_WEIGHT: Final = ".weight"
_NUMBERS: Final = frozenset({"F16", "BF16", "F32", "F64"})
"""Types of numbers of which each stands for itself."""
_FLAT: Final = 2


def taken_over(
    folder: Path, *, name: str, parent: str, base: Path, rank_max: int, cache: Path, is_ours: bool = False
) -> Path:
    """A copy of an adapter, in a folder of `cache` that is named by what is in it; no other adapter is ever at its place.

    Args:
        folder: as peft saves it.
        name: the adapter's, for what is said of it.
        parent: its model's.
        base: the folder of its model.
        rank_max: what the parent's engine was started with.
        cache: a folder of ours.
        is_ours: whether the operator put it there; in what somebody made, links don't lead out of it.

    Raises:
        InvalidRequest: `no_adapter`: there is none in it; `bad_adapter`: it has a rank, a size or a form that isn't served.
    """
    config, weights = folder / CONFIG, folder / WEIGHTS
    for file in (config, weights):
        if not file.is_file() or not (is_ours or file.resolve().is_relative_to(folder.resolve())):
            raise InvalidRequest(
                f"there is no adapter in {folder}: it has no {file.name}. Save one there with peft's save_pretrained",
                code="no_adapter",
            )
    size = weights.stat().st_size
    if size > ADAPTER_BYTES_MAX:
        raise _bad(
            name,
            f"its weights have {size:,} bytes, at most {ADAPTER_BYTES_MAX:,} may be: train it with a lower rank or on"
            " fewer modules",
        )
    ranks = _ranks(name, config)
    if max(ranks) > rank_max:
        raise _bad(
            name,
            f"it has rank {max(ranks)}, at most {rank_max} may be on {parent}: train it with r={rank_max} or lower, or have"
            f" {parent} offered with a higher max-lora-rank",
        )
    fresh = Path(tempfile.mkdtemp(prefix=".adapter-", dir=_made(cache)))
    try:
        digest = hashlib.sha256()
        for file in (config, weights):  # what is looked at is what is served: the folder may change meanwhile
            shutil.copyfile(file, fresh / file.name)
            with (fresh / file.name).open("rb") as copy:
                digest.update(hashlib.file_digest(copy, "sha256").digest())
        _check_tensors(name, fresh / WEIGHTS, _ranks(name, fresh / CONFIG), _modules_of(base), parent=parent)
        kept = cache / f"adapter-{digest.hexdigest()[:32]}"
        try:
            fresh.rename(kept)
        except OSError:  # another replica of this node has just brought the same one
            if not kept.is_dir():
                raise
        return kept
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _ranks(name: str, config: Path) -> set[int]:
    """Every rank that the configuration tells of, where it tells of an adapter that is served at all."""
    if (size := config.stat().st_size) > _CONFIG_BYTES_MAX:
        raise _bad(name, f"{CONFIG} has {size:,} bytes, at most {_CONFIG_BYTES_MAX:,} may be")
    try:
        said: Any = json.loads(config.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _bad(name, f"{CONFIG} is no JSON ({str(error)[:100]})") from None
    if not isinstance(said, dict) or said.get("peft_type", "LORA") != "LORA":
        raise _bad(name, "it is no LoRA adapter: train one with peft's LoraConfig")
    for field, plain in _PLAIN.items():
        if field in said and said[field] not in plain:
            raise _bad(name, f"it has {field}={str(said[field])[:100]}, which is not served: train it without")
    by_module = said.get("rank_pattern") or {}
    ranks = [said.get("r"), *(by_module.values() if isinstance(by_module, dict) else [None])]
    if not all(isinstance(rank, int) and not isinstance(rank, bool) and rank > 0 for rank in ranks):
        raise _bad(name, f"{CONFIG} says no rank: `r` is a whole number above 0")
    return set(ranks)


def _modules_of(base: Path) -> dict[str, tuple[int, ...] | None]:
    """Out and in of each matrix of a model that is stored as itself; of what is packed only that it is there."""
    found: dict[str, tuple[int, ...] | None] = {}
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, framework="np") as weights:
            for key in weights.keys():  # noqa: SIM118 - it is no dict
                tensor = weights.get_slice(key)
                shape = tuple(tensor.get_shape())
                plain = len(shape) == _FLAT and key.endswith(_WEIGHT) and str(tensor.get_dtype()) in _NUMBERS
                module = key.rpartition(".")[0]
                found[module] = shape if plain else found.get(module)
    return found


def _check_tensors(
    name: str, weights: Path, ranks: set[int], modules: dict[str, tuple[int, ...] | None], *, parent: str
) -> None:
    """Hold the weights to their own header: pairs of matrices, of the ranks that the configuration has and of the shapes that
    the parent has, where its own files tell of them.
    """
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in _shapes(name, weights).items():
        found = _PAIR.fullmatch(key)
        if found is None or len(shape) != _FLAT:
            raise _bad(
                name, f"it has {key[:200]!r} of shape {shape}, and only pairs of matrices lora_A, lora_B are served"
            )
        pairs.setdefault(found[1].removeprefix(_PREFIX), {})[found[2]] = shape
    tells = not modules.keys().isdisjoint(pairs)  # else the parent's files have other names for all of it
    for module, pair in pairs.items():
        had = {side: shape[0] if side == "A" else shape[1] for side, shape in pair.items()}
        if set(pair) != {"A", "B"} or had["A"] != had["B"] or had["A"] not in ranks:
            raise _bad(name, f"at {module[:200]} the matrices have ranks {had}, and {CONFIG} says {sorted(ranks)[:5]}")
        if tells and module not in modules:
            raise _bad(name, f"{parent} has no {module[:200]}: train it on {parent}")
        is_, wanted = (pair["B"][0], pair["A"][1]), modules.get(module)
        if wanted is not None and is_ != wanted:
            raise _bad(
                name,
                f"at {module[:200]} it is {is_[0]} x {is_[1]}, and {parent} is {wanted[0]} x {wanted[1]}: train it on"
                f" {parent}",
            )


def _shapes(name: str, weights: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(weights, framework="np") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise _bad(name, f"{WEIGHTS} can't be read ({str(error)[:200]}): save it with peft's save_pretrained") from None
    if not 0 < len(shapes) <= ADAPTER_TENSORS_MAX:
        raise _bad(name, f"it has {len(shapes)} tensors, 1 to {ADAPTER_TENSORS_MAX} may be")
    return shapes


def _bad(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"the adapter {name} is not served: {why}", code="bad_adapter")
