"""What a job leaves has a bound in bytes and in number; beyond it the job is told, and keeps what it saved before."""

import sys
import threading

import pytest

from fabric import context
from fabric.checkpoints import Checkpoints, commit_directory, store_of
from fabric.errors import FabricError, InvalidRequest, RateLimited
from fabric.gate.events import JobKind, LeaseOutcome
from fabric.storage.archive import DirectoryArchive, Stored
from fabric.storage.quota import ArchiveLimits, ArchiveQuota
from fabric.worker.execution import perform
from fabric.worker.runner import Order, stage_of
from tests.worker.leases import lease_of

KB = 1_000
PREFIX = "jobs/acme/j/checkpoint"


class Kept(DirectoryArchive):
    """Counts how often it is asked how much there is."""

    asked = 0

    def stored(self, prefix):
        self.asked += 1
        return super().stored(prefix)


class Watch:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def archive(tmp_path):
    return Kept(tmp_path / "archive")


@pytest.fixture
def watch():
    return Watch()


@pytest.fixture
def quota(archive, watch):
    return lambda **limits: ArchiveQuota(archive, "acme", ArchiveLimits(**limits), monotonic=watch)


def checkpoints(archive, quota, *, epoch=1, **more):
    return Checkpoints(store_of(archive), prefix=PREFIX, epoch=epoch, quota=quota, **more)


def save(where, step, size, name="state"):
    draft = where.begin(step)
    draft.put(name, bytes([step % 250 + 1]) * size)
    return where.commit(draft)


def test_an_account_keeps_so_many_bytes_and_the_last_checkpoint_stays(archive, quota):
    kept = checkpoints(archive, quota(account_bytes=100 * KB))
    save(kept, 1, 40 * KB)
    save(kept, 2, 40 * KB)
    with pytest.raises(RateLimited, match=r"80,\d{3} bytes.*100,000.*fabric checkpoints rm.*resume") as refusal:
        save(kept, 3, 40 * KB)
    assert refusal.value.code == "archive_full"
    assert refusal.value.facts["limit_bytes"] == 100 * KB
    assert checkpoints(archive, None, epoch=2).newest().step == 2
    assert archive.stored("jobs/acme").bytes < 100 * KB


def test_other_jobs_of_the_account_count_and_other_accounts_do_not(archive, quota):
    archive.put("jobs/globex/j/result", bytes(90 * KB))
    save(checkpoints(archive, quota(account_bytes=100 * KB)), 1, 40 * KB)
    archive.put("jobs/acme/other/result", bytes(50 * KB))
    with pytest.raises(RateLimited):
        save(checkpoints(archive, quota(account_bytes=100 * KB), epoch=2), 2, 40 * KB)


def test_an_account_keeps_so_many_values(archive, quota):
    kept = checkpoints(archive, quota(account_values=10))
    draft = kept.begin(1)
    for number in range(10):
        draft.put(f"s-{number}", b"")
    with pytest.raises(RateLimited) as refusal:
        draft.put("one-more", b"")
    assert refusal.value.facts["limit_values"] == 10
    assert archive.stored("jobs/acme").values <= 10


def test_a_checkpoint_is_no_larger_than_one_may_be_whoever_wrote_its_parts(archive, quota):
    kept = checkpoints(archive, quota(checkpoint_bytes=100 * KB))
    draft = kept.begin(1)
    draft.put("a", bytes(60 * KB))
    with pytest.raises(InvalidRequest, match="120,000") as refusal:
        draft.put("b", bytes(60 * KB))
    assert refusal.value.code == "checkpoint_too_large"
    other = kept.begin(1)
    with pytest.raises(InvalidRequest):
        kept.commit(other, shards=(*draft.shards, *(each for each in [_other(kept)])))
    assert kept.newest() is None


def _other(kept):
    draft = kept.begin(1, token="other-rank")
    return draft.put("c", bytes(60 * KB))


def test_a_folder_counts_as_what_is_stored_of_it(archive, quota, tmp_path):
    (tmp_path / "folder").mkdir()
    with (tmp_path / "folder" / "huge").open("wb") as file:
        file.truncate(2**40)
    kept = checkpoints(archive, quota(checkpoint_bytes=10 * KB, account_bytes=100 * KB))
    assert commit_directory(kept, tmp_path / "folder").bytes < 10 * KB


def test_who_is_refused_is_looked_at_again_so_that_deleting_helps_at_once(archive, quota, watch):
    archive.put("jobs/acme/old/result", bytes(90 * KB))
    kept = checkpoints(archive, quota(account_bytes=100 * KB))
    with pytest.raises(RateLimited):
        save(kept, 1, 40 * KB)
    archive.delete("jobs/acme/old/result")
    watch.now += 6
    save(kept, 1, 40 * KB)


def test_the_archive_is_asked_seldom_however_often_a_job_saves(archive, quota, watch):
    kept = checkpoints(archive, quota(), keep=1)
    for step in range(100):
        watch.now += 0.1
        save(kept, step, 10)
    assert archive.asked == 1
    watch.now += 60
    save(kept, 100, 10)
    assert archive.asked == 2


def test_what_is_on_its_way_counts_and_what_failed_does_not(quota):
    room = quota(account_bytes=100)
    with room.room(60), pytest.raises(RateLimited), room.room(60):
        pass
    with pytest.raises(ValueError, match="disk"), room.room(40):
        raise ValueError("disk")
    with room.room(40):
        pass


def test_several_threads_together_never_get_more_than_there_is(archive):
    room = ArchiveQuota(archive, "acme", ArchiveLimits(account_bytes=1_000))
    got, begin = [], threading.Barrier(8)

    def take():
        begin.wait()
        for _ in range(100):
            try:
                with room.room(10):
                    got.append(10)
            except RateLimited:
                return

    threads = [threading.Thread(target=take) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sum(got) == 1_000


def test_its_owner_is_warned_while_there_is_still_room(archive, quota):
    kept = checkpoints(archive, quota(account_bytes=100 * KB))
    job = context.Context(context.Place(job_id="j"), checkpoints=kept)
    save(kept, 1, 20 * KB)
    assert job.progress.warning == ""
    save(kept, 2, 40 * KB)
    assert "nearly full" in job.progress.warning
    assert "100,000" in job.progress.warning
    with pytest.raises(RateLimited):
        job.save(bytes(50 * KB), step=3)
    assert "not saved" in job.progress.warning
    assert job.refused
    archive.delete(f"{PREFIX}/{kept.ls()[1].shards[0].key}")
    kept.quota._measured_at = None
    job.save(bytes(5 * KB), step=4)
    assert (job.refused, job.progress.warning) == ("", "")


def test_a_job_publishes_under_so_many_names_and_again_under_the_same(archive, tmp_path):
    stage = staged(archive, tmp_path, ArchiveLimits(artifacts=2, account_bytes=100 * KB))
    for name in ("a", "b", "a"):
        stage.context.publish(b"x", name=name)
    with pytest.raises(InvalidRequest, match="2 names") as refusal:
        stage.context.publish(b"x", name="c")
    assert refusal.value.code == "too_many_artifacts"
    with pytest.raises(RateLimited):
        stage.context.publish(bytes(100 * KB), name="a")


# -- how an attempt ends ---------------------------------------------------------------------------------------------


def staged(archive, tmp_path, limits, *, epoch=1, payload="{}", kind=JobKind.SCRIPT):
    lease = lease_of("j", epoch=epoch, kind=kind, payload=payload)
    order = Order(
        lease=lease, rank=0, master_addr="127.0.0.1", master_port=1, work_dir=str(tmp_path / "work"), limits=limits
    )
    return stage_of(order, archive=archive, devices=(), on_saved=lambda *_: None, on_report=lambda: None)


def command(code):
    import json

    return json.dumps({"entrypoint": [sys.executable, "-c", code], "env": {"FABRIC_CHECKPOINT_QUIET_S": "0.2"}})


WRITE = "import os; open(os.environ['FABRIC_CHECKPOINT_DIR'] + '/state', 'wb').write(os.urandom({size}))"
SAVES = f"{WRITE}; import sys; sys.exit({{code}})"


@pytest.mark.parametrize("code", [0, 75])
def test_what_a_command_left_that_is_too_much_parks_its_job(archive, tmp_path, code):
    limits = ArchiveLimits(checkpoint_bytes=100 * KB)
    first = perform(staged(archive, tmp_path, limits, payload=command(SAVES.format(size=50 * KB, code=75))))
    assert first.outcome is LeaseOutcome.SAVED
    more = staged(archive, tmp_path, limits, epoch=2, payload=command(SAVES.format(size=150 * KB, code=code)))
    end = perform(more)
    assert (end.outcome, end.again) == (LeaseOutcome.NO_ROOM, False)
    assert "100,000" in end.error
    raised = staged(archive, tmp_path, ArchiveLimits(), epoch=3, payload=command("import os; print(os.listdir('.'))"))
    assert perform(raised).outcome is LeaseOutcome.SUCCEEDED
    assert (raised.folder / "checkpoint" / "state").stat().st_size == 50 * KB


def test_a_command_that_goes_on_is_told_of_in_its_log_and_to_its_owner(archive, tmp_path):
    code = WRITE.format(size=150 * KB) + "; import sys, time; [time.sleep(0.1) for _ in range(20)]; sys.exit(75)"
    stage = staged(archive, tmp_path, ArchiveLimits(checkpoint_bytes=100 * KB), payload=command(code))
    end = perform(stage)
    assert end.outcome is LeaseOutcome.NO_ROOM
    assert "not saved" in stage.context.progress.warning
    assert "fabric: warning" in stage.log_file.read_text()


def test_a_program_that_saves_by_itself_is_parked_too(archive, tmp_path):
    code = (
        "from fabric import context; j = context.current(); j.save(bytes(10), step=1); j.save(bytes(200_000), step=2)"
    )
    stage = staged(archive, tmp_path, ArchiveLimits(checkpoint_bytes=100 * KB), payload=command(code))
    end = perform(stage)
    assert end.outcome is LeaseOutcome.NO_ROOM
    assert "100,000" in end.error
    assert "not saved" in stage.context.progress.warning
    assert checkpoints(archive, None, epoch=2).newest().step == 1


def calls(function):
    import base64

    import cloudpickle

    return f'{{"inline": "{base64.b64encode(cloudpickle.dumps((function, (), {}))).decode()}"}}'


def _saves_too_much():
    context.current().save(bytes(200_000), step=2)


def _saves_too_much_and_wraps_it():
    try:
        context.current().save(bytes(200_000), step=2)
    except FabricError as error:
        raise RuntimeError("the trainer could not save") from error


def _saves_too_much_and_leaves():
    try:
        context.current().save(bytes(200_000), step=2)
    except FabricError:
        context.current().park()


@pytest.mark.parametrize("function", [_saves_too_much, _saves_too_much_and_wraps_it, _saves_too_much_and_leaves])
def test_a_job_that_could_not_save_is_parked_however_its_code_takes_it(archive, tmp_path, function):
    limits = ArchiveLimits(checkpoint_bytes=100 * KB)
    stage = staged(archive, tmp_path, limits, payload=calls(function), kind=JobKind.FUNCTION)
    stage.context.save(bytes(10), step=1)
    end = perform(stage)
    assert end.outcome is LeaseOutcome.NO_ROOM
    assert "100,000" in end.error
    assert checkpoints(archive, None, epoch=2).newest().step == 1


def test_a_job_that_did_without_the_save_has_succeeded(archive, tmp_path):
    def job():
        try:
            context.current().save(bytes(200_000), step=2)
        except FabricError:
            return 7

    stage = staged(
        archive, tmp_path, ArchiveLimits(checkpoint_bytes=100 * KB), payload=calls(job), kind=JobKind.FUNCTION
    )
    assert perform(stage).outcome is LeaseOutcome.SUCCEEDED


def test_the_end_of_a_log_without_an_end_is_told_without_reading_it_all(archive, tmp_path):
    code = "import os, sys; os.truncate('../log', 1 << 40); print('last words'); sys.exit(3)"
    end = perform(staged(archive, tmp_path, ArchiveLimits(), payload=command(code)))
    assert end.outcome is LeaseOutcome.FAILED
    assert "last words" in end.error
    assert len(end.error) < 100_000


def test_nothing_is_counted_twice_and_nothing_is_negative():
    assert Stored(3, 1) + Stored(4, 1) - Stored(7, 2) == Stored(0, 0)
