"""What a job may ask of the fabric holds inside it and, harmlessly, outside."""

import pytest

from fabric import context
from fabric.checkpoints import Checkpoints, DirectoryStore
from fabric.context import Context, Place, Saved
from fabric.errors import CheckpointDamaged, Conflict


def job(tmp_path, *, epoch=1, rank=0, saves=None):
    checkpoints = Checkpoints(DirectoryStore(tmp_path), prefix="jobs/acme/j/checkpoint", epoch=epoch, attempt_id="a")
    on_saved = None if saves is None else lambda step, write_us, size: saves.append((step, write_us >= 0))
    return Context(Place(job_id="j", attempt=epoch, rank=rank), checkpoints=checkpoints, on_saved=on_saved)


def test_outside_the_fabric_nothing_is_asked_kept_or_known():
    outside = context.current()
    outside.save(b"state", step=3)
    assert (outside.load(), outside.stop_requested, outside.deadline_s_left()) == (None, False, None)
    assert (outside.job_id, outside.rank, outside.world_size) == ("", 0, 1)


def test_a_newer_attempt_loads_what_an_older_one_saved_and_is_told_of(tmp_path):
    saves = []
    first = job(tmp_path, saves=saves)
    for step in range(4):
        first.save(f"state {step}".encode(), step=step)
    assert job(tmp_path, epoch=2).load() == b"state 3"
    assert saves == [(step, True) for step in range(4)]
    assert len(DirectoryStore(tmp_path).keys("jobs/acme/j/checkpoint/data")) == 2


def test_an_older_attempt_can_not_save_once_a_newer_one_has_begun(tmp_path):
    first, second = job(tmp_path), job(tmp_path, epoch=2)
    first.save(b"old")
    second.begin()
    with pytest.raises(Conflict) as raised:
        first.save(b"zombie")
    assert raised.value.code == "fenced"
    assert second.load() == b"old"


@pytest.mark.parametrize("damage", [b"", b"statE 1", b"state 1!"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    first = job(tmp_path)
    first.save(b"state 0")
    first.save(b"state 1")
    store, newest = DirectoryStore(tmp_path), first.checkpoints.ls()[0]
    store.put(f"jobs/acme/j/checkpoint/{newest.shards[0].key}", damage)
    assert job(tmp_path, epoch=2).load() == b"state 0"


def test_when_no_checkpoint_is_whole_the_job_is_told_and_does_not_begin_anew(tmp_path):
    first = job(tmp_path)
    first.save(b"state")
    store = DirectoryStore(tmp_path)
    store.put(store.keys("jobs/acme/j/checkpoint/data")[0], b"statE")
    with pytest.raises(CheckpointDamaged) as raised:
        job(tmp_path, epoch=2).load()
    assert raised.value.code == "no_good_checkpoint"


def test_checkpoints_of_an_older_layout_are_refused_not_passed_over(tmp_path):
    DirectoryStore(tmp_path).put("jobs/acme/j/checkpoint/manifests/00000001-00000001", b"{}")
    with pytest.raises(Conflict, match=r"format 0.*format 1") as raised:
        job(tmp_path).load()
    assert raised.value.code == "checkpoint_version"


def test_only_rank_zero_saves(tmp_path):
    job(tmp_path, rank=1).save(b"state")
    assert job(tmp_path).load() is None


def test_a_wish_to_stop_is_seen_with_its_reason_and_the_time_left(tmp_path):
    here = job(tmp_path)
    here.ask_to_stop("evicted", seconds_left=10)
    assert here.stop_requested
    assert here.wait_for_stop(0)
    assert here.stop_reason == "evicted"
    assert 9 < here.deadline_s_left() <= 10


def test_parking_passes_through_a_jobs_own_handlers(tmp_path):
    def guarded():
        try:
            job(tmp_path).park()
        except Exception:  # noqa: BLE001
            return "swallowed"

    with pytest.raises(Saved):
        guarded()


class Scalar:
    """As arrays' and tensors' whole numbers are."""

    def __index__(self):
        return 7


@pytest.mark.parametrize(("step", "told"), [(Scalar(), 7), (True, 1), (2**63 - 1, 2**63 - 1)])
def test_a_step_is_told_as_a_plain_number(tmp_path, step, told):
    steps = []
    checkpoints = Checkpoints(DirectoryStore(tmp_path), prefix="jobs/acme/j/checkpoint", epoch=1)
    Context(Place(job_id="j"), checkpoints=checkpoints, on_saved=lambda step, *_: steps.append(step)).save(
        b"", step=step
    )
    assert [(type(step), step) for step in steps] == [(int, told)]


@pytest.mark.parametrize(
    ("step", "error"), [(1.5, TypeError), ("3", TypeError), (-1, OverflowError), (2**63, OverflowError)]
)
def test_a_step_that_is_no_count_is_refused_where_it_is_saved(tmp_path, step, error):
    saves = []
    for one in (job(tmp_path, saves=saves), context.current()):
        with pytest.raises(error):
            one.save(b"state", step=step)
    assert saves == []
