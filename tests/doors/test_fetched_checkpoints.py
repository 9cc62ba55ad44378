"""A customer has a job's checkpoint on a machine of its own: every byte as it was saved, however the way there breaks."""

import json
import random
import shutil
import threading
import time
from types import SimpleNamespace

import boto3
import pytest

from fabric import context
from fabric.api import checkpoint_files
from fabric.api.limits import Limits
from fabric.checkpoints import Checkpoints, DirectoryStore, commit_directory
from fabric.checkpoints.jobs import checkpoints_in
from fabric.errors import CheckpointDamaged, InvalidRequest, NotFound, RateLimited, Unavailable
from fabric.gate.key_scopes import KeyScope
from fabric.sdk import checkpoint_files as fetching
from fabric.storage.archive import DirectoryArchive, S3Archive
from fabric.storage.s3 import Place
from fabric.storage.s3_clients import S3Credentials
from fabric.wire import fabric_pb2 as pb
from tests.training.workload import Script, ended_by, stopped

SHARDS = {"rank-0/state": b"a" * 5_000, "rank-1/state": random.Random(1).randbytes(70_001), "empty": b"", "last": b"z"}


def save(checkpoints, step, shards=SHARDS, **more):
    draft = checkpoints.begin(step)
    for name, data in shards.items():
        draft.put(name, data)
    return checkpoints.commit(draft, **more)


def of_run(folder, session=""):
    """What a session would find in the folder of a run."""
    own = Checkpoints(DirectoryStore(folder), prefix="session")
    return (own.below(session) if session else own).load()


def queued(house):
    house.port.run_jobs = False
    return house.fabric().submit(pow, 2, 3, tokens=1, name="train", accelerators="H100:8")


@pytest.fixture
def job(house):
    return queued(house)


@pytest.fixture
def kept(house, job):
    """Where the job keeps its checkpoints."""
    return house.port.checkpoints_of("acme", job.id)


@pytest.fixture(params=["directory", "bucket"])
def archive(request, house, monkeypatch):
    """The house has its archive in one of these."""
    made = DirectoryArchive(house.folder / "archive")
    if request.param == "bucket":
        url = request.getfixturevalue("moto_url")
        own = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=url, **own).create_bucket(Bucket="fetched")
        made = S3Archive(
            Place(
                bucket="fetched",
                prefix="x",
                endpoint_url=url,
                region="us-east-1",
                credentials=S3Credentials(access_key_id="AKIA", secret_access_key="secret"),
            )
        )
    monkeypatch.setattr(house.port, "checkpoints_of", lambda account, job: checkpoints_in(made, account, job))
    return made


@pytest.mark.usefixtures("archive")
def test_what_a_job_saved_is_a_runs_folder_elsewhere(house, job, tmp_path):
    kept = house.port.checkpoints_of("acme", job.id)
    save(kept, 10)
    save(kept, 20, {"state": b"twenty"}, meta={"cursor": 7}, world=2)
    save(kept.below("0001"), 5, {"state": b"of the second session"})
    said = []
    found = job.checkpoint(tmp_path / "run", told=lambda here, of: said.append((here, of)))
    assert (found.step, found.is_folder, found.bytes) == (20, False, 27)
    manifest, shards = of_run(tmp_path / "run")
    assert (manifest.step, manifest.meta, manifest.world, shards) == (20, {"cursor": 7}, 2, {"state": b"twenty"})
    assert of_run(tmp_path / "run", "0001")[1] == {"state": b"of the second session"}
    assert said[-1] == (27, 27)
    job.checkpoint(tmp_path / "older", step=10)
    assert of_run(tmp_path / "older")[1] == SHARDS
    assert {path.name for path in tmp_path.iterdir()} >= {"run", "older"}
    assert not list(tmp_path.glob(".*fetching"))


def test_a_session_goes_on_from_it_with_the_same_bits(house, job, tmp_path):
    whole = Script()
    whole.train(12)
    kept = house.port.checkpoints_of("acme", job.id)
    evicted = context.Context(context.Place(job_id=job.id), checkpoints=kept)
    evicted.begin()
    with ended_by(context.Saved, evicted):
        Script().train(12, each=lambda step: step == 5 and stopped(evicted))
    found = job.checkpoint(tmp_path / "run")
    script = Script()
    run = script.train(12, directory=tmp_path / "run")
    assert run.resumed_at == found.step
    assert script.digest() == whole.digest()


def test_a_folder_that_a_command_kept_is_that_folder_again(job, kept, tmp_path):
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    (made / "deep" / "weights.bin").write_bytes(random.Random(2).randbytes(3_000_000))
    (made / "note.txt").write_text("step 7")
    (made / "note.txt").chmod(0o640)
    commit_directory(kept, made, step=7)
    found = job.checkpoint(tmp_path / "here")
    assert found.is_folder
    assert (tmp_path / "here" / "deep" / "weights.bin").read_bytes() == (made / "deep" / "weights.bin").read_bytes()
    assert (tmp_path / "here" / "note.txt").stat().st_mode & 0o777 == 0o640


class Broken:
    """Streams that end after so many bytes, at random, and what was asked and given."""

    def __init__(self, client, dice):
        self._stream, self._dice = client.stream, dice
        self.given = 0

    def __call__(self, request, reply):
        left = self._dice.randrange(20_000) if isinstance(request, pb.FetchCheckpointRequest) else None
        for answer in self._stream(request, reply):
            if left is not None:
                if left <= 0:
                    raise Unavailable("the line is cut", code="unreachable")
                left -= len(answer.data)
                self.given += len(answer.data)
            yield answer


def test_however_often_the_line_is_cut_each_byte_comes_once(job, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "_CHUNK_BYTES", 999)
    monkeypatch.setattr(checkpoint_files, "SPAN_BYTES", 7_000)
    monkeypatch.setattr(fetching, "_TRIES", 0)  # nobody asks again but who calls it
    save(kept, 10)
    seed = random.randrange(2**32)
    broken = Broken(job._client, random.Random(seed))
    monkeypatch.setattr(job._client, "stream", broken)
    for _ in range(200):
        try:
            job.checkpoint(tmp_path / "run")
            break
        except Unavailable:
            assert not (tmp_path / "run").exists(), f"seed {seed}"
    assert of_run(tmp_path / "run")[1] == SHARDS, f"seed {seed}"
    assert broken.given == sum(map(len, SHARDS.values())), f"seed {seed}"


def test_a_line_that_is_cut_is_taken_up_again_unasked(job, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "_CHUNK_BYTES", 999)
    save(kept, 10)
    monkeypatch.setattr(job._client, "stream", Broken(job._client, random.Random(4)))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    job.checkpoint(tmp_path / "run")
    assert of_run(tmp_path / "run")[1] == SHARDS


@pytest.mark.parametrize("harm", [lambda data: b"b" + data[1:], lambda data: data[:-1], lambda data: b""])
def test_what_is_not_what_was_saved_is_never_there(house, job, kept, tmp_path, harm):
    manifest = save(kept, 10)
    path = house.folder / "archive" / kept.prefix / manifest.shard("rank-1/state").key
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    with pytest.raises(CheckpointDamaged):
        job.checkpoint(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    path.write_bytes(whole)
    job.checkpoint(tmp_path / "run")
    assert of_run(tmp_path / "run")[1] == SHARDS


def test_one_that_newer_ones_take_the_place_of_is_the_newest_then(job, kept, tmp_path, monkeypatch):
    save(kept, 10)
    plain, calls = job._client.stream, []

    def stream(request, reply):
        if isinstance(request, pb.FetchCheckpointRequest) and not calls:
            calls.append(request)
            for step in (20, 30, 40):
                save(kept, step, {"state": b"%d" % step})
        return plain(request, reply)

    monkeypatch.setattr(job._client, "stream", stream)
    assert job.checkpoint(tmp_path / "run").step == 40
    assert of_run(tmp_path / "run")[1] == {"state": b"40"}
    calls.clear()
    with pytest.raises(NotFound) as refusal:
        job.checkpoint(tmp_path / "older", step=30)
    assert refusal.value.code == "checkpoint_gone"


def test_another_customers_is_not_there(house, job, kept, tmp_path):
    save(kept, 10)
    draft = kept.ls()[0].draft
    own_jobs = house.key("acme", "own", scopes=(KeyScope.JOBS_OWN,))
    for key in (house.globex, own_jobs):
        client = house.client(key)
        with pytest.raises(NotFound, match="there is no job"):
            client.collect(pb.ListShardsRequest(job_id=job.id), pb.ShardsPage)
        with pytest.raises(NotFound, match="there is no job"):
            client.collect(pb.FetchCheckpointRequest(job_id=job.id, draft=draft), pb.CheckpointChunk)
    reads = house.client(house.key("acme", "read", scopes=(KeyScope.READ,)))
    assert fetching.fetch_checkpoint(reads, job.id, tmp_path / "run").step == 10


@pytest.mark.parametrize("session", ["..", "../../../../globex", "a//b", "0001/../..", "\x00"])
def test_no_session_leads_out_of_the_jobs_own(house, job, kept, session):
    save(kept, 10)
    for request, reply in (
        (pb.ListShardsRequest(job_id=job.id, session=session), pb.ShardsPage),
        (pb.FetchCheckpointRequest(job_id=job.id, session=session, draft="x"), pb.CheckpointChunk),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            house.client().collect(request, reply)
        assert refusal.value.code == "invalid_key"


def test_what_is_not_there_is_said(job, kept, tmp_path):
    with pytest.raises(NotFound, match="it has none") as refusal:
        job.checkpoint(tmp_path / "run")
    assert refusal.value.code == "no_checkpoint"
    save(kept, 10)
    with pytest.raises(NotFound, match="it has 10"):
        job.checkpoint(tmp_path / "run", step=11)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(InvalidRequest, match=r"has mine: .*--force") as refusal:
        job.checkpoint(tmp_path / "full")
    assert refusal.value.code == "folder_in_use"


def test_a_folder_is_written_over_where_that_is_wanted_and_nothing_but_its_files(job, kept, tmp_path):
    made, here, elsewhere = tmp_path / "made", tmp_path / "here", tmp_path / "elsewhere"
    for folder in (made / "deep" / "new", here, elsewhere):
        folder.mkdir(parents=True)
    for name in ("note", "deep/a", "deep/new/b"):
        (made / name).write_text(f"{name} as kept")
    (made / "deep" / "new").chmod(0o750)
    (made / "link").symlink_to("note")
    commit_directory(kept, made, step=7)
    (here / "note").write_text("of before")
    (here / "mine").write_text("mine")
    (here / "deep").symlink_to(elsewhere)
    (here / "link").mkdir()
    with pytest.raises(InvalidRequest, match="has deep, link, mine, note"):
        job.checkpoint(here)
    with pytest.raises(InvalidRequest, match=r"folders where files belong, link"):
        job.checkpoint(here, force=True)
    assert (here / "note").read_text() == "of before"
    (here / "link").rmdir()
    assert job.checkpoint(here, force=True).is_folder
    found = {str(path.relative_to(here)): path.read_text() for path in here.rglob("*") if path.is_file()}
    kept_files = {name: f"{name} as kept" for name in ("note", "deep/a", "deep/new/b")}
    assert found == {**kept_files, "link": "note as kept", "mine": "mine"}
    assert (here / "deep" / "new").stat().st_mode & 0o777 == 0o750
    assert (list(elsewhere.iterdir()), list(tmp_path.glob(".*"))) == ([], [])


def test_a_run_that_is_written_over_goes_on_from_what_was_fetched(job, kept, tmp_path):
    """Not from a later step that was there."""
    save(kept, 10)
    save(kept, 20, {"state": b"twenty"})
    job.checkpoint(tmp_path / "run", step=20)
    (tmp_path / "run" / "mine").touch()
    job.checkpoint(tmp_path / "run", step=10, force=True)
    manifest, shards = of_run(tmp_path / "run")
    assert (manifest.step, shards, (tmp_path / "run" / "mine").exists()) == (10, SHARDS, True)


def test_nothing_begins_that_the_disk_can_not_hold(job, kept, tmp_path, monkeypatch):
    save(kept, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=100))
    with pytest.raises(Unavailable, match="are free") as refusal:
        job.checkpoint(tmp_path / "run")
    assert refusal.value.code == "disk_full"


def test_a_door_that_names_a_session_elsewhere_writes_nothing_there(job, kept, tmp_path, monkeypatch):
    save(kept, 10)
    monkeypatch.setattr(Checkpoints, "sessions", lambda _self: ["../../../elsewhere"])
    with pytest.raises(InvalidRequest):
        job.checkpoint(tmp_path / "deep" / "run")
    assert not list(tmp_path.rglob("elsewhere"))


def test_a_customer_fetches_a_few_at_a_time_and_others_are_not_in_the_way(make_house, tmp_path, monkeypatch):
    house = make_house(limits=Limits(checkpoints=2))
    job, go_on = queued(house), threading.Event()
    kept = house.port.checkpoints_of("acme", job.id)
    save(kept, 10)
    plain = Checkpoints.span
    monkeypatch.setattr(Checkpoints, "span", lambda *given: (go_on.wait(60), plain(*given))[1])
    request = pb.FetchCheckpointRequest(job_id=job.id, draft=kept.ls()[0].draft)
    client, begun = house.client(), []
    try:
        begun = [threading.Thread(target=client.collect, args=(request, pb.CheckpointChunk)) for _ in range(2)]
        for each in begun:
            each.start()
        for _ in range(600):
            if sum(house.door.fetches._open.values()) == 2:
                break
            time.sleep(0.05)
        with pytest.raises(RateLimited) as refusal:
            client.collect(request, pb.CheckpointChunk)
        assert refusal.value.code == "too_many_fetches"
        assert house.client(house.globex).put_blob(b"hello")
    finally:
        go_on.set()
        for each in begun:
            each.join()


def test_what_is_fetched_has_a_pace(make_house, tmp_path, monkeypatch):
    house = make_house(limits=Limits(checkpoint_bytes_per_s=2**20))
    paced, pace = [], house.door.checkpoint_bytes.pace

    async def noted(caller, *, as_many):
        paced.append((caller, as_many))
        await pace(caller, as_many=as_many)

    monkeypatch.setattr(house.door.checkpoint_bytes, "pace", noted)
    job = queued(house)
    save(house.port.checkpoints_of("acme", job.id), 10)
    job.checkpoint(tmp_path / "run")
    assert sum(size for _, size in paced) == sum(map(len, SHARDS.values()))
    assert len({caller for caller, _ in paced}) == 1


def test_the_command_line_does_the_same(house, job, kept, run, tmp_path):
    save(kept, 10)
    save(kept, 20, {"state": b"twenty"})
    done = run("checkpoints", "get", job.id, "10", "--to", tmp_path / "ten")
    assert "step 10" in done.output
    assert "training.export" in done.output
    assert of_run(tmp_path / "ten")[1] == SHARDS
    said = json.loads(run("checkpoints", "get", job.id, "--to", tmp_path / "new", "--json").stdout)
    assert (said["step"], said["bytes"], said["is_folder"]) == (20, 6, False)
    assert of_run(tmp_path / "new")[1] == {"state": b"twenty"}
