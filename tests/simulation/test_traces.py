"""Reading traces: each is known by its first line, and what can't be read is said with its line."""

import gzip
import json

import pytest

from fabric.errors import InvalidRequest
from fabric.simulation import traces
from fabric.simulation.offers import read_offers
from fabric.simulation.workload import Work

S = 1_000_000


def written(tmp_path, text, *, packed=False):
    path = tmp_path / "trace.csv"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_of_ones_own_is_read_in_any_order_of_columns(tmp_path, packed):
    text = "devices,duration_s,submit_s,tier,user,types\n8,60,30,enterprise,ada,H100|A100\n1,2.5,10,,,\n"
    first, second = traces.read(written(tmp_path, text, packed=packed))
    assert first == Work(work_id="job-3", submit_us=10 * S, duration_us=2_500_000, devices=1)
    assert second == Work(
        work_id="job-2", submit_us=30 * S, duration_us=60 * S, devices=8, user="ada", tier=0, types=("H100", "A100")
    )


def test_a_table_that_was_written_is_read_again(tmp_path):
    works = [
        Work(work_id="a", submit_us=S, duration_us=S, devices=2, user="ada", tier=1, service="inference"),
        Work(work_id="b", submit_us=2 * S, duration_us=S, devices=16, user="b", per_node=8, types=("H100",)),
    ]
    assert traces.read(written(tmp_path, "\n".join(traces.lines(works)))) == works


@pytest.mark.parametrize(
    ("head", "row", "work"),
    [
        ("job_id,submission_time,duration,num_gpu", "x,5810,288476,16", ("x-2", 5810 * S, 288476 * S, 16)),
        ("timestamp,duration,num_gpus,gpu_time,cluster", "1970-01-01 00:01:00,66.5,1,66.0,11cb48",
         ("philly-2", 60 * S, 66_500_000, 1)),
        ("class,submit_s,duration_s,devices", "spot,1,6642,2", ("spot-2", S, 6642 * S, 2)),
        ("job_id,user,num_gpu,submit_time,iterations,model_name,duration,interval,job_type", "0,vc,1,85,1,m,747,14,strict",
         ("0-2", 85 * S, 747 * S, 1)),
    ],
)  # fmt: skip
def test_traces_of_others_are_known_by_their_first_line(tmp_path, head, row, work):
    (found,) = traces.read(written(tmp_path, f"{head}\n{row}\n"))
    assert (found.work_id, found.submit_us, found.duration_us, found.devices) == work


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "of no trace that is known here"),
        ("submit_s,duration_s,devices\n1,2,3\n1,x,3\n", "line 3"),
        ("submit_s,duration_s,devices,tier\n1,2,3,gold\n", "enterprise, professional, starter"),
        ("submit_s,duration_s,devices\n-1,2,3\n", "before the beginning"),
        ("submit_s,duration_s,devices\n1,2,0\n", "no job that needs a device"),
    ],
)
def test_what_cant_be_read_is_said(tmp_path, text, says):
    with pytest.raises(InvalidRequest, match=says):
        traces.read(written(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "count"),
    [("itp_2021/cluster04.csv.gz", 15_802), ("itp_2021/cluster06.csv.gz", 2_395), ("lend_reclaim/seed1.csv.gz", 7_366)],
)
def test_public_traces_are_read_whole(public_traces, name, count):
    works = traces.read(public_traces / name)
    assert len(works) == pytest.approx(count, abs=2)
    assert works == sorted(works, key=lambda work: work.submit_us)


def test_a_job_of_shockwave_takes_at_most_what_is_published_of_it(tmp_path):
    line = "LM\tpython3 x\tdir\t--steps\t1\t134583\t{}\tgns\t1\t-1.000000\t{}\t{}\n"
    path = tmp_path / "mine.trace"
    path.write_text(line.format(1, 1418, 0) + line.format(2, 500, 60))
    run = {"kind": "simulation", "jct_list": [1182.0, 900.0], "ftf_list": [0.25, 1.5]}
    (tmp_path / "published_results.json.gz").write_bytes(gzip.compress(json.dumps([run]).encode()))
    first, second = traces.read(path)
    assert (first.duration_us, first.alone_us, first.devices) == (1182 * S, 4728 * S, 1)
    assert (second.duration_us, second.alone_us, second.devices) == (500 * S, 600 * S, 2)


def test_spot_nodes_are_a_step_function_of_time_from_its_first_step(tmp_path):
    assert read_offers(written(tmp_path, "t_s,nodes\n480,1\n540,2\n")) == ((0, 1), (60 * S, 2))
    with pytest.raises(InvalidRequest, match="t_s,nodes"):
        read_offers(written(tmp_path, "a,b\n1,2\n"))
    with pytest.raises(InvalidRequest, match="backwards"):
        read_offers(written(tmp_path, "t_s,nodes\n5,2\n1,2\n"))
