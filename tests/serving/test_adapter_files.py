"""An adapter's folder is looked at before an engine hears of it: rank, size, form, and what its file says of itself."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from fabric.errors import InvalidRequest
from serving.replica import adapter_files
from serving.replica.adapter_files import CONFIG, WEIGHTS, taken_over

from .adapter_maker import MODULES, make_adapter

FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def take(folder, tmp_path, *, rank_max=8, **said):
    base = tmp_path / "base"
    if not base.exists():
        make_base(base)
    return taken_over(folder, name="law", parent="tiny", base=base, rank_max=rank_max, cache=tmp_path / "cache", **said)


def make_base(place, *, layers=1, dtype=np.float32, name="model.layers.{}.self_attn.{}.weight", hidden=8):
    place.mkdir()
    tensors = {
        name.format(layer, each): np.zeros((hidden, hidden), dtype=dtype) for layer in range(layers) for each in MODULES
    }
    save_file(tensors | {"model.norm.weight": np.zeros(hidden, dtype=np.float32)}, place / "model.safetensors")


def test_an_adapter_is_taken_over_as_two_files_named_by_what_is_in_them(tmp_path):
    folder = make_adapter(tmp_path / "a")
    (folder / "adapter_model.bin").write_bytes(b"a pickle")
    (folder / "modeling.py").write_text("raise SystemExit")
    kept = take(folder, tmp_path)
    assert sorted(path.name for path in kept.iterdir()) == [CONFIG, WEIGHTS]
    assert take(make_adapter(tmp_path / "same"), tmp_path) == kept
    assert take(make_adapter(tmp_path / "other", seed=2), tmp_path) != kept
    assert sorted(path.name for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")) == []


def stack(shape):
    return np.zeros(shape, dtype=np.float32)


BAD = {
    "a rank that is too high": ({"rank": 16}, "rank 16, at most 8 may be on tiny"),
    "a rank that is too high for one module": ({"rank_pattern": {"q_proj": 64}}, "rank 64, at most 8"),
    "a rank that its file doesn't have": ({"rank": 16, "said": 4}, "have ranks"),
    "no rank": ({"said": 0}, "whole number above 0"),
    "a rank that is no number": ({"said": "many"}, "whole number above 0"),
    "another kind": ({"peft_type": "IA3"}, "no LoRA adapter"),
    "dora": ({"use_dora": True}, "use_dora=True"),
    "biases": ({"bias": "all"}, "bias=all"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "half a pair": ({"without": (FIRST,)}, "have ranks"),
    "a tensor of no pair": ({"more": {"lm_head.weight": stack((4, 4))}}, "pairs of matrices"),
    "the shape of another model": (
        {"width": 24},
        "at model.layers.0.self_attn.q_proj it is 24 x 24, and tiny is 8 x 8",
    ),
    "a module that its parent hasn't": (
        {
            "more": {
                "base_model.model.x.lora_A.weight": stack((4, 8)),
                "base_model.model.x.lora_B.weight": stack((8, 4)),
            }
        },
        "tiny has no x: train it on tiny",
    ),
    "a pair of stacks": ({"more": {"x.lora_A.weight": stack((2, 2, 2))}}, "pairs of matrices"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_adapter_that_is_not_served_is_refused_in_a_sentence(tmp_path, case):
    made, said = BAD[case]
    with pytest.raises(InvalidRequest, match=said) as refused:
        take(make_adapter(tmp_path / "a", **made), tmp_path)
    assert refused.value.code == "bad_adapter"
    assert refused.value.message.startswith("the adapter law is not served: ")
    assert not list((tmp_path / "cache").glob("adapter-*"))


def test_an_adapter_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    folder = make_adapter(tmp_path / "a")
    os.truncate(folder / WEIGHTS, adapter_files.ADAPTER_BYTES_MAX + 1)
    with pytest.raises(InvalidRequest, match="at most 2,147,483,648 may be"):
        take(folder, tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("torn", [b"", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{}"])
def test_weights_that_cannot_be_read_are_refused(tmp_path, torn):
    folder = make_adapter(tmp_path / "a")
    (folder / WEIGHTS).write_bytes(torn)
    with pytest.raises(InvalidRequest, match="can't be read"):
        take(folder, tmp_path)


@pytest.mark.parametrize("said", ["[]", "{", "[" * 100_000, json.dumps({"r": True})])
def test_a_configuration_that_says_nothing_is_refused(tmp_path, said):
    folder = make_adapter(tmp_path / "a")
    (folder / CONFIG).write_text(said)
    with pytest.raises(InvalidRequest) as refused:
        take(folder, tmp_path)
    assert refused.value.code == "bad_adapter"


@pytest.mark.parametrize(
    "base", [{"dtype": np.uint8}, {"name": "language.layers.{}.{}.weight"}], ids=["packed", "renamed"]
)
def test_a_parent_whose_files_tell_no_shapes_is_left_to_the_engine(tmp_path, base):
    make_base(tmp_path / "base", **base)
    assert take(make_adapter(tmp_path / "a"), tmp_path).is_dir()


def test_a_link_leads_nowhere_out_of_what_somebody_made(tmp_path):
    outside = make_adapter(tmp_path / "outside")
    folder = tmp_path / "made"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / name).symlink_to(outside / name)
    with pytest.raises(InvalidRequest, match="there is no adapter"):
        take(folder, tmp_path)
    assert take(folder, tmp_path, is_ours=True).is_dir(), "an operator's own cache of models is made of links"
