"""A whole fabric whose PostgreSQL is stopped under it: it says so at once, comes back by itself, and goes down meanwhile."""

import time
from contextlib import suppress
from pathlib import Path

import pytest

from fabric import daemon
from fabric.daemon.state_dir import ailment
from fabric.errors import Conflict, FabricError, NotFound, Unavailable
from fabric.sdk import connect

pytestmark = [pytest.mark.ray, pytest.mark.postgres]
WITHIN_S = 90


def wait_until(happens):
    deadline = time.monotonic() + WITHIN_S
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_fabric_comes_back_when_its_database_does_and_goes_down_without_it(tmp_path, postgres_server):
    config, place = tmp_path / "small.yaml", tmp_path / "state"
    config.write_text(
        "name: small\nray: {mode: local, nodes: [{node: n, accelerator: H100, devices: 2}]}\n"
        f"journal: {{kind: postgres, dsn: '{postgres_server.dsn}'}}\n"
    )
    try:
        found = daemon.up(config, state_dir=place, any_port=True)
        with connect(
            found.address, daemon.operator_key(Path(found.state_dir)), found.ca, account=found.account
        ) as fabric:
            fabric.top_up("3")
            job = fabric.submit(time.sleep, 1, tokens="0.1", accelerators="H100:1")
            postgres_server.stop()
            with pytest.raises(Unavailable, match="database is away"):
                fabric.top_up("1")
            wait_until(lambda: "database is away" in ailment(place))
            with pytest.raises(Conflict, match="not well: the journal's database is away"):
                daemon.up(config, state_dir=place, any_port=True)
            time.sleep(10)
            postgres_server.start()
            wait_until(lambda: answers(fabric))
            assert job.result(timeout=WITHIN_S) is None
            assert fabric.submit(pow, 2, 3, tokens="0.1", accelerators="H100:1").result(timeout=WITHIN_S) == 8
            wait_until(lambda: not ailment(place))
            running = fabric.submit(time.sleep, 600, tokens="1", accelerators="H100:1")
            wait_until(lambda: running.state == "running")
            postgres_server.stop()
            wait_until(lambda: "database is away" in ailment(place))
        daemon.down(place)
        assert daemon.running(place) is None
    finally:
        with suppress(NotFound):
            daemon.down(place, now=True)
        if postgres_server.process.poll() is not None:
            postgres_server.start()


def answers(fabric):
    try:
        fabric.balance()
    except FabricError:
        return False
    return True
