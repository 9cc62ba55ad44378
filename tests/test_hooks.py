"""The hooks of git do what `make lint` does, with the tools of the environment."""

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())


def commands(target):
    made = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line for line in made.splitlines() if re.match(r"\.venv/bin/(ruff|mypy|lint-imports)", line)]


def test_hooks_download_nothing():
    assert [repo["repo"] for repo in HOOKS["repos"]] == ["local"]
    assert {hook["language"] for repo in HOOKS["repos"] for hook in repo["hooks"]} == {"system"}


def test_hooks_run_what_lint_runs():
    """Ruff is given the files that are committed, and leaves out what it leaves out in a run over all."""
    run = []
    for hook in HOOKS["repos"][0]["hooks"]:
        entry = hook["entry"]
        run += commands(entry.split()[1]) if entry.startswith("make ") else [entry.replace("--force-exclude", ".")]
    assert sorted(run) == sorted(commands("lint"))
    assert len(run) == 5
