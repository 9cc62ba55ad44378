"""The command line as a process of its own: what a terminal or a pipe sees of it."""

import os
import subprocess
import sys


def run(house, *words, **environment):
    known = {"FABRIC_ADDRESS": house.address, "FABRIC_API_KEY": house.acme, "FABRIC_CA": str(house.tls.ca)}
    quiet = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    return subprocess.run(
        [sys.executable, "-c", "from fabric.cli import main; main()", *words],
        capture_output=True, text=True, env={**quiet, **known, **environment}, check=False,
    )  # fmt: skip


def test_the_command_works_in_a_pipe_without_colours(house):
    done = run(house, "top")
    assert done.returncode == 0
    assert "burning" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_a_certificate_that_is_not_trusted_is_told_in_one_line_without_the_transports_own(house, tmp_path):
    done = run(house, "balance", FABRIC_CA="", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        f"error: the certificate of {house.address} can't be trusted: set FABRIC_CA to the fabric's ca.pem (tls_untrusted)\n"
    )
