import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from fabric.daemon.cleanup import processes_of

LOGS = "import sys; files = [open(path, 'w') for path in sys.argv[1:]]; print(flush=True); sys.stdin.read()"


@contextmanager
def writing_to(*paths, **environment):
    command = [sys.executable, "-c", LOGS, *map(str, paths)]
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


@pytest.mark.parametrize(
    ("logs", "ours"),
    [
        (["events/event_CORE_WORKER_1.log"], False),
        (["export_events/event_EXPORT_TASK_1.log"], False),
        (["events/event_CORE_WORKER_1.log", "export_events/event_EXPORT_TASK_1.log"], False),
        (["events/event_CORE_WORKER_1.log", "ray-data.log"], False),
        (["python-core-driver-1.log", "events/event_CORE_WORKER_1.log", "ray-data.log", "train.log"], False),
        (["ray-data.log"], False),
        (["what-no-version-of-Ray-writes-yet.log"], False),
        (["events/event_CORE_WORKER_1.log", "worker-1.out"], True),
        (["events/event_CORE_WORKER_1.log", "python-core-worker-1.log"], True),
        (["dashboard_DataHead.log"], True),
        (["events/event_RAYLET.log"], True),
    ],
)
def test_a_client_that_has_gone_on_to_another_cluster_is_nobodys_of_this_one(tmp_path, logs, ours):
    """Its log is the other cluster's then; Ray's files of events stay open until the process ends."""
    folder, other = tmp_path / "here", tmp_path / "there"
    for below in (folder / "events", folder / "export_events", other):
        below.mkdir(parents=True)
    with writing_to(*(folder / log for log in logs), other / "python-core-driver-1.log") as process:
        assert (process.pid in [found.pid for found in processes_of(folder)]) is ours


def test_another_folder_with_the_same_beginning_is_anothers(tmp_path):
    folder, other = tmp_path / "fabric-a", tmp_path / "fabric-ab"
    folder.mkdir()
    other.mkdir()
    with writing_to(other / "raylet.out") as process:
        assert process.pid not in [found.pid for found in processes_of(folder)]
