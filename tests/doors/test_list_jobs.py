"""Jobs are listed by pages, all of them, and by name, state, tag and time; and the one of a request is found again."""

import datetime as dt
import json
import re

import msgspec
import pytest

from fabric.errors import Conflict, InvalidRequest, NotFound, Unavailable
from fabric.gate.events import Submit
from fabric.gate.idempotency import digest_of
from fabric.wire import fabric_pb2 as pb
from tests.gate.world import S, spec

COMMAND = ["true"]


@pytest.fixture
def fabric(house):
    house.port.run_jobs = False
    return house.fabric()


def submitted(fabric, count=1, **more):
    return [fabric.submit(COMMAND, tokens="0.001", **more).id for _ in range(count)]


def ids(found):
    return [job.job_id for job in found]


def test_the_sdk_lists_as_many_jobs_as_it_is_asked_for_page_by_page(fabric, house, monkeypatch):
    monkeypatch.setattr("fabric.api.job_calls.LIST_MAX", 7)
    made = submitted(fabric, 20)
    newest_first = made[::-1]
    assert ids(fabric.jobs(limit=16)) == newest_first[:16]
    assert ids(fabric.jobs(limit=None)) == newest_first
    assert ids(fabric.jobs(limit=3)) == newest_first[:3]


def test_a_page_says_that_there_are_more_and_where_they_go_on(fabric):
    made = submitted(fabric, 5)[::-1]
    first = fabric.client.call(pb.ListJobsRequest(limit=2), pb.ListJobsReply)
    assert (ids(first.jobs), first.next) == (made[:2], made[1])
    second = fabric.client.call(pb.ListJobsRequest(limit=3, after=first.next), pb.ListJobsReply)
    assert (ids(second.jobs), second.next) == (made[2:], "")


def test_a_job_that_comes_between_two_pages_moves_nothing(fabric):
    made = submitted(fabric, 4)[::-1]
    first = fabric.client.call(pb.ListJobsRequest(limit=2), pb.ListJobsReply)
    submitted(fabric, 3)
    second = fabric.client.call(pb.ListJobsRequest(limit=9, after=first.next), pb.ListJobsReply)
    assert ids(second.jobs) == made[2:]


def test_a_page_after_a_job_that_is_not_there_is_refused(fabric, house):
    other = submitted(house.fabric(house.globex))[0]
    for unknown in ("job-none", other):
        with pytest.raises(NotFound):
            fabric.client.call(pb.ListJobsRequest(after=unknown), pb.ListJobsReply)


def test_jobs_are_listed_by_name_and_by_how_it_begins(fabric):
    train, tune, other = (submitted(fabric, name=name)[0] for name in ("train.py", "train-2", "other"))
    assert ids(fabric.jobs(name="train.py")) == [train]
    assert ids(fabric.jobs(name="train*")) == [tune, train]
    assert ids(fabric.jobs(name="tra")) == []
    assert ids(fabric.jobs("starting", name="*")) == [other, tune, train]


def test_jobs_are_listed_by_all_the_tags_given(fabric):
    one = submitted(fabric, tags=["exp7", "owner=li"])[0]
    two = submitted(fabric, tags=["exp7"])[0]
    submitted(fabric)
    assert ids(fabric.jobs(tags=["exp7"])) == [two, one]
    assert ids(fabric.jobs(tags=["owner=li", "exp7"])) == [one]
    assert ids(fabric.jobs(tags=["exp"])) == []
    assert list(fabric.job(one).info().tags) == ["exp7", "owner=li"]


def test_jobs_are_listed_by_when_they_were_submitted(fabric, house):
    first, second, third = submitted(fabric, 3)
    at = {job.job_id: job.submitted_at_us for job in fabric.jobs()}
    moment = dt.datetime.fromtimestamp(at[second] / 1e6, tz=dt.UTC)
    assert ids(fabric.jobs(since=moment)) == [third, second]
    assert ids(fabric.jobs(until=moment)) == [first]


def test_an_operator_lists_all_accounts_by_the_same_filters(house, fabric):
    mine = submitted(fabric, name="train")[0]
    other = submitted(house.fabric(house.globex), name="train")[0]
    root = house.fabric(house.root)
    assert ids(root.jobs(name="train")) == [other, mine]
    assert ids(root.jobs(name="train", limit=1)) == [other]


@pytest.mark.parametrize(
    "tags",
    [["a b"], [""], ["x" * 65], ["-x"], [f"t{n}" for n in range(17)], ["é"], ["a\n"]],
    ids=lambda tags: tags[0][:5],
)
def test_a_tag_that_is_none_is_refused_with_what_one_is(fabric, tags):
    with pytest.raises(InvalidRequest, match=r"16|64") as failure:
        fabric.submit(COMMAND, tokens=1, tags=tags)
    assert failure.value.code == "invalid_tags"


def test_a_submission_without_tags_is_the_one_from_before_there_were_any():
    event = Submit(job_id="j", account_id="a", spec=spec(10 * S), request_id="r")
    assert digest_of(event) != digest_of(
        Submit(job_id="j", account_id="a", spec=spec(10 * S, tags=("x",)), request_id="r")
    )
    said = json.loads(msgspec.json.encode(event))
    del said["spec"]["tags"]
    assert digest_of(event) == digest_of(msgspec.convert(said, Submit))


# -- the job of a request -----------------------------------------------------------------------------------------------


def test_a_submission_without_an_answer_says_its_request_id_and_asking_again_finds_the_job(house, fabric, monkeypatch):
    monkeypatch.setattr("fabric.client.client._ATTEMPTS", 1)
    monkeypatch.setattr("fabric.client.client._ATTEMPTS_ONCE_KNOWN", 1)
    house.port.lose_answers = 2
    with pytest.raises(Unavailable, match="request_id") as failure:
        fabric.submit(COMMAND, tokens=1)
    request_id = failure.value.facts["request_id"]
    assert request_id in str(failure.value)
    house.port.lose_answers = 0
    job = fabric.submit(COMMAND, tokens=1, request_id=request_id)
    assert ids(fabric.jobs()) == [job.id]
    assert fabric.job(request_id=request_id).id == job.id


def test_a_job_is_found_by_the_request_that_submitted_it(house, fabric):
    job = fabric.submit(COMMAND, tokens=1, request_id="mine")
    assert fabric.job(request_id="mine").id == job.id
    with pytest.raises(NotFound, match="no job was submitted"):
        fabric.job(request_id="other")
    with pytest.raises(NotFound):
        house.fabric(house.globex).job(request_id="mine")


def test_other_content_under_a_request_id_names_the_job_that_has_it(fabric):
    job = fabric.submit(COMMAND, tokens=1, request_id="mine")
    with pytest.raises(Conflict) as failure:
        fabric.submit(COMMAND, tokens=2, request_id="mine")
    assert job.id in str(failure.value)


# -- commands -----------------------------------------------------------------------------------------------------------


def test_the_command_lists_by_filters_and_says_that_there_are_more(run, fabric):
    made = [submitted(fabric, name=f"train-{n}", tags=["exp7"])[0] for n in range(4)][::-1]
    done = run("jobs", "--name", "train*", "--tag", "exp7", "--limit", "2", "--since", "2023-01-01", "--json")
    assert [job["job_id"] for job in json.loads(done.stdout)] == made[:2]
    done = run("jobs", "--limit", "2", "--json")
    assert [job["job_id"] for job in json.loads(done.stdout)] == made[:2]
    assert f"--after {made[1]}" in done.stderr
    done = run("jobs", "--limit", "2", "--after", made[1], "--json")
    assert [job["job_id"] for job in json.loads(done.stdout)] == made[2:]
    assert done.stderr == ""
    assert len(json.loads(run("jobs", "--all", "--json").stdout)) == 4


def test_the_command_submits_with_tags_and_a_request_id(run, fabric):
    words = ("submit", "-t", "1", "--tag", "exp7", "--tag", "a=b", "--request-id", "mine", "--", "true")
    job = run(*words).stdout.strip()
    assert run(*words).stdout.strip() == job
    assert [found["job_id"] for found in json.loads(run("jobs", "--request-id", "mine", "--json").stdout)] == [job]
    assert json.loads(run("job", job, "--json").stdout)["tags"] == ["exp7", "a=b"]
    assert "exp7 a=b" in run("job", job).stdout


def test_a_job_is_meant_by_its_beginning_however_many_came_after(run, fabric, monkeypatch):
    monkeypatch.setattr("fabric.api.job_calls.LIST_MAX", 5)
    first = submitted(fabric, name="first one")[0]
    submitted(fabric, 12)
    assert json.loads(run("job", first[:16], "--json").stdout)["job_id"] == first
    assert first in run("job", "first one", code=5).stderr


def test_a_beginning_that_several_have_is_told_with_some_of_them(run, fabric):
    submitted(fabric, 40)
    done = run("job", "job-", code=2)
    assert re.search(r"beginning of (\d+|more than \d+) jobs", done.stderr)
