"""An attempt's own folders: empty at its begin, its owner's alone, gone with it, and swept where nobody was left to do it."""

import os
import time

import pytest

from fabric.errors import Unavailable
from fabric.system import private_folder
from fabric.system.private_folder import attempt_folder, clear, close, make_private, rooms_of, sweep
from fabric.system.short_links import RAY, TEMPORARY, short_link, short_path


def test_nobody_but_its_owner_may_enter_it_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        folder = make_private(tmp_path / "work" / "job.1" / "0")
        rooms = rooms_of(folder)
    finally:
        os.umask(before)
    made = [folder, folder.parent, folder.parent.parent, *rooms]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}


def test_a_room_is_empty_even_if_something_was_left_there(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "old").write_text("of another attempt")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("")
    (tmp_path / "home").symlink_to(tmp_path / "elsewhere")
    for room in rooms_of(tmp_path):
        assert not room.is_symlink()
        assert list(room.iterdir()) == []
    assert (tmp_path / "elsewhere" / "kept").exists()


def test_a_folder_that_somebody_else_has_made_is_not_worked_in(tmp_path, monkeypatch):
    make_private(tmp_path / "work" / "job.1" / "0")
    monkeypatch.setattr(private_folder.os, "geteuid", lambda: 12_345)
    with pytest.raises(Unavailable, match="made by somebody else"):
        make_private(tmp_path / "work" / "job.1" / "0")


def test_the_attempts_folder_goes_with_its_last_rank(tmp_path):
    ranks = [make_private(attempt_folder(tmp_path, "job/a.1") / str(rank)) for rank in range(2)]
    close(ranks[0])
    assert ranks[1].exists()
    close(ranks[1])
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_has_left_is_swept_and_what_lives_or_is_young_is_not(tmp_path):
    long_ago = time.time() - 3_600
    for name in ("dead.1", "alive.1", "cache", "idle", "idle/left-by-a-task"):
        (tmp_path / name).mkdir()
    (tmp_path / "dead.1" / "secret").write_text("weights")
    (tmp_path / "young.1").mkdir()
    for path in [tmp_path / "idle" / "left-by-a-task", *tmp_path.iterdir()]:
        if path.name != "young.1":
            os.utime(path, (long_ago, long_ago))
    assert sorted(sweep(tmp_path, living={"alive.1"})) == ["dead.1", "left-by-a-task"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive.1", "cache", "idle", "young.1"]
    assert sweep(tmp_path / "nowhere", living=()) == []


@pytest.mark.parametrize("depth", [3, 1200, 6000])
def test_no_folder_is_too_deep_or_too_closed_to_be_removed(tmp_path, depth):
    left = tmp_path / "left"
    left.mkdir()
    here = os.getcwd()  # noqa: PTH109
    os.chdir(left)
    try:
        for _ in range(depth):
            os.mkdir("d")  # noqa: PTH102
            os.chdir("d")
            os.close(os.open("file", os.O_CREAT))
        os.chmod(".", 0)  # noqa: PTH101
    finally:
        os.chdir(here)
    clear(left)
    assert not left.exists()


@pytest.mark.parametrize("by", ["its end", "a later sweep"])
def test_the_short_ways_to_a_rank_go_with_it_whoever_was_killed_before(tmp_path, by):
    rank = make_private(attempt_folder(tmp_path, f"job/{'a' * 64}.1") / "0")
    rooms_of(rank)
    links = [short_path(rank, TEMPORARY), short_link(rank, RAY)]
    assert all(link.is_symlink() and len(str(link)) < 64 for link in links)
    if by == "its end":
        close(rank)
    else:
        os.utime(rank.parent, (0, 0))
        assert sweep(tmp_path, living=()) == [rank.parent.name]
    assert not any(link.is_symlink() for link in links)


def test_a_short_way_that_somebody_else_has_taken_is_not_gone(tmp_path):
    rank = make_private(attempt_folder(tmp_path, f"job/{'b' * 64}.1") / "0")
    taken = short_link(rank, TEMPORARY)
    taken.unlink()
    taken.mkdir()
    try:
        assert short_path(rank, TEMPORARY) == rank / TEMPORARY
        close(rank)
        assert taken.is_dir()
    finally:
        taken.rmdir()
