"""Weights that nothing trains are written once, and every checkpoint has them all the same."""

import math

import pytest
import torch
from torch import nn

from fabric.checkpoints import Checkpoints, DirectoryStore
from fabric.errors import CheckpointDamaged, JobFailed
from training import session
from training.state import vault

WIDTH = 128
BASE_BYTES = WIDTH * WIDTH * 4


class Adapted(nn.Module):
    """A frozen base with a small adapter beside it, as LoRA has."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(requires_grad=False)
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, seen):
        return self.base(seen) + self.up(self.down(seen))


class Tied(Adapted):
    """Two names of one frozen weight."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head.weight = self.base.weight

    def forward(self, seen):
        return self.head(super().forward(seen))


class Sparse(Adapted):
    """A frozen weight whose bytes are not all there is to it."""

    def __init__(self):
        super().__init__()
        self.mask = nn.Parameter(torch.eye(WIDTH).to_sparse_coo(), requires_grad=False)

    def forward(self, seen):
        return super().forward(torch.sparse.mm(self.mask, seen.T).T)


class Averaged(Adapted):
    """An average of what is trained, which nothing trains and which changes all the same."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(WIDTH, WIDTH)
        self.average = nn.Linear(WIDTH, WIDTH).requires_grad_(requires_grad=False)

    def forward(self, seen):
        return super().forward(self.wide(seen))


def trained(folder, steps, *, change=lambda step, model: None, model=None, each_is_saved=True):
    """The model after so many steps of another process; `change` is called at the end of each with its number."""
    vault._of_directories.clear()
    model = model or Adapted()
    opt = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = session(model=model, opt=opt, directory=folder, snapshot_every_s=math.inf)
    for step in run.steps(steps):
        if each_is_saved and run._loop._saver.has_new:
            run._loop._saver.save(at_boundary=True)  # so that what is written can be counted
        opt.zero_grad()
        model(torch.ones(2, WIDTH) * step).pow(2).mean().backward()
        opt.step()
        change(step, model)
    return model


def resumed(folder, steps, *, kind=Adapted, change=lambda step, model: None):
    """The same in two attempts, the second of which begins with other weights."""
    trained(folder, steps // 2, change=change, model=kind())
    other = kind()
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    return trained(folder, steps, change=change, model=other)


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(*(each.to_dense() if each.is_sparse else each for each in pair)) for pair in pairs)


def kept(folder):
    return Checkpoints(DirectoryStore(folder), prefix="session")


@pytest.fixture
def written(monkeypatch):
    """How many bytes each shard that was written has, in order, by name."""
    sizes, put = [], DirectoryStore.put

    def counted(self, key, data, **options):
        sizes.append((key.rpartition("/")[2], memoryview(data).nbytes))
        return put(self, key, data, **options)

    monkeypatch.setattr(DirectoryStore, "put", counted)
    return sizes


def count(written):
    return sum(name == "frozen" for name, _ in written)


def test_frozen_weights_are_written_once_over_all_attempts_and_come_back(tmp_path, written):
    again = resumed(tmp_path / "two", 6)
    assert count(written) == 1
    states = [size for name, size in written if name == "state"]
    assert len(states) > 4
    assert max(states) < BASE_BYTES / 2
    assert same(again, trained(tmp_path / "one", 6))


def test_a_frozen_weight_that_changes_without_a_trace_is_written_again(tmp_path, written):
    def swap(step, model):
        if step == 3:  # the same values in another order: neither a counter nor a sum tells
            model.base.weight.data[[0, 1]] = model.base.weight.data[[1, 0]]

    model = trained(tmp_path, 6, change=swap)
    assert same(trained(tmp_path, 6), model)
    assert count(written) + sum(size > BASE_BYTES for name, size in written if name == "state") > 1


def changed_in_place(step, model):
    if step == 2:
        model.base.weight.data.add_(1.0)


def replaced(step, model):
    if step == 2:
        model.base.weight = nn.Parameter(model.base.weight + 1, requires_grad=False)


def set_free(step, model):
    if step == 2:
        model.base.requires_grad_(requires_grad=True)


def frozen_later(step, model):
    if step == 2:
        model.down.requires_grad_(requires_grad=False)


def averaged(step, model):
    with torch.no_grad():
        model.average.weight.lerp_(model.wide.weight, 0.5)


def averaged_without_a_trace(step, model):
    model.average.weight.data.lerp_(model.wide.weight.data, 0.5)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Adapted, changed_in_place),
        (Adapted, replaced),
        (Adapted, set_free),
        (Adapted, frozen_later),
        (Tied, lambda step, model: None),
        (Sparse, lambda step, model: None),
        (Averaged, averaged),
        (Averaged, averaged_without_a_trace),
    ],
    ids=["in place", "replaced", "set free", "frozen later", "tied", "sparse", "average", "average, no trace"],
)
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("steps", [4, 8], ids=["changed by the second attempt", "and by the first"])
def test_what_is_frozen_is_bitwise_what_it_was_whatever_happens_to_it(tmp_path, kind, change, steps):
    again = resumed(tmp_path / "two", steps, kind=kind, change=change)
    whole = trained(tmp_path / "one", steps, change=change, model=kind())
    assert same(again, whole)
    assert same(trained(tmp_path / "two", steps, model=kind()), whole), "and so is what is kept at the end"


@pytest.mark.parametrize("change", [averaged, averaged_without_a_trace])
def test_what_only_seems_frozen_is_not_written_apart_again_and_again(tmp_path, written, change):
    trained(tmp_path, 9, change=change, model=Averaged())
    assert count(written) <= 3


def test_a_frozen_weight_that_is_not_a_number_any_more_is_not_saved(tmp_path):
    def spoil(step, model):
        if step == 3:
            model.base.weight.data[0, 0] = math.nan

    with pytest.raises(JobFailed) as raised:
        trained(tmp_path, 6, change=spoil)
    assert (raised.value.code, "model.base.weight" in raised.value.message) == ("not_finite", True)
    assert kept(tmp_path).newest().step == 3


def frozen_files(folder):
    """One path for each file that holds such a part: checkpoints may share it."""
    return {path.stat().st_ino: path for path in folder.glob("session/data/*/frozen")}.values()


def test_a_damaged_frozen_part_is_noticed_and_never_loaded(tmp_path):
    trained(tmp_path, 4)
    for path in frozen_files(tmp_path):
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 1
        path.chmod(0o600)
        path.write_bytes(bytes(whole))
    with pytest.raises(CheckpointDamaged):
        trained(tmp_path, 6)


def test_a_frozen_part_that_is_gone_is_written_again(tmp_path, written):
    def lose(step, model):
        if step == 3:
            for path in tmp_path.glob("session/data/*/frozen"):
                path.unlink()

    model = trained(tmp_path, 6, change=lose)
    assert count(written) == 2
    assert same(trained(tmp_path, 6), model)


def test_checkpoints_that_share_a_frozen_part_are_rolled_back_and_forked_whole(tmp_path):
    model = trained(tmp_path, 5)
    standing = kept(tmp_path).ls()
    older = standing[-1]
    assert older.step < standing[0].step
    kept(tmp_path).fork("other", step=older.step)
    kept(tmp_path).rollback(older.step)
    forked = Checkpoints(DirectoryStore(tmp_path), prefix="other")
    for checkpoints in (kept(tmp_path), forked):
        assert checkpoints.newest().step == older.step
    assert same(trained(tmp_path, 5), model)


def test_a_checkpoint_from_before_frozen_weights_had_a_part_is_resumed(tmp_path, monkeypatch, written):
    from training.state import frozen

    with monkeypatch.context() as patched:
        patched.setattr(frozen, "_BYTES_MIN", math.inf)
        trained(tmp_path, 3)
    assert count(written) == 0
    model = trained(tmp_path, 6)
    assert count(written) == 1
    assert same(model, trained(tmp_path / "one", 6))
