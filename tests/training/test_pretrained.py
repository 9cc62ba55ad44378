"""Weights of a folder come into a model all at once and bit for bit, or not at all; a folder may come from anybody."""

import json
import math
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fabric.errors import InvalidRequest
from tests.training.kinds import KINDS, adapted, bits, built, same, train
from training import session
from training.export import export
from training.pretrained import load_weights
from training.state.weight_files import INDEX, WEIGHTS, opened


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_bytes", [20_000, 10**9])
def test_an_exported_folder_comes_in_bit_for_bit(tmp_path, kind, shard_bytes):
    model, other = built(kind, seed=1), built(kind, seed=2)
    export(model, tmp_path / "folder", shard_bytes_max=shard_bytes)
    assert not same(model, other)
    drawn = torch.get_rng_state()
    load_weights(other, tmp_path / "folder")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert same(model, other)


def test_optimizers_keep_their_weights_and_ties_stay_tied(tmp_path):
    export(built("gpt2", seed=1), tmp_path / "folder")
    model = built("gpt2", seed=2)
    before = list(model.parameters())
    load_weights(model, tmp_path / "folder")
    assert all(one is two for one, two in zip(before, model.parameters(), strict=True))
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_run_begins_from_a_folder_and_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    export(built("llama", seed=1), tmp_path / "folder")

    def attempt(steps, directory):
        monkeypatch.setattr("training.state.vault._of_directories", {})  # in another process
        model = built("llama", seed=2)
        load_weights(model, tmp_path / "folder")
        return train(model, steps, directory=directory).resumed_at, bits(model)

    begun, whole = attempt(4, tmp_path / "whole")
    assert begun == 0
    assert attempt(2, tmp_path / "parted")[0] == 0
    assert attempt(4, tmp_path / "parted") == (2, whole)


def test_a_run_may_also_load_where_it_finds_that_nothing_is_done(tmp_path):
    export(built("llama", seed=1), tmp_path / "folder")
    early, late = built("llama", seed=2), built("llama", seed=2)
    load_weights(early, tmp_path / "folder")
    train(early, 3, directory=tmp_path / "early")
    opt = torch.optim.SGD(late.parameters(), lr=0.1)
    run = session(model=late, opt=opt, directory=tmp_path / "late", snapshot_every_s=math.inf)
    load_weights(late, tmp_path / "folder")
    train(late, 3, run=run, opt=opt)
    assert bits(early) == bits(late)


def test_an_adapter_comes_in_bit_for_bit(tmp_path):
    export(adapted(seed=1), tmp_path / "folder")
    model = adapted(seed=1, adapter_seed=2)
    load_weights(model, tmp_path / "folder")
    assert same(model, adapted(seed=1))


def test_a_plain_module_takes_a_folder_of_its_own_names(tmp_path):
    made, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_file(made.state_dict(), tmp_path / WEIGHTS)
    load_weights(other, tmp_path)
    assert same(made, other)


def changed(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("lm_head.weight"), "1 missing: lm_head.weight (name what begins anew in new=)"),
        (
            lambda t: t.update(zzz=torch.ones(2)),
            "1 that the model has not: zzz (name what is to be left out in unused=)",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(5)}),
            "1 of another shape: model.norm.weight (5, not 32) (build the model with the folder's config.json)",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if "self_attn" in name],
            "8 missing: model.layers.0.self_attn.k_proj.weight, ",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(tmp_path, change, says):
    export(built("llama", seed=1), tmp_path / "folder")
    changed(tmp_path / "folder", change)
    model = built("llama", seed=2)
    before = bits(model)
    with pytest.raises(InvalidRequest) as refused:
        load_weights(model, tmp_path / "folder")
    assert refused.value.code == "weights_differ"
    assert says in refused.value.message
    assert bits(model) == before


def test_a_new_head_stays_as_it_is_and_what_is_unused_is_left_out(tmp_path):
    export(built("llama", seed=1), tmp_path / "folder")
    changed(tmp_path / "folder", lambda t: (t.pop("lm_head.weight"), t.update({"old.head": torch.ones(2)})))
    model = built("llama", seed=2)
    head = model.lm_head.weight.clone()
    with pytest.raises(InvalidRequest):
        load_weights(model, tmp_path / "folder", new="model", unused="old.")  # a beginning, and not the letters of one
    load_weights(model, tmp_path / "folder", new=["lm_head"], unused=["old."])
    assert torch.equal(model.lm_head.weight, head)
    assert torch.equal(model.model.norm.weight, built("llama", seed=1).model.norm.weight)


def test_bits_are_lost_only_where_that_is_asked_for(tmp_path):
    export(built("llama", seed=1), tmp_path / "folder")
    narrow = built("llama", seed=2).to(torch.bfloat16)
    with pytest.raises(InvalidRequest, match=r"20 that would lose bits|that would lose bits"):
        load_weights(narrow, tmp_path / "folder")
    load_weights(narrow, tmp_path / "folder", rounds=True)
    assert same(narrow, built("llama", seed=1).to(torch.bfloat16))
    export(narrow, tmp_path / "narrow")
    wide = built("llama", seed=3)
    load_weights(wide, tmp_path / "narrow")
    assert same(wide, built("llama", seed=1).to(torch.bfloat16).float())


def header(said, data=b""):
    text = json.dumps(said).encode()
    return struct.pack("<Q", len(text)) + text + data


FLOATS = {"dtype": "F32", "shape": [2]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01\x02",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 200_000_000) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 4) + b"nope",
        header({"a": FLOATS | {"data_offsets": [0, 8]}}),
        header({"a": FLOATS | {"data_offsets": [0, 8]}}, bytes(12)),
        header({"a": FLOATS | {"data_offsets": [0, 8]}, "b": FLOATS | {"data_offsets": [4, 12]}}, bytes(12)),
        header({"a": FLOATS | {"data_offsets": [8, 0]}}, bytes(8)),
        header({"a": FLOATS | {"data_offsets": [0, 4]}}, bytes(4)),
        header({"a": FLOATS | {"shape": [2**62, 4], "data_offsets": [0, 8]}}, bytes(8)),
        header({"a": FLOATS | {"dtype": "pickle", "data_offsets": [0, 8]}}, bytes(8)),
    ],
    ids=[
        "empty", "short", "huge header", "large header", "header beyond the file", "no JSON", "no data", "data too long",
        "overlap", "reversed", "too few bytes", "overflow", "another type",
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_before_a_tensor_is_read(tmp_path, data):
    (tmp_path / WEIGHTS).write_bytes(data)
    with pytest.raises(InvalidRequest) as refused:
        load_weights(nn.Linear(2, 1), tmp_path)
    assert refused.value.code == "bad_weights"
    assert WEIGHTS in refused.value.message


@pytest.mark.parametrize("at", range(0, 1000, 37))
def test_a_file_that_was_cut_short_is_refused(tmp_path, at):
    save_file({"weight": torch.ones(16, 16)}, tmp_path / WEIGHTS)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:at])
    with pytest.raises(InvalidRequest) as refused:
        opened(tmp_path)
    assert refused.value.code == "bad_weights"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "a/b.safetensors",
        "..",
        "",
        "a\0b.safetensors",
        "x.bin",
        "\\\\host\\x.safetensors",
    ],
)
def test_an_index_reaches_no_other_folder(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InvalidRequest) as refused:
        opened(folder)
    assert refused.value.code == "bad_weights"


def test_a_link_leads_out_of_no_folder_but_to_the_cache_that_it_is_of(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / WEIGHTS).symlink_to("../secret.safetensors")
    with pytest.raises(InvalidRequest, match="leads out of the folder"):
        opened(folder)
    cached = tmp_path / "models--a--b" / "snapshots" / "0123"
    cached.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "models--a--b" / "blobs" / "77")
    (cached / WEIGHTS).symlink_to("../../blobs/77")
    assert list(opened(cached)) == ["a"]


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "[" * 100_000]
)
def test_an_index_that_says_nothing_is_refused(tmp_path, index):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(InvalidRequest) as refused:
        opened(tmp_path)
    assert refused.value.code == "bad_weights"


def test_an_index_and_its_files_must_agree(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "y.safetensors")
    for said, why in (
        ({"a": "x.safetensors", "b": "x.safetensors"}, "'b' is in x.safetensors, and it isn't"),
        ({"a": "x.safetensors", "c": "y.safetensors"}, "'a' is both in x.safetensors and in y.safetensors"),
        ({"a": "gone.safetensors"}, "gone.safetensors is not there"),
    ):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": said}))
        with pytest.raises(InvalidRequest) as refused:
            opened(tmp_path)
        assert why in refused.value.message


def test_a_pickle_is_not_opened(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidRequest, match=r"only pytorch_model\.bin, a pickle") as refused:
        load_weights(nn.Linear(2, 1), tmp_path)
    assert refused.value.code == "no_weights"


def test_a_model_without_memory_is_refused(tmp_path):
    save_file({"weight": torch.ones(1, 2), "bias": torch.ones(1)}, tmp_path / WEIGHTS)
    with pytest.raises(InvalidRequest, match="to_empty") as refused:
        load_weights(nn.Linear(2, 1, device="meta"), tmp_path)
    assert refused.value.code == "model_without_memory"
