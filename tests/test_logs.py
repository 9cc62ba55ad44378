"""What our processes log: no variable of a traceback, no control character, in files that their owner alone may read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FAILS = """
import os, structlog
{begin}
def charge(card):
    raise ValueError("no such account")
try:
    charge("4000-0000-secret")
except ValueError:
    structlog.get_logger().exception("failed", name="\\x1b[31mred\\u202e", account="acme")
"""
BEGINNINGS = {
    "a guarded actor": """
from fabric.system.guarded import Guarded
class Actor(Guarded):
    TENANTS = True
Actor(b"", b"")
""",
    "the gate's actor": "from fabric.server.gate_server import GatehouseActor\nGatehouseActor(b'', b'')",
    "a process that begins": "from fabric import logs\nlogs.begin()",
    "a gateway": "from serving.gateway.__main__ import _log_to_standard_error\n_log_to_standard_error('info')",
    "the command line": "from fabric.cli.app import start\nstart(debug=True)",
}


@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
def test_no_log_holds_what_was_in_a_variable(begin):
    done = subprocess.run(
        [sys.executable, "-c", FAILS.format(begin=begin)],
        capture_output=True, text=True, check=True, env={**os.environ, "FORCE_COLOR": "1"},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert "no such account" in said
    assert "4000" not in said
    assert "\x1b[31m" not in said
    assert "\u202e" not in said


def test_every_process_of_ours_says_how_it_logs_before_anything_else():
    """A new process with a `main` that logs, and doesn't say how, would show variables."""
    begins = [
        file
        for room in ("fabric", "serving", "training")
        for file in (ROOT / room).rglob("*.py")
        if 'if __name__ == "__main__"' in (text := file.read_text()) and "structlog" in text
    ]
    assert len(begins) >= 3
    assert [str(file) for file in begins if "logs.begin(" not in file.read_text()] == []


def test_a_log_is_its_owners_alone_also_one_that_was_there_before(tmp_path):
    from fabric.logs import open_private

    file = tmp_path / "fabric.log"
    file.write_text("before\n")
    file.chmod(0o644)
    with os.fdopen(open_private(file), "ab") as out:
        out.write(b"after\n")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == "before\nafter\n"
