"""What is made ready for an attempt is what it would have made itself: empty, private, and no attempt's twice."""

import os
import stat

import pytest

from fabric.system.private_folder import HOME, IDLE, WORK, attempt_folder, close, make_private, rooms_of, sweep
from fabric.system.short_links import TEMPORARY
from fabric.worker import ready_folder
from fabric.worker.ready_folder import FIRST, ReadyFolder


@pytest.fixture
def ready(tmp_path):
    made = ReadyFolder()
    made.make(tmp_path)
    return made


def rank_of(work_dir, job="job/1", rank=FIRST):
    return attempt_folder(work_dir, job) / rank


def set_up(folder):
    return rooms_of(make_private(folder))


def waiting(work_dir):
    return list((work_dir / IDLE).iterdir())


def test_an_attempt_that_takes_it_has_what_one_has_that_makes_its_own(ready, tmp_path):
    taken, own = rank_of(tmp_path, "job/1"), rank_of(tmp_path, "job/2")
    ready.become(taken)
    assert taken.is_dir()
    for folder in (taken, own):
        assert set_up(folder) == (folder / WORK, folder / HOME, folder / TEMPORARY)
        assert {path.name: list(path.iterdir()) for path in folder.iterdir()} == {WORK: [], HOME: [], TEMPORARY: []}
        for path in (folder.parent, folder, *folder.iterdir()):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        close(folder)
    assert waiting(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == [IDLE]


def test_no_second_attempt_takes_it(ready, tmp_path):
    ready.become(rank_of(tmp_path, "job/1"))
    ready.become(rank_of(tmp_path, "job/2"))
    assert not rank_of(tmp_path, "job/2").exists()


@pytest.mark.parametrize("room", [WORK, HOME, TEMPORARY])
def test_what_somebody_puts_into_it_reaches_no_attempt(ready, tmp_path, room):
    (there,) = waiting(tmp_path)
    (there / FIRST / room / "planted").write_text("")
    folder = rank_of(tmp_path)
    ready.become(folder)
    assert [list(path.iterdir()) for path in set_up(folder)] == [[], [], []]


def test_a_room_that_somebody_opens_or_leads_elsewhere_is_made_anew(ready, tmp_path):
    (there,) = waiting(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (there / FIRST / HOME).chmod(0o777)
    (there / FIRST / WORK).rmdir()
    (there / FIRST / WORK).symlink_to(elsewhere)
    folder = rank_of(tmp_path)
    ready.become(folder)
    for room in set_up(folder):
        assert not room.is_symlink()
        assert stat.S_IMODE(room.stat().st_mode) == 0o700
    assert elsewhere.exists()


def test_where_others_of_the_attempt_are_it_stays_for_the_next(ready, tmp_path):
    other = make_private(rank_of(tmp_path, "job/1", rank="1"))
    ready.become(rank_of(tmp_path, "job/1"))
    assert other.is_dir()
    assert not rank_of(tmp_path, "job/1").exists()
    ready.become(rank_of(tmp_path, "job/2"))
    assert rank_of(tmp_path, "job/2").is_dir()


def test_another_rank_than_the_first_makes_its_own(ready, tmp_path):
    ready.become(rank_of(tmp_path, rank="1"))
    assert list(tmp_path.iterdir()) == [tmp_path / IDLE]
    assert len(set_up(rank_of(tmp_path, rank="1"))) == 3


def test_one_that_was_removed_is_missed_by_nobody(ready, tmp_path):
    (there,) = waiting(tmp_path)
    os.utime(there, (0, 0))
    assert sweep(tmp_path, living=()) == [there.name]
    ready.become(rank_of(tmp_path))
    assert len(set_up(rank_of(tmp_path))) == 3
    ready.make(tmp_path)
    ready.become(rank_of(tmp_path, "job/2"))
    assert rank_of(tmp_path, "job/2").is_dir()


def test_one_that_may_be_swept_meanwhile_is_not_taken(ready, tmp_path, monkeypatch):
    monkeypatch.setattr(ready_folder, "_GOOD_S", 0.0)
    ready.become(rank_of(tmp_path))
    assert not rank_of(tmp_path).exists()


def test_one_is_enough(ready, tmp_path):
    ready.make(tmp_path)
    assert len(waiting(tmp_path)) == 1


def test_where_none_can_be_made_an_attempt_goes_on_without(tmp_path):
    (tmp_path / "no-folder").write_text("")
    ready = ReadyFolder()
    ready.make(tmp_path / "no-folder")
    ready.become(rank_of(tmp_path))
    assert not rank_of(tmp_path).exists()
