import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from fabric.house.remains import processes_of

LOGS = "import sys; file = open(sys.argv[1], 'w'); print(flush=True); sys.stdin.read()"


@contextmanager
def writing_to(path, **environment):
    command = [sys.executable, "-c", LOGS, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env={**os.environ, **environment}) as process:
        process.stdout.readline()
        yield process
        process.stdin.close()


@pytest.mark.parametrize(
    ("log", "environment", "ours"),
    [
        ("raylet.out", {}, True),
        ("python-core-worker-1.log", {}, True),
        ("python-core-driver-1.log", {}, False),
        ("python-core-driver-1.log", {"FABRIC_LEASE_ID": "job-1/1"}, True),
    ],
)
def test_a_cluster_leaves_all_that_logs_in_its_folder_but_clients_that_no_job_started(tmp_path, log, environment, ours):
    with writing_to(tmp_path / log, **environment) as process:
        assert (process.pid in [found.pid for found in processes_of(tmp_path)]) is ours


def test_another_folder_with_the_same_beginning_is_anothers(tmp_path):
    folder, other = tmp_path / "fabric-a", tmp_path / "fabric-ab"
    folder.mkdir()
    other.mkdir()
    with writing_to(other / "raylet.out") as process:
        assert process.pid not in [found.pid for found in processes_of(folder)]
