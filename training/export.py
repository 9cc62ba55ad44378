"""A trained model as a Hugging Face folder: weights as safetensors, configuration, tokenizer. Any engine serves it.

    from training.export import export, export_checkpoint

    export(model, folder, tokenizer=tokenizer)          # in a script; of a sharded model all ranks call it
    export_checkpoint("run", folder, like="base")       # of what a session has kept in directory="run"

    python -m training.export run folder --like base    # the same from a shell

The model is one of transformers' (by its own `save_pretrained`, so that names, tied weights and experts are as others expect
them), one of peft's, of which the adapter is written, or `training.demo.llama`'s. Each weight keeps its bits. The folder is loaded
again and compared before it is there; the configuration comes last, so that half a folder is no model. Nothing is pickled.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from fabric.checkpoints import Checkpoints, Manifest, is_of_folder, restore_directory
from fabric.errors import Conflict, FabricError, InvalidRequest
from training.demo.llama import Llama
from training.demo.llama_export import export_llama
from training.integrations.quiet import quietly
from training.progress import say
from training.state import model_kind
from training.state.checkpoint_weights import of_directory, weights_of
from training.state.plain import first_line, is_sharded, widest
from training.state.vault import PREFIX
from training.state.weight_files import INDEX, WEIGHTS, opened

SHARD_BYTES_MAX: Final = 5 * 10**9
"""A file of weights ends after so much."""
_CONFIG: Final = "config.json"
_ADAPTER_CONFIG: Final = "adapter_config.json"
_SHARDS: Final = "model-?????-of-?????.safetensors"
_LAST: Final = (_CONFIG, _ADAPTER_CONFIG)
"""By these a folder is known as whole."""
_BESIDE: Final = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken",
    "chat_template*", "preprocessor_config.json", "processor_config.json", "generation_config.json",
)  # fmt: skip
_OF_TRAINER: Final = (_CONFIG, _ADAPTER_CONFIG, "*.safetensors", INDEX, *_BESIDE)
"""What a trainer's own folder holds for others."""
_NAMES_MAX: Final = 5
Place = str | os.PathLike[str]


def export(
    model: Any, folder: Place, *, tokenizer: Any = None, shard_bytes_max: int = SHARD_BYTES_MAX, verify: bool = True
) -> Path:
    """Write the model to `folder`, which is made if it is missing; other files in it stay. One process alone calls it.

    Of a model that is sharded (FSDP2, tensor parallelism) all ranks call it, and rank 0 writes: it holds the whole on the host.

    Args:
        model: of transformers, of peft or of `training.demo.llama`; also within DistributedDataParallel or torch.compile.
        folder: where to.
        tokenizer: a tokenizer or processor, several in a list, or a folder whose tokenizer files are taken over.
        shard_bytes_max: a model with more weights than this has several files of at most so much, and an index.
        verify: load the folder again and compare all bits, which takes the memory of one more model.

    Raises:
        InvalidRequest: `not_exportable`: it is no such model; `export_differs`: the folder would be loaded with other weights.
    """
    model, _ = model_kind.unwrapped(model)
    folder = _free(Path(folder))
    state = model.state_dict() if isinstance(model, nn.Module) else {}
    if any(isinstance(value, Tensor) and is_sharded(value) for value in state.values()):
        _check_kind(model)
        whole = {name: _gathered(value) for name, value in state.items()}
        if torch.distributed.get_rank() != 0:
            return folder
        model = _filled(model_kind.emptied(model), whole, "model")
    return _written(model, folder, tokenizer=tokenizer, shard_bytes_max=shard_bytes_max, verify=verify)


def export_checkpoint(
    source: Checkpoints | Place,
    folder: Place,
    *,
    step: int | None = None,
    session: int = 0,
    prefix: str = PREFIX,
    name: str | None = None,
    model: Any = None,
    like: Place | None = None,
    tokenizer: Any = None,
    shard_bytes_max: int = SHARD_BYTES_MAX,
    verify: bool = True,
) -> int:
    """Write the model of a durable checkpoint to `folder`, also while its run goes on; the checkpoint's step.

    Args:
        source: what a session has as `directory=` (or FABRIC_CHECKPOINT_DIR), or `context.current().checkpoints`. Also of
            `training.sharded`, and of a trainer of Hugging Face's (`training.integrations.huggingface`), whose own folder is taken.
        folder: where to.
        step: which checkpoint; None = the newest that is whole.
        session: which one of its script, counted from 0.
        prefix: below which they are; of a job in the directory of a fabric's archive jobs/ACCOUNT/JOB/checkpoint.
        name: of the model, where the session tracks several.
        model: as the script builds it (its weights may be anything, and are replaced); needed for classes that are not in
            transformers, and for checkpoints that don't say what their model is.
        like: a Hugging Face folder whose configuration, and tokenizer if none is given, are those of the model.
        tokenizer: as in `export`.
        shard_bytes_max: as in `export`.
        verify: as in `export`.

    Raises:
        NotFound: there is no such checkpoint. CheckpointDamaged: it isn't whole.
        InvalidRequest: as in `export`; `no_model`; `model_unknown`: say what it is by `model` or `like`.
        Conflict: `checkpoint_of_another_model`: these are not its weights.
    """
    checkpoints = (
        source if isinstance(source, Checkpoints) else of_directory(Path(source), session=session, prefix=prefix)
    )
    folder = _free(Path(folder))
    tokenizer = tokenizer if tokenizer is not None else like
    standing = checkpoints.ls()
    if standing and all(is_of_folder(manifest) for manifest in standing):
        return _taken_out(checkpoints, step, folder, tokenizer)
    folder.parent.mkdir(parents=True, exist_ok=True)
    kept = weights_of(checkpoints, beside=folder.parent, step=step, name=name)
    begins = str((kept.kind or {}).get("prefix", ""))
    if model is None:
        model = model_kind.empty(_needed(kept.kind) if like is None else _kind_of_folder(Path(like)))
    model, _ = model_kind.unwrapped(model)
    weights = {key.removeprefix(begins): value for key, value in kept.weights.items() if key.startswith(begins)}
    model = _filled(model, weights, f"checkpoint of step {kept.step}")
    _written(model, folder, tokenizer=tokenizer, shard_bytes_max=shard_bytes_max, verify=verify)
    return kept.step


def _free(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise InvalidRequest(f"{folder} is a file: name a folder, or one that is still to be made", code="not_a_folder")
    return folder


def _needed(kind: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if kind is None:
        raise InvalidRequest(
            "the checkpoint doesn't say what its model is: give the model as the script builds it (model=), or a folder of "
            "Hugging Face's with its configuration (like=, --like)",
            code="model_unknown",
        )
    return kind


def _kind_of_folder(folder: Path) -> dict[str, Any]:
    """What the configuration of a folder says."""
    try:
        text = (folder / _CONFIG).read_text(encoding="utf-8")
        name = json.loads(text)["architectures"][0]
        beside = folder / "generation_config.json"
        generation = beside.read_text(encoding="utf-8") if beside.is_file() else ""
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InvalidRequest(
            f"{folder / _CONFIG} doesn't say what a model is ({type(error).__name__}: {str(error)[:100]}): name a folder that "
            "save_pretrained has written",
            code="model_unknown",
        ) from None
    return {"class": name, "config": text, "generation": generation}


def _gathered(value: Any) -> Any:
    """The whole of a tensor, on the host; all ranks take part, and rank 0 keeps it."""
    if not isinstance(value, Tensor):
        return value
    whole = value.full_tensor() if is_sharded(value) else value
    return whole.detach().cpu() if torch.distributed.get_rank() == 0 else None


def _filled(model: Any, weights: Mapping[str, Any], what: str) -> Any:
    """The model with these weights in the place of its own, with their types."""
    try:
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise Conflict(
            f"the {what} is of another model: {first_line(error)}. Build it as it was when it was saved",
            code="checkpoint_of_another_model",
        ) from error
    base = model.get_base_model() if model_kind.is_adapted(model) else model
    if model_kind.is_pretrained(base):
        base.tie_weights()  # what was kept twice, as by ranks that each held a part
        if not all(_is_same(weights.get(name), value) for name, value in model.state_dict().items()):
            model.load_state_dict(weights, assign=True)  # the training has parted them
    return model


def _written(model: Any, folder: Path, *, tokenizer: Any, shard_bytes_max: int, verify: bool) -> Path:
    """The model's folder: made beside its place, compared, and then moved there."""
    _check_kind(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        fresh = Path(beside)
        if isinstance(model, Llama):
            export_llama(fresh, model)
        else:
            with quietly():
                model.save_pretrained(fresh, max_shard_size=shard_bytes_max)
                _say_types(model, fresh)
                if verify:
                    _compare(model, fresh)
        _add_tokenizer(fresh, tokenizer)
        _move(fresh, folder)
    return folder


def _check_kind(model: Any) -> None:
    name = f"a {type(model).__module__}.{type(model).__qualname__} can't be exported"
    if not (isinstance(model, Llama) or model_kind.is_adapted(model) or model_kind.is_pretrained(model)):
        raise InvalidRequest(
            f"{name}: it is none of transformers', peft's or training.demo.llama's. Give the one of these that it holds, or write it "
            "with safetensors.torch.save_model",
            code="not_exportable",
        )
    if any(value.is_meta for value in model.parameters()):
        raise InvalidRequest(
            f"{name}: it has no weights, as it is on the meta device: load them", code="not_exportable"
        )


def _say_types(model: Any, folder: Path) -> None:
    """A folder is loaded as one type: of weights of several types the one that holds all of them without a changed value."""
    types = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    if len(types) < 2 or not (folder / _CONFIG).is_file():  # noqa: PLR2004
        return
    loads_as = str(widest(types)).removeprefix("torch.")
    said = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    (folder / _CONFIG).write_text(json.dumps(said | {"dtype": loads_as}, indent=2) + "\n", encoding="utf-8")
    named = ", ".join(sorted(str(one).removeprefix("torch.") for one in types))
    say(f"the weights have several types ({named}): each is written as it is, and all are loaded as {loads_as}")


def _compare(model: Any, folder: Path) -> None:
    """Raises `export_differs` if who loads the folder would have other weights."""
    if model_kind.is_adapted(model):
        from peft import get_peft_model_state_dict  # noqa: PLC0415

        for name in model.peft_config:
            own = get_peft_model_state_dict(model, adapter_name=name)
            _compare_all(own, opened(folder if name == "default" else folder / name, adapter=True))
        return
    loaded = model_kind.class_of(model).from_pretrained(folder, local_files_only=True)  # type: ignore[attr-defined]
    left_out = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    _compare_all(
        {name: value for name, value in model.state_dict().items() if name not in left_out}, loaded.state_dict()
    )


def _compare_all(own: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    bad = [name for name, value in own.items() if not _is_same(value, found.get(name))]
    if bad:
        raise InvalidRequest(
            f"{len(bad)} of {len(own)} weights would be others when the folder is loaded, so it isn't written: "
            f"{', '.join(bad[:_NAMES_MAX])}. See what save_pretrained of its class leaves out or changes, or export with "
            "verify=False if that is meant",
            code="export_differs",
            weights=len(bad),
        )


def _is_same(value: Any, found: Any) -> bool:
    """Bit for bit; what is loaded as a wider type, in that."""
    if not isinstance(value, Tensor) or not isinstance(found, Tensor):
        return not isinstance(value, Tensor)
    value, found = value.detach().cpu(), found.detach().cpu()
    if value.dtype != found.dtype and torch.promote_types(value.dtype, found.dtype) != found.dtype:
        return False
    value = value.to(found.dtype)
    return value.shape == found.shape and bool(torch.equal(_bits(value), _bits(found)))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _add_tokenizer(folder: Path, tokenizer: Any) -> None:
    for each in tokenizer if isinstance(tokenizer, list | tuple) else [tokenizer]:
        if isinstance(each, str | os.PathLike):
            if not Path(each).is_dir():
                raise InvalidRequest(f"{each} is no folder with tokenizer files: name one", code="no_tokenizer")
            _take_over(Path(each), folder, _BESIDE)
        elif each is not None:
            each.save_pretrained(folder)


def _take_over(source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    """Files that aren't there yet."""
    for path in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        if path.is_file() and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def _move(fresh: Path, folder: Path) -> None:
    """Into the place; what says that a folder is whole goes first and comes last, and older weights of its kind don't stay."""
    folder.mkdir(exist_ok=True)
    for name in _LAST:
        if (fresh / name).exists():
            (folder / name).unlink(missing_ok=True)
    if (fresh / _CONFIG).exists():
        for old in (*folder.glob(_SHARDS), folder / WEIGHTS, folder / INDEX):
            old.unlink(missing_ok=True)
    for path in sorted(fresh.iterdir(), key=lambda path: (path.name in _LAST, path.name)):
        target = folder / path.name
        if path.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        path.replace(target)


def _taken_out(checkpoints: Checkpoints, step: int | None, folder: Path, tokenizer: Any) -> int:
    """What a trainer has saved as a folder of its own, without what only a trainer needs."""
    if step not in {None, checkpoints.ls()[0].step}:
        raise InvalidRequest(
            "of folders that a trainer has saved only the newest can be exported: roll the run back first",
            code="no_model",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        whole, fresh = Path(beside) / "whole", Path(beside) / "fresh"
        manifest: Manifest | None = restore_directory(checkpoints, whole)
        assert manifest is not None
        fresh.mkdir()
        source = whole if any((whole / name).is_file() for name in _LAST) else whole / MODEL_BELOW
        is_adapter = (source / _ADAPTER_CONFIG).is_file()
        opened(source, adapter=is_adapter)
        _take_over(source, fresh, _OF_TRAINER)
        _add_tokenizer(fresh, tokenizer)
        _move(fresh, folder)
        return manifest.step


MODEL_BELOW: Final = "model"
"""Where in its folder a command may have written its model, too."""


def main(words: list[str] | None = None) -> int:
    """The command; 0, or 1 where it was refused, said on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m training.export",
        description="Write the model of a run's newest checkpoint as a Hugging Face folder (safetensors).",
    )
    parser.add_argument("run", help="what the session has as directory=, or FABRIC_CHECKPOINT_DIR")
    parser.add_argument("folder", help="where to write")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest if not given")
    parser.add_argument("--session", type=int, default=0, help="which session of its script, counted from 0")
    parser.add_argument("--prefix", default=PREFIX, help="of a job in a fabric's archive: jobs/ACCOUNT/JOB/checkpoint")
    parser.add_argument("--name", help="of the model, where the session tracks several")
    parser.add_argument("--like", help="a Hugging Face folder with the model's configuration and tokenizer")
    parser.add_argument("--tokenizer", help="a folder whose tokenizer files are taken over")
    parser.add_argument("--shard-bytes-max", type=int, default=SHARD_BYTES_MAX, help="of one file of weights")
    parser.add_argument("--no-verify", action="store_true", help="don't load the folder again to compare it")
    asked = parser.parse_args(words)
    try:
        step = export_checkpoint(
            asked.run, asked.folder, step=asked.step, session=asked.session, prefix=asked.prefix, name=asked.name, like=asked.like,
            tokenizer=asked.tokenizer, shard_bytes_max=asked.shard_bytes_max, verify=not asked.no_verify,
        )  # fmt: skip
    except FabricError as refused:
        sys.stderr.write(f"{refused.code}: {refused.message}\n")
        return 1
    sys.stdout.write(f"step {step} is in {asked.folder}\n")
    return 0


__all__ = ["export", "export_checkpoint", "export_llama"]

if __name__ == "__main__":
    sys.exit(main())
