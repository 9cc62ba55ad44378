"""kill -9 amid the saves of a training: what comes back is a step as it was, none that was acknowledged is lost.

Asked of `session` alone: what nothing trains and is written once, objects that are changed in place, a loader's place by index.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("lives", [40, pytest.param(300, marks=pytest.mark.soak)])
@pytest.mark.timeout(1200)
def test_killed_while_it_saves_a_training_comes_back_as_it_was(tmp_path, lives):
    seed = random.SystemRandom().getrandbits(32)
    command = [
        sys.executable,
        "-m",
        "tests.training.kill_session",
        str(tmp_path),
        "--lives",
        str(lives),
        "--seed",
        str(seed),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1_100, check=False, cwd=ROOT)
    assert ran.returncode == 0, f"seed {seed}: {ran.stdout}{ran.stderr[-4_000:]}"
    totals = json.loads(ran.stdout.splitlines()[-1])
    sys.stdout.write(f"{totals}: 0 torn, 0 lost\n")
    assert totals["lives"] == lives
    assert totals["resumed"] > lives // 4, "many lives must have something to come back to"
    assert totals["saves"] > lives
