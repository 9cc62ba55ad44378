"""Models that no rank holds whole: saved by some ranks, loaded by others, the same bits; and safe to load."""

from dataclasses import replace

import pytest
import torch

from fabric.checkpoints import Checkpoints, DirectoryStore
from fabric.errors import CheckpointDamaged, Conflict
from tests.training.gang import crew
from tests.training.gang.test_worlds import lines
from tests.training.gang.work import REFUSED, Order
from training.gang.members import Gang, Seat
from training.sharded import Sharded

RAN = []


def test_state_moves_from_two_ranks_to_one_to_three_to_two_without_a_changed_bit(tmp_path):
    order = Order(folder=tmp_path, steps=2)
    for epoch, world in enumerate((2, 1, 3, 2), 1):
        assert crew.run(replace(order, epoch=epoch), world=world, doing="reshard") == [0] * world
    said = lines(tmp_path)
    for epoch in (1, 2, 3):
        saved = {line["digest"] for line in said if line.get("epoch") == epoch and "saved" in line}
        loaded = {line["digest"] for line in said if line.get("epoch") == epoch + 1 and "loaded" in line}
        assert saved == loaded
        assert len(saved) == 1


def test_a_rank_that_dies_while_saving_leaves_the_checkpoint_before(tmp_path):
    order = Order(folder=tmp_path, steps=1, timeout_s=20.0)
    assert crew.run(order, world=2, doing="reshard") == [0, 0]
    ends = crew.run(replace(order, epoch=2, dies_saving=(1,)), world=2, doing="reshard")
    assert ends == [REFUSED, -9]
    assert crew.run(replace(order, epoch=3), world=3, doing="reshard") == [0, 0, 0]
    said = lines(tmp_path)
    first = {line["digest"] for line in said if line.get("epoch") == 1}
    assert {line["digest"] for line in said if line.get("epoch") == 3 and "loaded" in line} == first


def alone(folder, *, epoch=1):
    checkpoints = Checkpoints(DirectoryStore(folder), prefix="run", epoch=epoch)
    return checkpoints, Sharded(checkpoints, Gang(Seat(), timeout_s=1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float64])
def test_every_kind_of_number_comes_back_as_it_was(tmp_path, dtype):
    _, keep = alone(tmp_path)
    kept = {
        "a": torch.arange(7).to(dtype),
        "nothing": torch.empty(0, 3, dtype=dtype),
        "one": torch.tensor(1).to(dtype),
        "n": 3,
    }
    keep.save(4, {"tree": kept})
    found = {
        "tree": {
            "a": torch.zeros(7, dtype=dtype),
            "nothing": torch.empty(0, 3, dtype=dtype),
            "one": torch.tensor(0).to(dtype),
            "n": 0,
        }
    }
    assert keep.load(found) == 4
    assert all(torch.equal(found["tree"][name], kept[name]) for name in ("a", "nothing", "one"))
    assert found["tree"]["n"] == 3


class Bomb:
    def __reduce__(self):
        return RAN.append, ("boom",)


def test_a_value_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    _, keep = alone(tmp_path)
    keep.save(1, {"x": torch.ones(2), "note": Bomb()})
    with pytest.raises(CheckpointDamaged) as refused:
        keep.load({"x": torch.zeros(2), "note": ""})
    assert refused.value.code == "value_not_plain"
    assert RAN == []


def test_a_flipped_bit_anywhere_falls_back_to_the_checkpoint_before(tmp_path):
    checkpoints, keep = alone(tmp_path)
    keep.save(1, {"x": torch.ones(64)})
    keep.save(2, {"x": torch.full((64,), 2.0)})
    for shard in checkpoints.newest().shards:
        path = tmp_path / "run" / shard.key
        whole = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(bytes([whole[0] ^ 4]) + whole[1:])
        found = {"x": torch.zeros(64)}
        assert keep.load(found) == 1
        assert torch.equal(found["x"], torch.ones(64))
        path.write_bytes(whole)


@pytest.mark.parametrize("asked", [{"x": torch.zeros(3)}, {"y": torch.zeros(2)}], ids=["another shape", "another name"])
def test_a_checkpoint_of_another_model_is_refused(tmp_path, asked):
    _, keep = alone(tmp_path)
    keep.save(1, {"x": torch.ones(2)})
    with pytest.raises(Conflict) as refused:
        keep.load(asked)
    assert refused.value.code == "checkpoint_of_another_model"
