"""A session's script on a real cluster: paused while its data stall, it is saved there and goes on to the same weights."""

import re
import subprocess
import sys
import time
from pathlib import Path

from tests.live.test_house import wait_for_state

SCRIPT = Path(__file__).parent / "train_session.py"


def test_a_script_whose_data_stall_is_paused_where_it_waits_and_ends_with_the_same_weights(acme, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "stalled").touch()
    alone = subprocess.run([sys.executable, SCRIPT, plain], cwd=plain, capture_output=True, text=True, check=True)
    job = acme.submit(SCRIPT.name, str(tmp_path), working_dir=SCRIPT.parent, tokens="1", accelerators="any")
    deadline = time.monotonic() + 90
    while not (tmp_path / "stalled").exists():
        assert time.monotonic() < deadline, "".join(job.logs())
        time.sleep(0.1)
    job.pause()
    wait_for_state(job, "parked")
    (checkpoint,) = job.checkpoints()
    job.resume()
    assert job.wait(timeout=90) == "succeeded"
    log = "".join(job.logs())
    assert f"resumed at {checkpoint.step}\n" in log
    assert re.search(r"digest \w+", log)[0] in alone.stdout
    info = job.info()
    assert (info.step, info.steps_total, info.attempts) == (100, 100, 2)
    assert re.search(rf"PAUSED at step {checkpoint.step}, durable in .*, 0 steps", info.timeline), info.timeline
