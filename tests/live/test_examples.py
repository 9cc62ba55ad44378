"""Each example runs as its first lines say, for a customer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
FABRIC = Path(sys.executable).with_name("fabric")


@pytest.fixture
def customer(acme, running):
    """What a customer's shell has set."""
    profile = acme.client.profile
    told = {f"FABRIC_{name.upper()}": getattr(profile, name) or "" for name in ("address", "api_key", "ca", "account")}
    return {**os.environ, **told}


def said_by(*command, env, within_s=200):
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=env, timeout=within_s, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def weights_in(text):
    return re.search(r"weights (\w{16})", text)[1]


def test_training_ends_with_the_same_weights_in_the_fabric_and_without(customer, tmp_path):
    alone = subprocess.run(
        [sys.executable, EXAMPLES / "train.py", "--steps", "120"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    words = ("submit", "--tokens", "0.2", "--accelerators", "H100:1", "--follow", "--", "python", EXAMPLES / "train.py")
    told = said_by(FABRIC, *words, "--steps", "120", env=customer)
    assert weights_in(told) == weights_in(alone.stdout)


def test_a_map_gives_what_a_loop_would(customer):
    told = said_by(sys.executable, EXAMPLES / "batch_map.py", "--parts", "3", "--end", "10000", env=customer)
    assert "1229 primes below 10000" in told
    assert len(re.findall(r"primes, [\d.]+ tokens", told)) == 3


def test_tasks_and_actors_run_in_a_lease(customer, running):
    of_ray = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": running.ray_token,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ADDRESS": running.ray_address,
    }
    assert "the sum is 285; it took" in said_by(sys.executable, EXAMPLES / "lease.py", env={**customer, **of_ray})


def test_a_gang_of_any_size_reaches_the_same_weights(customer):
    script = EXAMPLES / "elastic_gang.py"
    told = [
        said_by(sys.executable, script, "--epochs", "1", "--accelerators", wanted, env=customer)
        for wanted in ("H100:1", "H100:3")
    ]
    assert weights_in(told[0]) == weights_in(told[1])
    assert "3 × H100" in told[1]
