"""`fabric audit witness` as a process: killed at any instant and started again, it has forgotten nothing that it cosigned."""

import http.client
import json
import signal
import subprocess
import sys
from urllib.parse import urlsplit

from tests.audit.test_witness import LOG, asked, sent, tree_of


def started(state):
    ran = subprocess.Popen(
        [sys.executable, "-c", "from fabric.cli import main; main()", "audit", "witness", "--name", "witness.example/w1", "--log", str(LOG.verifier),
         "--state", state, "--listen", "127.0.0.1:0", "--json"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = json.loads("".join(iter(ran.stdout.readline, "}\n")) + "}")
    return ran, said["key"], urlsplit(said["url"]).port


def test_a_witness_that_is_killed_goes_on_from_what_it_has_cosigned(tmp_path):
    tree, names, newest = tree_of(40), set(), 0
    for killed_after in (3, 5):
        ran, key, port = started(tmp_path / "state")
        connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            names.add(key)
            assert sent(port, asked(tree, 40))[:2] == (409, f"{newest}\n")
            for size in range(newest + 1, newest + killed_after):
                assert sent(port, asked(tree, size - 1, size))[0] == 200
                newest = size
            connection.request("POST", "/add-checkpoint", body=asked(tree, newest, newest + 1)[:-10])
        finally:
            ran.send_signal(signal.SIGKILL)
            ran.wait()
            ran.stdout.close()
            connection.close()
    assert newest == 6
    assert len(names) == 1, "its key is kept, too"
