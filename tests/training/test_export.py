"""A folder that was exported is loaded by transformers itself, and has the same bits."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fabric.errors import InvalidRequest
from tests.training.kinds import KINDS, adapted, bits, built, class_of, same, train
from training import session
from training.demo.llama import Llama, Shape
from training.export import export, export_checkpoint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [2_000, 10**9], ids=["parted", "whole"])
def test_a_model_comes_out_bit_for_bit(tmp_path, kind, dtype, shard_bytes):
    model = built(kind).to(dtype)
    export(model, tmp_path / "folder", shard_bytes_max=shard_bytes)
    assert (tmp_path / "folder" / "model.safetensors.index.json").exists() == (shard_bytes < 10**9)
    assert same(class_of(kind).from_pretrained(tmp_path / "folder"), model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_the_same_folder_as_the_model(tmp_path, kind):
    model = built(kind).train()
    train(model, 3, directory=tmp_path / "run")
    export(model, tmp_path / "live")
    assert export_checkpoint(tmp_path / "run", tmp_path / "kept") == 3
    assert same(class_of(kind).from_pretrained(tmp_path / "kept"), model)
    files = sorted(path.name for path in (tmp_path / "live").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "kept").iterdir())
    for name in files:
        assert (tmp_path / "live" / name).read_bytes() == (tmp_path / "kept" / name).read_bytes()


def test_tied_weights_are_written_once(tmp_path):
    export(built("gpt2"), tmp_path / "gpt2")
    assert "lm_head.weight" not in load_file(tmp_path / "gpt2" / "model.safetensors")
    export(built("t5"), tmp_path / "t5")
    assert [
        name for name in load_file(tmp_path / "t5" / "model.safetensors") if "embed" in name or "shared" in name
    ] == ["shared.weight"]


def test_experts_have_the_names_that_engines_know(tmp_path):
    export(built("mixtral"), tmp_path / "folder")
    names = set(load_file(tmp_path / "folder" / "model.safetensors"))
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in names


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("wrap", [nn.parallel.DataParallel, torch.compile], ids=["parallel", "compiled"])
def test_what_wraps_a_model_is_left_out(tmp_path, wrap):
    model = built("llama")
    wrapped = wrap(model)
    export(wrapped, tmp_path / "live")
    train(wrapped, 2, directory=tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "kept")
    assert same(class_of("llama").from_pretrained(tmp_path / "kept"), model)


def test_an_adapter_is_written_as_peft_writes_it(tmp_path):
    from peft import PeftModel

    model = adapted()
    train(model, 2, directory=tmp_path / "run")
    export(model, tmp_path / "live")
    export_checkpoint(tmp_path / "run", tmp_path / "kept")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "live" / name).read_bytes() == (tmp_path / "kept" / name).read_bytes()
    assert not (tmp_path / "kept" / "config.json").exists()
    assert same(PeftModel.from_pretrained(built("llama"), tmp_path / "kept"), model)


def test_an_adapter_beside_its_model_leaves_that_as_it_is(tmp_path):
    export(built("llama"), tmp_path / "folder")
    export(adapted(), tmp_path / "folder")
    shutil.move(tmp_path / "folder" / "adapter_config.json", tmp_path / "adapter_config.json")
    assert same(class_of("llama").from_pretrained(tmp_path / "folder"), built("llama"))


def test_frozen_weights_are_part_of_what_is_exported(tmp_path):
    model = built("llama")
    model.config.vocab_size = 64
    for own in model.model.parameters():
        own.requires_grad_(False)  # noqa: FBT003  # torch's own way
    train(model, 2, directory=tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "kept")
    assert same(class_of("llama").from_pretrained(tmp_path / "kept"), model)


def test_weights_of_several_types_are_loaded_as_one_that_holds_them_all(tmp_path, capsys):
    model = built("llama").to(torch.bfloat16)
    model.model.norm.float()
    export(model, tmp_path / "folder")
    kept = load_file(tmp_path / "folder" / "model.safetensors")
    assert kept["model.norm.weight"].dtype == torch.float32
    assert kept["lm_head.weight"].dtype == torch.bfloat16
    assert same(class_of("llama").from_pretrained(tmp_path / "folder"), model.float())
    assert "all are loaded as float32" in capsys.readouterr().err


def test_tied_weights_that_a_training_has_parted_stay_apart(tmp_path):
    model = built("gpt2")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + 1)
    train(model, 2, directory=tmp_path / "run")
    export(model, tmp_path / "live")
    export_checkpoint(tmp_path / "run", tmp_path / "kept")
    for folder in ("live", "kept"):
        assert same(class_of("gpt2").from_pretrained(tmp_path / folder), model)


def test_weights_that_would_be_others_are_refused(tmp_path, monkeypatch):
    model, save = built("gpt2"), class_of("gpt2").save_pretrained

    def spoiled(self, folder, **options):
        save(self, folder, **options)
        tensors = load_file(folder / "model.safetensors")
        tensors["transformer.ln_f.bias"][3] = -0.0
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(class_of("gpt2"), "save_pretrained", spoiled)
    with torch.no_grad():
        model.transformer.ln_f.bias.zero_()
    with pytest.raises(InvalidRequest) as refused:
        export(model, tmp_path / "folder")
    assert refused.value.code == "export_differs"
    assert "1 of 29 weights would be others" in refused.value.message
    assert "transformer.ln_f.bias" in refused.value.message
    assert not (tmp_path / "folder").exists()


def test_an_export_draws_nothing_and_leaves_the_model_as_it_is(tmp_path):
    model = built("bert").train()
    before, drawn = bits(model), torch.get_rng_state()
    export(model, tmp_path / "folder")
    assert (bits(model), model.training) == (before, True)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_run_that_exports_amid_its_loop_has_the_same_bits(tmp_path):
    plain, exporting = built("llama"), built("llama")
    train(plain, 4, directory=tmp_path / "plain")
    opt = torch.optim.SGD(exporting.parameters(), lr=0.1)
    run = session(model=exporting, opt=opt, directory=tmp_path / "run", snapshot_every_s=math.inf)
    for step in run.steps(4):
        export(exporting, tmp_path / "folder")
        dice = torch.Generator().manual_seed(step)
        for own in exporting.parameters():
            own.grad = torch.randn(own.shape, generator=dice)
        opt.step()
    assert bits(exporting) == bits(plain)


def test_other_files_of_a_folder_stay_and_older_weights_do_not(tmp_path):
    folder = tmp_path / "folder"
    export(built("llama"), folder, shard_bytes_max=20_000)
    (folder / "notes.txt").write_text("mine")
    (folder / "model-mine.safetensors").write_text("mine")
    export(built("llama", seed=5), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "generation_config.json", "model-mine.safetensors", "model.safetensors", "notes.txt",
    ]  # fmt: skip
    assert same(class_of("llama").from_pretrained(folder), built("llama", seed=5))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("at", range(5))
def test_an_export_that_breaks_off_leaves_no_half_model(tmp_path, monkeypatch, at):
    folder, replace, done = tmp_path / "folder", Path.replace, []
    export(built("llama"), folder, shard_bytes_max=30_000)

    def breaking(self, target):
        if len(done) == at:
            raise KeyboardInterrupt
        done.append(target)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", breaking)
        with pytest.raises(KeyboardInterrupt):
            export(built("llama", seed=5), folder, shard_bytes_max=30_000)
    assert not (folder / "config.json").exists()
    export(built("llama", seed=5), folder, shard_bytes_max=30_000)
    assert same(class_of("llama").from_pretrained(folder), built("llama", seed=5))


def test_tokenizer_and_generation_come_along(tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    from training.demo.llama_export import byte_tokenizer, export_llama

    source = export_llama(tmp_path / "bytes", Llama(Shape(vocabulary=259)))
    model = built("llama")
    model.generation_config.max_new_tokens = 7
    train(model, 1, directory=tmp_path / "run")
    export(model, tmp_path / "live", tokenizer=AutoTokenizer.from_pretrained(source))
    export_checkpoint(tmp_path / "run", tmp_path / "kept", tokenizer=source)
    for folder in (tmp_path / "live", tmp_path / "kept"):
        assert AutoTokenizer.from_pretrained(folder)("hi").input_ids == byte_tokenizer().encode("hi").ids
        assert GenerationConfig.from_pretrained(folder).max_new_tokens == 7
