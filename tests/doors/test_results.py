"""Whoever looks at a result runs nothing of it: another key, an operator, the SDK and the command line."""

import json

import pytest
from typer.testing import CliRunner

from fabric.cli import app
from fabric.errors import JobFailed, PermissionDenied
from fabric.wire import fabric_pb2 as pb


def hostile(mark):
    """A value whose pickle leaves a mark, wherever it is opened."""

    class Hostile:
        def __reduce__(self):
            return open, (mark, "w")

        def __repr__(self):
            return "<harmless\x1b[2J>"

    return Hostile()


def hostile_error(mark):
    class HostileError(Exception):
        def __reduce__(self):
            return open, (mark, "w")

    raise HostileError("all is well")


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "it-ran"


@pytest.fixture
def returned(house, mark):
    job = house.fabric().submit(hostile, str(mark), tokens=1)
    job.wait(timeout=20)
    return job.id


@pytest.fixture
def raised(house, mark):
    job = house.fabric().submit(hostile_error, str(mark), tokens=1)
    job.wait(timeout=20)
    return job.id


@pytest.fixture
def readers(house):
    """Everybody but the key that submitted."""
    return {
        "another key": house.fabric(house.key("acme", "other")),
        "an operator for the customer": house.fabric(house.root, account="acme"),
        "an operator": house.fabric(house.root),
    }


def test_nobody_but_the_key_that_submitted_opens_a_pickle(readers, returned, mark):
    for who, fabric in readers.items():
        with pytest.raises(PermissionDenied, match="runs code") as refusal:
            fabric.job(returned).result(timeout=20)
        facts = refusal.value.facts
        assert facts["type"].endswith(".Hostile"), who
        assert facts["text"] == "<harmless\x1b[2J>"
        assert facts["bytes"] > 0
        assert not mark.exists(), who


def test_nobody_but_the_key_that_submitted_opens_an_exception(readers, raised, mark):
    for who, fabric in readers.items():
        failure = fabric.job(raised).exception(timeout=20)
        assert isinstance(failure, JobFailed)
        assert failure.__cause__ is None
        assert failure.facts["error_type"].endswith(".HostileError")
        assert failure.facts["error_text"] == "all is well"
        assert not mark.exists(), who


def test_an_operator_opens_no_pickle_however_much_it_trusts(readers, returned, raised, mark):
    for who in ("an operator", "an operator for the customer"):
        with pytest.raises(
            PermissionDenied, match=r"an operator opens none.*a key of the account's.*fabric keys create"
        ):
            readers[who].job(returned).result(timeout=20, trust=True)
        assert readers[who].job(raised).exception(timeout=20, trust=True).__cause__ is None
    assert not mark.exists()


def test_another_key_opens_a_pickle_where_it_says_that_it_trusts(readers, returned, mark):
    readers["another key"].job(returned).result(timeout=20, trust=True).close()
    assert mark.exists()


def test_the_key_that_submitted_opens_its_own(house):
    found = house.fabric().submit(lambda: {1: complex, 2: {3}}, tokens=1).result(timeout=20)
    assert found == {1: complex, 2: {3}}


def test_an_operator_sees_what_is_data(house):
    job = house.fabric().submit(lambda: {"loss": (0.25, b"x")}, tokens=1)
    assert house.fabric(house.root, account="acme").job(job.id).result(timeout=20) == {"loss": (0.25, b"x")}


def test_a_job_says_who_submitted_it_and_to_whom_it_is_shown(house, returned):
    seen = {}
    for who, client in (("acme", house.client()), ("operator", house.client(house.root))):
        job = client.call(pb.GetJobRequest(job_id=returned), pb.Job)
        (listed,) = client.call(pb.ListJobsRequest(), pb.ListJobsReply).jobs
        update = next(
            u
            for u in client.stream(pb.WatchJobsRequest(job_id=returned, after_revision=0), pb.JobUpdate)
            if u.job.job_id
        )
        seen[who] = {(each.key_id, each.shown_to_operator) for each in (job, listed, update.job)}
    assert seen == {"acme": {("k-acme", False)}, "operator": {("k-acme", True)}}


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_tells_what_a_pickle_is_and_opens_none(house, monkeypatch, tmp_path, returned, mark, as_json):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("FABRIC_ADDRESS", house.address)
    monkeypatch.setenv("FABRIC_CA", str(house.tls.ca))
    for key, words in ((house.root, ("-a", "acme", "--trust")), (house.root, ()), (house.key("acme", "other"), ())):
        monkeypatch.setenv("FABRIC_API_KEY", key)
        done = CliRunner().invoke(app, ["result", returned, *words, *(["--json"] if as_json else [])])
        assert done.exit_code == 0, done.output
        assert "Hostile" in done.output
        assert "\x1b" not in done.output
        if as_json:
            assert json.loads(done.output)["opened"] is False
        assert not mark.exists()
