"""Who keeps all it may in the archive begins no further job; deleting, or a higher bound, helps at once."""

import pytest

from fabric.api.limits import Limits
from fabric.errors import Conflict, InvalidRequest, RateLimited
from fabric.wire import fabric_pb2 as pb

KB = 1_000


@pytest.fixture
def house(make_house):
    house = make_house(sandbox_payments=True, limits=Limits(archive_bytes=100 * KB, archive_values=1_000))
    house.port.run_jobs = False
    return house


def saved(house, job_id, *sizes, account="acme"):
    checkpoints = house.port.checkpoints_of(account, job_id)
    for step, size in enumerate(sizes, 1):
        draft = checkpoints.begin(step)
        draft.put("state", bytes(size))
        checkpoints.commit(draft)


def submit(house, name="train", **more):
    return house.fabric().submit(pow, 2, 3, tokens=1, name=name, **more)


def refused(house, do):
    house.door.shares.forget("acme")
    for _ in range(20):  # the first one does not wait for the archive to be asked
        try:
            do()
        except RateLimited as error:
            return error
    raise AssertionError("it was not refused")


def test_an_account_that_keeps_all_it_may_submits_nothing_more(house):
    job = submit(house)
    saved(house, job.id, 60 * KB, 60 * KB)
    error = refused(house, lambda: submit(house))
    assert error.code == "archive_full"
    assert "100,000" in error.message
    assert "fabric checkpoints rm" in error.message
    house.fabric(house.globex).submit(pow, 2, 3, tokens=1, name="others go on")


def test_deleting_what_is_not_needed_makes_room(house, run):
    job = submit(house)
    saved(house, job.id, 60 * KB, 60 * KB)
    refused(house, lambda: submit(house))
    job.pause()
    assert job.delete_checkpoints() == 60 * KB
    assert [found.step for found in job.checkpoints()] == [2]
    submit(house, name="there is room again")
    job.cancel()
    told = run("checkpoints", "rm", job.id, "--keep", 0).output
    assert "60,000 bytes deleted, 0 checkpoints left" in told
    assert job.checkpoints() == []


def test_of_a_job_that_goes_on_the_last_checkpoint_stays(house):
    job = submit(house)
    saved(house, job.id, 10, 20)
    with pytest.raises(Conflict, match="pause it"):
        job.delete_checkpoints()
    job.pause()
    for given in ({"keep": 0}, {"everything": True}):
        with pytest.raises(InvalidRequest, match="keep at least 1") as refusal:
            job.delete_checkpoints(**given)
        assert refusal.value.code == "keep_invalid"
    assert len(job.checkpoints()) == 2


def test_an_attempt_that_has_begun_meanwhile_is_never_fenced_by_it(house):
    job = submit(house)
    saved(house, job.id, 10, 20)
    checkpoints = house.port.checkpoints_of("acme", job.id)
    look = checkpoints.log.view

    def late():
        view = look()
        late_one = house.port.checkpoints_of("acme", job.id)
        late_one.claim()
        checkpoints.log.view = look
        return view

    checkpoints.log.view = late
    with pytest.raises(Conflict) as refusal:
        checkpoints.thin(keep=1)
    assert refusal.value.code == "job_runs"
    assert len(job.checkpoints()) == 2


def test_all_that_an_ended_job_left_can_go(house):
    job = submit(house)
    saved(house, job.id, 10)
    (house.folder / "archive" / "jobs" / "acme" / job.id / "artifacts").mkdir()
    (house.folder / "archive" / "jobs" / "acme" / job.id / "artifacts" / "model").write_bytes(b"m")
    job.cancel()
    job.delete_checkpoints(everything=True)
    assert not list((house.folder / "archive" / "jobs" / "acme" / job.id).rglob("*.*"))
    assert not (house.folder / "archive" / "jobs" / "acme" / job.id / "artifacts").exists()


def test_nobody_deletes_what_another_account_saved(house):
    job = submit(house)
    saved(house, job.id, 10)
    request = pb.DeleteCheckpointsRequest(request_id="r", job_id=job.id, everything=True)
    with pytest.raises(Exception, match="no job"):
        house.client(house.globex).call(request, pb.DeleteCheckpointsReply)
    assert len(job.checkpoints()) == 1


def test_a_fork_copies_nothing_for_which_there_is_no_room(house):
    job = submit(house)
    saved(house, job.id, 60 * KB)
    before = sorted(house.folder.glob("archive/jobs/acme/*"))
    house.door.shares.forget("acme")
    with pytest.raises(RateLimited) as refusal:
        job.fork()
    assert refusal.value.code == "archive_full"
    assert sorted(house.folder.glob("archive/jobs/acme/*")) == before
