"""No attempt leaves nothing of its node's disk to the others: it is found, told of, and parked."""

import io
import os
import zipfile
from typing import NamedTuple

import pytest

from fabric.cluster.ray_cluster import RayCluster
from fabric.errors import FabricError
from fabric.gate.events import LeaseTooLarge
from fabric.gate.instructions import StartLease
from fabric.storage.archive import DirectoryArchive
from fabric.system import disk_watch
from fabric.system.disk_watch import DiskLimits, DiskWatch, taken_by
from fabric.worker import working_folder
from fabric.worker.working_folder import unpacked
from tests.cluster.test_carry_out import LEASE, Attempt, cluster, soon

__all__ = ["cluster"]
MIB = 2**20


class Disk(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def work(tmp_path):
    for name, size in (("a", 3 * MIB), ("b", MIB)):
        (tmp_path / name / "0" / "work").mkdir(parents=True)
        (tmp_path / name / "0" / "work" / "data").write_bytes(b"x" * size)
    return tmp_path


def test_what_an_attempt_takes_is_counted_once_and_holes_count_nothing(work):
    before = taken_by(work / "a", files_max=1000)
    assert 3 * MIB <= before.bytes < 4 * MIB
    os.link(work / "a" / "0" / "work" / "data", work / "a" / "again")
    (work / "a" / "loop").symlink_to(work)
    with (work / "a" / "hole").open("wb") as file:
        file.truncate(2**40)
    after = taken_by(work / "a", files_max=1000)
    assert after.bytes < before.bytes + MIB
    assert after.files == before.files + 3


def test_an_attempt_that_takes_more_than_it_may_is_named_with_the_numbers(work):
    found = DiskWatch().too_large(work, ["a", "b"], DiskLimits(attempt_bytes=2 * MIB))
    assert list(found) == ["a"]
    assert "0.0 GiB" in found["a"]
    for number in range(20):
        (work / "b" / str(number)).touch()
    found = DiskWatch().too_large(work, ["a", "b"], DiskLimits(attempt_files=10))
    assert list(found) == ["b"]
    assert "10 files" in found["b"]


def test_where_the_disk_is_nearly_full_the_largest_makes_room(work, monkeypatch):
    monkeypatch.setattr(disk_watch.shutil, "disk_usage", lambda _: Disk(100 * MIB, 98 * MIB, 2 * MIB))
    assert list(DiskWatch().too_large(work, ["a", "b"], DiskLimits())) == ["a"]
    assert DiskWatch().too_large(work, ["b"], DiskLimits()) == {}, "it isn't what fills the disk"
    monkeypatch.setattr(disk_watch.shutil, "disk_usage", lambda _: Disk(100 * MIB, 50 * MIB, 50 * MIB))
    assert DiskWatch().too_large(work, ["a", "b"], DiskLimits()) == {}


def test_counting_takes_a_small_part_of_the_time(work, monkeypatch):
    now, counted = [0.0], []

    def slow(folder, *, files_max):
        counted.append(folder)
        now[0] += 10
        return disk_watch.Taken(0, files_max - files_max)

    monkeypatch.setattr(disk_watch, "taken_by", slow)
    watch = DiskWatch(monotonic=lambda: now[0])
    for _ in range(100):
        now[0] += 5
        watch.too_large(work, ["a"], DiskLimits())
    assert 1 < len(counted) < 8


def test_a_folder_deeper_or_larger_than_expected_is_no_trouble(tmp_path):
    here = os.getcwd()  # noqa: PTH109
    (tmp_path / "deep").mkdir()
    os.chdir(tmp_path / "deep")
    for _ in range(300):
        os.mkdir("d" * 10)  # noqa: PTH102
        os.chdir("d" * 10)
    os.chdir(here)
    assert taken_by(tmp_path / "deep", files_max=50).files == 51
    assert taken_by(tmp_path / "nothing", files_max=50) == (0, 0)


async def test_the_gate_hears_of_it(cluster: RayCluster, monkeypatch):
    async def too_large(address, *, work_dir, folders, limits):
        assert (address, limits) == ("10.0.0.1", cluster._settings.disk)
        return dict.fromkeys(folders, f"too much in {work_dir}")

    monkeypatch.setattr(Attempt, "addresses", ("10.0.0.1",), raising=False)
    monkeypatch.setattr(cluster._agents, "too_large", too_large)
    await cluster.carry_out([StartLease(lease=LEASE)])
    await cluster._look_at_disks()
    await soon()
    (event,) = cluster.reported
    assert isinstance(event, LeaseTooLarge)
    assert event.lease_id == LEASE.lease_id
    assert "too much" in event.error


@pytest.mark.parametrize("bound", ["SIZE_MAX", "FILES_MAX"])
def test_a_small_zip_unpacks_to_no_more_than_may_be(tmp_path, monkeypatch, bound):
    monkeypatch.setattr(working_folder, bound, 10)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
        for number in range(11):
            bomb.writestr(f"f{number}", b"\0" * 1000)
    archive = DirectoryArchive(tmp_path / "archive")
    archive.put("blobs/acme/zip", packed.getvalue())
    with pytest.raises(FabricError) as refusal:
        unpacked(archive, "blobs/acme/zip", into=tmp_path / "work")
    assert refusal.value.code == "working_dir_too_large"
    assert list((tmp_path / "work").iterdir()) == []
