"""The example of a client runs as its first lines say."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve.py"


def test_a_client_that_knows_nothing_of_the_fabric_is_answered_and_told_the_price(service):
    _, key = service.customer("1")
    service.until({"ready"})
    env = {**os.environ, "OPENAI_BASE_URL": service.found.endpoint, "OPENAI_API_KEY": key}
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--model", "byte-lm", "--tokens", "8", "import "],
        env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "8 tokens written, 0." in done.stdout
