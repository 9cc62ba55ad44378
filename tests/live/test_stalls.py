"""A rank that stalls on a real cluster: its gang keeps the last step, and goes on by itself to the same weights."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).parent / "train_gang.py"
SILENT_S = 4


def wait_for(found, job, within_s=120):
    deadline = time.monotonic() + within_s
    while not found():
        info = job.info()
        assert time.monotonic() < deadline, f"{info.state} ({info.reason}): {info.timeline}\n{''.join(job.logs())}"
        assert info.state != "parked", f"{info.reason}: {info.timeline}"
        time.sleep(0.1)


def test_a_gang_of_which_a_rank_stalls_goes_on_by_itself_and_nobody_has_paused_it(acme, tmp_path):
    alone = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, "0"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    ).stdout
    (digest,) = re.findall(r"ends with (\w+)", alone)
    folder = tmp_path / "ranks"
    folder.mkdir()
    job = acme.submit(
        SCRIPT.name, str(folder), "0.05", working_dir=SCRIPT.parent, tokens="2", accelerators="H100:2",
        ranks="device", env={"FABRIC_GANG_SILENT_S": str(SILENT_S)},
    )  # fmt: skip
    wait_for(lambda: (folder / "1-0").exists() and (folder / "1-1").exists(), job)
    stalled = int((folder / "1-1").read_text())
    os.kill(stalled, signal.SIGSTOP)
    try:
        wait_for(lambda: "is silent" in "".join(job.logs()), job)
        time.sleep(2)
    finally:
        os.kill(stalled, signal.SIGCONT)
    wait_for(lambda: job.info().attempts == 2, job)
    assert job.wait(timeout=120) == "succeeded"
    info, log = job.info(), "".join(job.logs())
    assert re.search(r"PEER LOST at step \d+, 0 steps lost", info.timeline), info.timeline
    ends = re.findall(r"rank (\d) resumed at (\d+) and ends with (\w+)", log)
    assert {(rank, end) for rank, _, end in ends} == {("0", digest), ("1", digest)}, log
    assert int(ends[0][1]) > 0
