"""What an owner can do with what a job has saved: look, go back, go on in another job. Through the door, and the CLI."""

import asyncio
import json
import threading
import time

import pytest
from typer.testing import CliRunner

from fabric.api.slow_work import ASKED_MAX, EACH, Lengthy
from fabric.checkpoints import Checkpoints
from fabric.cli.app import app
from fabric.errors import Conflict, InsufficientTokens, InvalidRequest, NotFound
from fabric.gate.events import LeaseFinished, LeaseOutcome, LeaseStarted
from fabric.gate.key_scopes import KeyScope
from fabric.wire import fabric_pb2 as pb
from fabric.wire.service import METHODS


@pytest.fixture
def job(house):
    """A job that waits, as if an attempt of it had saved at steps 10 and 20."""
    house.port.run_jobs = False
    fabric = house.fabric()
    job = fabric.submit(pow, 2, 3, tokens=1, name="train", accelerators="H100:8")
    checkpoints = house.port.checkpoints_of("acme", job.id)
    for step in (10, 20):
        draft = checkpoints.begin(step)
        draft.put("state", b"x" * step)
        checkpoints.commit(draft)
    return job


@pytest.fixture
def parked(house, job):
    """The same, off its devices."""
    job.pause()
    assert job.info().state == "parked"
    return job


def contents(house, job_id, account="acme"):
    manifest, shards = house.port.checkpoints_of(account, job_id).load()
    return manifest.step, shards["state"]


def test_checkpoints_are_listed_newest_first(job):
    assert [(found.step, found.bytes, found.shards) for found in job.checkpoints()] == [(20, 20, 1), (10, 10, 1)]


def test_a_parked_job_goes_back_to_a_step_and_what_came_after_is_void(house, parked):
    parked.roll_back(10)
    parked.roll_back(10)
    assert contents(house, parked.id) == (10, b"x" * 10)
    assert {found.step for found in parked.checkpoints()} == {10}
    info = parked.info()
    assert (info.step, info.saved_step, info.saved_bytes) == (10, 10, 10)
    with pytest.raises(NotFound, match="it has 10"):
        parked.roll_back(20)


@pytest.mark.parametrize("outcome", [LeaseOutcome.SUCCEEDED, LeaseOutcome.FAILED])
def test_of_a_job_that_has_ended_nothing_is_made_void(house, job, outcome):
    lease_id = job.info().lease_id
    house.port.seed(LeaseStarted(lease_id=lease_id))
    house.port._apply([LeaseFinished(lease_id=lease_id, outcome=outcome, error="e")])
    assert job.info().settled
    with pytest.raises(Conflict, match="checkpoints fork") as refusal:
        job.roll_back(10)
    assert refusal.value.code == "job_ended"
    assert job.checkpoints()[0].step == 20


def test_a_job_on_its_devices_is_not_rolled_back_under_its_feet(job):
    with pytest.raises(Conflict, match="pause it") as refusal:
        job.roll_back(10)
    assert refusal.value.code == "job_runs"
    assert job.checkpoints()[0].step == 20


def test_a_fork_is_a_job_of_the_same_code_that_begins_where_the_other_was(house, job):
    other = job.fork(step=10, tokens=2, name="again")
    assert other.id != job.id
    info = other.info()
    assert (info.name, info.limit_uhs, info.accelerator) == ("again", 2 * 3_600_000_000, "H100")
    assert contents(house, other.id) == (10, b"x" * 10)
    assert contents(house, job.id) == (20, b"x" * 20)
    spec, forked = house.port.gate.state.jobs[job.id].spec, house.port.gate.state.jobs[other.id].spec
    assert forked.payload == spec.payload


def test_a_fork_that_is_repeated_is_one_job(house, job):
    request = pb.ForkRequest(request_id="once", job_id=job.id)
    first = house.client().call(request, pb.SubmitReply)
    assert house.client().call(request, pb.SubmitReply).job_id == first.job_id
    assert contents(house, first.job_id) == (20, b"x" * 20)
    assert len(house.port.gate.state.jobs) == 2


def test_a_fork_that_the_account_cannot_cover_leaves_nothing_behind(house, job):
    before = set(house.folder.glob("archive/jobs/acme/*"))
    with pytest.raises(InsufficientTokens):
        job.fork(tokens=10_000)
    assert {path for path in house.folder.glob("archive/jobs/acme/*") if any(path.rglob("*"))} == before


def test_a_fork_never_writes_where_another_job_saves(house, job):
    """A job's place follows from its request id, which may be guessed: also by a key that is for its own jobs alone."""
    other = house.fabric().submit(pow, 2, 3, tokens=1, name="nightly", request_id="nightly")
    key = house.key("acme", "own", scopes=(KeyScope.JOBS_OWN,))
    mine = house.fabric(key).submit(pow, 2, 3, tokens=1, name="mine")
    draft = house.port.checkpoints_of("acme", mine.id).begin(5)
    draft.put("state", b"poison")
    house.port.checkpoints_of("acme", mine.id).commit(draft)
    kept = house.port.checkpoints_of("acme", other.id)
    copies, plain = [], kept.store.__class__.delete_folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept.store.__class__, "delete_folder", lambda *given: (copies.append(given), plain(*given)))
        with pytest.raises(Conflict) as refusal:
            house.client(key).call(pb.ForkRequest(request_id="nightly", job_id=mine.id), pb.SubmitReply)
    assert refusal.value.code == "request_id_reused"
    assert not copies, "nothing was put there that had to be taken away"
    assert not kept.ls()


def test_an_operator_who_names_no_customer_forks_nothing(house, job):
    before = sorted((house.folder / "archive").rglob("*"))
    with pytest.raises(InvalidRequest) as refusal:
        house.client(house.root).call(pb.ForkRequest(request_id="f", job_id=job.id), pb.SubmitReply)
    assert refusal.value.code == "account_required"
    assert sorted((house.folder / "archive").rglob("*")) == before


@pytest.mark.parametrize("name", ["a\x1b[2J", "line\nbreak", "\u202egnp.exe"])
def test_a_fork_has_a_name_as_any_job_has(house, job, name):
    with pytest.raises(InvalidRequest) as refusal:
        house.client().call(pb.ForkRequest(request_id="f", job_id=job.id, name=name), pb.SubmitReply)
    assert refusal.value.code == "invalid_name"
    assert len(house.port.gate.state.jobs) == 1


def test_a_job_without_checkpoints_cannot_be_forked(house):
    house.port.run_jobs = False
    job = house.fabric().submit(pow, 2, 3, tokens=1)
    with pytest.raises(NotFound, match="it has none"):
        job.fork()
    assert job.checkpoints() == []


def test_the_command_line_does_the_same(house, parked, monkeypatch):
    monkeypatch.setenv("FABRIC_ADDRESS", house.address)
    monkeypatch.setenv("FABRIC_API_KEY", house.acme)
    monkeypatch.setenv("FABRIC_CA", str(house.tls.ca))

    def fabric(*words):
        done = CliRunner().invoke(app, ["checkpoints", *words])
        assert done.exit_code == 0, done.output
        return done.output

    assert [found["step"] for found in json.loads(fabric("ls", parked.id, "--json"))] == [20, 10]
    assert "step 10" in fabric("rollback", parked.id, "--step", "10")
    made = json.loads(fabric("fork", parked.id, "--json"))["job_id"]
    assert contents(house, made) == (10, b"x" * 10)
    assert "rollback to step 10" in fabric("ls", parked.id)


def test_who_reads_many_checkpoints_at_once_is_in_the_way_of_neither_the_gate_nor_others(house, parked, monkeypatch):
    """The gate's own threads end leases, and the door may be in its process."""
    go_on = threading.Event()
    verify = Checkpoints.verify

    def slowly(checkpoints, manifest):
        go_on.wait(60)
        verify(checkpoints, manifest)

    monkeypatch.setattr(Checkpoints, "verify", slowly)
    client = house.client()
    roll_back = client._callable(METHODS["RollBack"])
    asked = [
        roll_back.future(
            pb.RollBackRequest(request_id=f"r{number}", job_id=parked.id, step=10), metadata=client._metadata
        )
        for number in range(60)
    ]
    try:
        for _ in range(600):
            refused = [each for each in asked if each.done()]
            if len(refused) == len(asked) - ASKED_MAX:
                break
            time.sleep(0.05)
        assert {client._error(each.exception()).code for each in refused} == {"too_much_at_once"}
        assert len(refused) == len(asked) - ASKED_MAX

        async def of_the_gate():
            return await asyncio.wait_for(asyncio.to_thread(len, "gate"), 20)

        assert house.run(of_the_gate()) == 4
        assert house.client(house.globex).put_blob(b"hello")
    finally:
        go_on.set()
    assert any(each.exception(60) is None for each in asked if each not in refused)
    assert contents(house, parked.id)[0] == 10


async def test_work_that_nobody_waits_for_counts_until_it_is_done():
    lengthy, go_on, begun = Lengthy(), threading.Event(), threading.Semaphore(0)

    def work():
        begun.release()
        go_on.wait(60)

    left = [asyncio.create_task(lengthy.run("account/acme", work)) for _ in range(ASKED_MAX)]
    for _ in range(EACH):
        await asyncio.to_thread(begun.acquire)
    for each in left:
        each.cancel()
    await asyncio.wait(left)
    mine = asyncio.create_task(lengthy.run("account/acme", len, "mine"))
    assert await lengthy.run("account/globex", len, "theirs") == 6
    assert not mine.done()
    go_on.set()
    assert await mine == 4
