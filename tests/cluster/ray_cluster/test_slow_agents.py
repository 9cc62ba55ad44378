"""A raylet's agents are two Pythons that import much: on a machine that is busy with other things they begin late, and the
program's Ray starts all the same.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.soak]
LATE_S = 40
"""Later than a raylet by itself waits for the ports of its agents."""
LATE = f"""
import sys, time
if any(word.endswith(("dashboard/agent.py", "runtime_env/agent/main.py")) for word in sys.orig_argv):
    time.sleep({LATE_S})
"""
PROGRAM = """
    import ray
    from fabric.worker.ray_node import started

    if __name__ == "__main__":
        started(lambda: ray.init(address="local", num_cpus=1, include_dashboard=False, _temp_dir={folder!r}))
        print("squares", ray.get(ray.remote(lambda number: number * number).remote(7)))
        ray.shutdown()
"""


def test_a_node_starts_whose_agents_begin_late(tmp_path, tmp_path_factory):
    (tmp_path / "sitecustomize.py").write_text(LATE)
    folder = tmp_path_factory.mktemp("r")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM.format(folder=str(folder)))],
        env={
            **os.environ,
            "PYTHONPATH": f"{tmp_path}:{Path.cwd()}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_agent_register_timeout_ms": "180000",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "squares 49" in done.stdout, done.stderr[-3_000:]
    assert "once more" not in done.stderr
