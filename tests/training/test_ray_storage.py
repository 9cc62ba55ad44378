"""Where runs of Ray Train are kept: each attempt of a job finds each of its runs again, and no two runs share a place."""

import datetime as dt
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import InvalidRequest
from training.integrations.ray_storage import SNAPSHOT, Asked, forget_unfinished, place_of, renamed_from, reports_in

DEFAULT = "/root-of-ada/ray_results"
KEPT = Path("/var/fabric/attempt/checkpoint")
stamps = st.datetimes(
    min_value=dt.datetime(2020, 1, 1)  # noqa: DTZ001  # Ray has local time
).map(lambda at: f"ray_train_run-{at:%Y-%m-%d_%H-%M-%S}")
names = st.from_regex(r"[a-z]{1,8}-[0-9]{0,3}", fullmatch=True)
functions = st.sampled_from(["train_func", "<lambda>", "Loop", "../up", "a/b", "\0"])
paths = st.sampled_from(
    [DEFAULT, str(KEPT), str(KEPT / "mine"), str(KEPT.parent / "home" / "x"), "/mnt/nfs/runs", "s3://bucket/runs"]
)


def placed(path, name, *, job_id="job-1", function="train_func", number=1, nodes=1, filesystem=False):
    asked = Asked(path, name, has_filesystem=filesystem)
    return place_of(asked, default=DEFAULT, kept=KEPT, job_id=job_id, function=function, number=number, nodes=nodes)


@given(paths, stamps, stamps, functions, st.integers(1, 99))
def test_a_run_without_a_name_is_found_again_by_every_attempt(path, stamp, later, function, number):
    first = placed(path, stamp, function=function, number=number)
    again = placed(path, later, function=function, number=number)
    assert (first.storage_path, first.name) == (again.storage_path, again.name)
    assert "/" not in first.name
    assert first.name not in {"", ".", ".."}


@given(paths, stamps, functions, st.integers(1, 50), st.integers(1, 50))
def test_no_two_runs_of_a_process_share_a_place(path, stamp, function, one, other):
    places = {placed(path, stamp, function=function, number=number)[:2] for number in (one, other)}
    assert len(places) == len({one, other})


@given(stamps, functions)
def test_runs_of_two_jobs_share_no_place_in_a_storage_of_the_scripts_own(stamp, function):
    places = {placed("s3://bucket/runs", stamp, job_id=job, function=function)[:2] for job in ("job-1", "job-2")}
    assert len(places) == 2


@given(paths, names)
def test_a_name_that_a_script_gives_stays(path, name):
    assert placed(path, name).name == name


@pytest.mark.parametrize(
    ("path", "goes_to", "is_kept", "is_own", "says"),
    [
        (DEFAULT, str(KEPT / "ray_train"), True, True, ""),
        (str(KEPT / "mine"), str(KEPT / "mine"), True, False, ""),
        (str(KEPT.parent / "home" / "x"), str(KEPT / "ray_train"), True, True, "goes with this attempt"),
        ("s3://bucket/runs", "s3://bucket/runs", False, False, ""),
        ("/mnt/nfs/runs", "/mnt/nfs/runs", False, False, "the same folder on every node"),
    ],
)
def test_what_goes_with_the_attempt_is_kept_and_a_storage_of_its_own_stays(path, goes_to, is_kept, is_own, says):
    place = placed(path, "run")
    assert place[:-1] == (goes_to, "run", is_kept, is_own)
    assert says in place.note
    assert bool(says) == bool(place.note)


def test_a_filesystem_of_its_own_stays():
    assert placed(DEFAULT, "run", filesystem=True)[:3] == (DEFAULT, "run", False)


@pytest.mark.parametrize("path", [DEFAULT, str(KEPT / "mine")])
def test_a_folder_of_one_node_is_refused_where_a_job_has_several(path):
    with pytest.raises(InvalidRequest, match=r"has 2 nodes.*s3://") as refused:
        placed(path, "run", nodes=2)
    assert refused.value.code == "storage_not_shared"
    assert placed("s3://bucket/runs", "run", nodes=2).storage_path == "s3://bucket/runs"


def run_of(folder, name, *, kept, left=(), reports=0):
    run = folder / name
    for each in (*kept, *left):
        (run / each).mkdir(parents=True)
    results = [{"checkpoint_dir_name": each, "metrics": {}} for each in kept]
    state = {"checkpoint_results": results, "latest_checkpoint_result": None, "current_report_index": reports}
    (run / SNAPSHOT).write_text(json.dumps(state))
    return run


def test_what_was_being_written_when_an_attempt_ended_is_forgotten(tmp_path):
    run = run_of(tmp_path, "run", kept=["checkpoint_1"], left=["checkpoint_2", "own"], reports=3)
    forget_unfinished(run)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint_1", SNAPSHOT, "own"]
    assert reports_in(run) == 3


@pytest.mark.parametrize("said", ["", "{", "[]", None])
def test_a_run_without_a_readable_snapshot_has_had_no_report(tmp_path, said):
    if said is not None:
        (tmp_path / SNAPSHOT).write_text(said)
    assert reports_in(tmp_path) == 0


def test_a_run_that_its_script_names_anew_is_noticed(tmp_path):
    run_of(tmp_path, "exp-17:03", kept=["checkpoint_1"])
    assert renamed_from(tmp_path / "exp-17:44", claimed=()) == ["exp-17:03"]
    assert renamed_from(tmp_path / "exp-17:44", claimed={"exp-17:03"}) == []
    assert renamed_from(tmp_path / "exp-17:03", claimed=()) == []
