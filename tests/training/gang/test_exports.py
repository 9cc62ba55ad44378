"""Models that no rank holds whole begin from a folder, and become one, with the same bits as on one rank."""

import pytest
import torch

from tests.training.gang import crew
from tests.training.gang.test_worlds import lines
from tests.training.gang.work import Order
from tests.training.kinds import adapted, built, class_of, same
from training.export import export, export_checkpoint


def trained(model, steps):
    """What the script does, on one rank."""
    with torch.no_grad():
        for own in model.parameters():
            for _ in range(steps if own.requires_grad else 0):
                own.add_(own.sign(), alpha=-0.1)
    return model


CASES = ("fsdp-llama", "fsdp-gpt2", "fsdp-mixtral", "tp-llama", "fsdp-adapter")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Where the script has run, on two ranks."""
    folder = tmp_path_factory.mktemp("exports")
    for case in CASES:
        if not case.endswith("adapter"):
            export(built(case.split("-")[1], seed=1), folder / case / "base", shard_bytes_max=20_000)
    order = Order(folder=folder, steps=2, sharding=" ".join(CASES))
    assert crew.run(order, world=2, doing="export_script", timeout_s=250) == [0, 0]
    assert [line["is_sharded"] for line in lines(folder) if "is_sharded" in line] == [True] * 2 * len(CASES)
    return folder


@pytest.mark.parametrize("case", CASES[:-1])
def test_a_sharded_model_comes_in_and_out_bit_for_bit(ran, case):
    kind, folder = case.split("-")[1], ran / case
    assert same(class_of(kind).from_pretrained(folder / "begun"), built(kind, seed=1))
    assert same(class_of(kind).from_pretrained(folder / "amid"), trained(built(kind, seed=1), 1))
    wanted = trained(built(kind, seed=1), 2)
    assert same(class_of(kind).from_pretrained(folder / "live"), wanted)
    assert export_checkpoint(folder / "run", folder / "kept") == 2
    assert same(class_of(kind).from_pretrained(folder / "kept"), wanted)
    for name in ("config.json", "model.safetensors"):
        assert (folder / "kept" / name).read_bytes() == (folder / "live" / name).read_bytes()


def test_an_adapter_of_a_sharded_model_is_written_whole(ran, tmp_path):
    export(trained(adapted(seed=1), 2), tmp_path / "wanted")
    export_checkpoint(ran / "fsdp-adapter" / "run", tmp_path / "kept")
    wanted = (tmp_path / "wanted" / "adapter_model.safetensors").read_bytes()
    for folder in (ran / "fsdp-adapter" / "live", tmp_path / "kept"):
        assert (folder / "adapter_model.safetensors").read_bytes() == wanted
