"""A shard that a checkpoint takes over from one before it, instead of writing it again."""

import pytest

from fabric.checkpoints import Checkpoints, DirectoryStore
from fabric.errors import Conflict, NotFound
from tests.checkpoints.conftest import JOB

BASE = b"base" * 1_000


def saved(checkpoints, step, *, base=None):
    """One checkpoint with a base, which is written, or taken over; and the base's shard."""
    draft = checkpoints.begin(step)
    shard = draft.put("base", BASE) if base is None else draft.take(base)
    draft.put("state", f"state {step}".encode())
    checkpoints.commit(draft)
    return shard


def test_what_is_taken_over_outlives_the_checkpoints_that_had_it_before(attempt, store):
    first = attempt()
    base = saved(first, 1)
    for step in range(2, 7):
        base = saved(first, step, base=base)
    assert len(store.folders(f"{JOB}/data")) == 2
    for manifest in first.ls():
        first.verify(manifest)
    assert attempt(2).load()[1] == {"base": BASE, "state": b"state 6"}


def test_the_next_attempt_takes_over_from_the_one_before(attempt, store):
    saved(attempt(), 1)
    second = attempt(2)
    base = saved(second, 2, base=second.newest().shard("base"))
    saved(second, 3, base=base)
    assert attempt(3).load()[1] == {"base": BASE, "state": b"state 3"}


def test_what_is_not_there_any_more_is_not_taken_over(attempt, store):
    first = attempt()
    base = saved(first, 1)
    store.delete(f"{JOB}/{base.key}")
    draft = first.begin(2)
    with pytest.raises(NotFound):
        draft.take(base)
    assert draft.shards == ()
    draft.put("base", BASE)
    first.commit(draft)
    assert attempt(2).load()[1] == {"base": BASE}


def test_a_name_is_taken_over_once(attempt):
    first = attempt()
    base = saved(first, 1)
    draft = first.begin(2)
    draft.take(base)
    for again in (lambda: draft.take(base), lambda: draft.put("base", BASE)):
        with pytest.raises(Conflict):
            again()


def test_what_is_dropped_or_abandoned_takes_nothing_from_who_had_it_before(attempt):
    first = attempt()
    base = saved(first, 1)
    draft = first.begin(2)
    draft.take(base)
    draft.drop("base")
    first.abandon(draft)
    assert attempt(2).load()[1]["base"] == BASE


@pytest.mark.parametrize("is_near", [True, False])
def test_a_process_that_dies_before_it_has_sent_all_leaves_what_was_taken_over_near_too(tmp_path, is_near, monkeypatch):
    """If it isn't near, what that process did since counts for nothing, and the checkpoint before it is whole."""
    store, local = DirectoryStore(tmp_path / "store"), DirectoryStore(tmp_path / "near")
    first = Checkpoints(store, prefix=JOB, local=local, epoch=1)
    base = saved(first, 1)
    if not is_near:
        local.delete_folder(JOB)
    draft = first.begin(2)
    draft.take(base)
    draft.put("state", b"state 2")
    monkeypatch.setattr(draft, "upload", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        first.commit(draft)
    second = Checkpoints(store, prefix=JOB, local=local, epoch=2)
    recovered = second.recover()
    assert (recovered and recovered.step) == (2 if is_near else None)
    assert Checkpoints(store, prefix=JOB, epoch=3).load()[1] == {
        "base": BASE,
        "state": b"state 2" if is_near else b"state 1",
    }
