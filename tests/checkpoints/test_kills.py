"""kill -9 at every stage of saving, clearing away and loading: nothing torn, nothing acknowledged lost."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_load.py")


def nothing_is_torn(where, *, lives, timeout_s):
    seed = random.SystemRandom().getrandbits(32)
    command = [sys.executable, str(SCRIPT), str(where), "--lives", str(lives), "--seed", str(seed)]
    sys.stdout.write(f"{' '.join(command[1:])}\n")
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}"
    totals = json.loads(ran.stdout.splitlines()[-1])  # before it: what was tried again
    sys.stdout.write(f"{totals}: 0 torn, 0 lost\n")
    assert totals["lives"] == sum(totals["killed in"].values()) == lives
    assert {"claim", "shards", "commit", "gc"} <= set(totals["killed in"]), "every stage must have been hit"


def test_a_hundred_and_fifty_kills_tear_nothing_in_a_directory(tmp_path):
    nothing_is_torn(tmp_path / "store", lives=150, timeout_s=200)


def test_sixty_kills_tear_nothing_in_a_bucket(moto_url, bucket):
    nothing_is_torn(f"{moto_url}/{bucket}", lives=60, timeout_s=200)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_ten_thousand_kills_tear_nothing_in_a_directory(tmp_path):
    nothing_is_torn(tmp_path / "store", lives=10_000, timeout_s=7_000)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_thousand_kills_tear_nothing_in_a_bucket_on_a_bad_day(moto_url, bucket):
    from tests.checkpoints.faulty_bucket import DROP_AFTER, DROP_BEFORE, INTERNAL, SLOW_DOWN, FaultyBucket

    dice = random.Random(1)
    faults = [SLOW_DOWN, INTERNAL, DROP_BEFORE, DROP_AFTER]
    proxy = FaultyBucket(moto_url, fault_of=lambda _: dice.choice(faults) if dice.random() < 0.02 else None)
    try:
        nothing_is_torn(f"{proxy.url}/{bucket}", lives=1_000, timeout_s=7_000)
    finally:
        proxy.stop()
