"""A job may have several checkpoint logs, one below the other: what is done to the job is done to all of them."""

import pytest

from fabric import context
from fabric.checkpoints import Checkpoints, DirectoryStore
from fabric.errors import Conflict, InvalidRequest, NotFound

JOB = "jobs/acme/j-1/checkpoint"
TO = "jobs/acme/j-2/checkpoint"


def state(checkpoints):
    found = checkpoints.load()
    return None if found is None else found[1]["state"]


def test_what_lies_below_is_kept_as_the_job_is(tmp_path, store):
    options = {
        "model": "m", "keep": 3, "every": 5, "tenant": "jobs/acme", "quota": object(),
        "local": DirectoryStore(tmp_path / "near"), "on_durable": lambda *_: None,
    }  # fmt: skip
    job = Checkpoints(store, prefix=JOB, epoch=2, attempt_id="a", **options)
    below = job.below("0001")
    assert {name: getattr(below, name) for name in options} == options
    assert (below.epoch, below.writer.attempt, below.prefix) == (2, "a", f"{JOB}/sessions/0001")


@pytest.mark.parametrize("name", ["../j-2", "", "a/../../b", ".hidden"])
def test_nothing_below_leaves_the_job(attempt, name):
    with pytest.raises(InvalidRequest):
        attempt().below(name)


def test_rolling_back_makes_void_what_came_after_in_other_sessions(attempt, save):
    job = attempt(keep=5)
    for step in range(3):
        save(job, step)
    later, latest = job.below("0001"), job.below("0002")
    save(later, 4, state=b"later")
    save(latest, 5, state=b"latest")
    attempt(1).rollback(1)
    again = attempt(2)
    assert state(again) == b"state 1"
    assert state(again.below("0001")) is None
    assert state(again.below("0002")) is None
    with pytest.raises(Conflict):
        save(later, 6)
    anew = attempt(3).below("0001")
    save(anew, 1, state=b"anew")
    assert state(attempt(4).below("0001")) == b"anew"


def test_a_step_that_is_not_there_leaves_all_sessions_as_they_are(attempt, save):
    job = attempt()
    save(job, 1)
    save(job.below("0001"), 2, state=b"later")
    with pytest.raises(NotFound):
        attempt(1).rollback(7)
    assert state(attempt(2).below("0001")) == b"later"


class Away(DirectoryStore):
    """A store to which nothing gets through while `is_away`."""

    is_away = False

    def put_file(self, key, path):
        if self.is_away:
            raise KeyboardInterrupt
        return super().put_file(key, path)


@pytest.mark.parametrize("name", ["", "0001"])
def test_what_an_attempt_staged_in_any_session_is_made_durable_by_the_next(tmp_path, save, name):
    store, near = Away(tmp_path / "store"), DirectoryStore(tmp_path / "near", durable=False)
    first = Checkpoints(store, prefix=JOB, local=near, epoch=1)
    save(first, 1)
    dying = first.below(name) if name else first
    save(dying, 2)
    store.is_away = True
    with pytest.raises(KeyboardInterrupt):
        save(dying, 3)
    store.is_away = False
    second = Checkpoints(
        DirectoryStore(tmp_path / "store"), prefix=JOB, local=DirectoryStore(tmp_path / "near", durable=False), epoch=2
    )
    context.Context(context.Place(job_id="j-1", attempt=2), checkpoints=second).begin()
    third = Checkpoints(DirectoryStore(tmp_path / "store"), prefix=JOB, epoch=3)
    assert state(third.below(name) if name else third) == b"state 3"
    assert first.below("0009").newest() is None


def test_what_was_staged_before_a_rollback_does_not_come_back(tmp_path, save):
    store, near = Away(tmp_path / "store"), DirectoryStore(tmp_path / "near", durable=False)
    first = Checkpoints(store, prefix=JOB, local=near, epoch=1)
    save(first, 1)
    first.below("0001").claim()
    store.is_away = True
    with pytest.raises(KeyboardInterrupt):
        save(first.below("0001"), 2)
    store.is_away = False
    Checkpoints(store, prefix=JOB).rollback(1)
    for epoch in (2, 3):
        again = Checkpoints(store, prefix=JOB, local=DirectoryStore(tmp_path / "near", durable=False), epoch=epoch)
        again.recover()
        assert again.below("0001").newest() is None


def test_a_fork_of_the_newest_takes_all_sessions_along(attempt, save, store):
    job = attempt(keep=3)
    for step in range(3):
        save(job, step)
    save(job.below("0001"), 7, state=b"later")
    job.fork(TO)
    forked = Checkpoints(store, prefix=TO, epoch=1)
    assert (state(forked), state(forked.below("0001"))) == (b"state 2", b"later")
    assert state(forked.below("0002")) is None


def test_a_fork_of_an_older_step_begins_later_sessions_anew(attempt, save, store):
    job = attempt(keep=3)
    for step in range(3):
        save(job, step)
    save(job.below("0001"), 7, state=b"later")
    job.fork(TO, step=1)
    forked = Checkpoints(store, prefix=TO, epoch=1)
    assert (state(forked), state(forked.below("0001"))) == (b"state 1", None)


def test_a_fork_that_was_broken_off_is_made_whole_by_another_call(attempt, save, store):
    job = attempt()
    save(job, 1)
    save(job.below("0001"), 7, state=b"later")
    save(job.below("0002"), 8, state=b"latest")
    job.below("0001").fork(f"{TO}/sessions/0001")  # as far as the first call came
    job.fork(TO)
    forked = Checkpoints(store, prefix=TO, epoch=1)
    assert [state(forked.below(name)) for name in ("0001", "0002")] == [b"later", b"latest"]
    assert state(forked) == b"state 1"


def test_a_fork_leaves_no_session_in_a_job_that_has_checkpoints(attempt, save, store):
    save(Checkpoints(store, prefix=TO), 5)
    job = attempt()
    save(job, 1)
    save(job.below("0001"), 7)
    with pytest.raises(Conflict) as raised:
        job.fork(TO)
    assert raised.value.code == "fork_target_in_use"
    assert Checkpoints(store, prefix=TO).below("0001").newest() is None
