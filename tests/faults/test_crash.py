"""kill -9 of the gate at random moments under load: nothing acknowledged is ever missing afterwards."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("crash_load.py")


def lose_no_acknowledged_event(directory, *, lives: int, timeout_s: int, dsn: str = "") -> None:
    seed = random.SystemRandom().getrandbits(32)
    sys.stdout.write(f"seed {seed}: {SCRIPT.name} --lives {lives} --seed {seed}\n")
    command = [sys.executable, str(SCRIPT), str(directory), "--lives", str(lives), "--seed", str(seed), "--dsn", dsn]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    totals = json.loads(ran.stdout)
    sys.stdout.write(f"{totals}: 0 acknowledged events lost\n")
    assert totals["lives"] == lives
    assert totals["acknowledged"] > lives, "the load must be one"


def test_a_hundred_kills_under_load_lose_no_acknowledged_event(tmp_path):
    lose_no_acknowledged_event(tmp_path, lives=100, timeout_s=280)


@pytest.mark.postgres
def test_thirty_kills_under_load_lose_no_acknowledged_event_in_postgresql(tmp_path, postgres_server):
    lose_no_acknowledged_event(tmp_path, lives=30, timeout_s=280, dsn=postgres_server.dsn)


@pytest.mark.soak
@pytest.mark.postgres
@pytest.mark.timeout(3600)
def test_five_hundred_kills_under_load_lose_no_acknowledged_event_in_postgresql(tmp_path, postgres_server):
    lose_no_acknowledged_event(tmp_path, lives=500, timeout_s=3_500, dsn=postgres_server.dsn)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_thousand_kills_under_load_lose_no_acknowledged_event(tmp_path):
    lose_no_acknowledged_event(tmp_path, lives=1_000, timeout_s=3_500)
