"""What `fabric up` says of a fabric that has started."""

from typer.testing import CliRunner

from fabric.cli import app
from fabric.daemon import Running


def test_a_start_shows_the_key_that_exports_are_verified_with(monkeypatch, tmp_path):
    """An operator publishes it: no customer should have to take it from the export that it is to verify."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    up = Running(
        name="lab",
        pid=1,
        address="lab:7433",
        ca="",
        dashboard="",
        ray_address="",
        verifier_key="lab+1234+key",
        state_dir=str(tmp_path),
        nodes=1,
    )
    monkeypatch.setattr("fabric.daemon.up", lambda *_, **__: up)
    monkeypatch.setattr("fabric.daemon.operator_key", lambda _: "fab_k1_2")
    done = CliRunner().invoke(app, ["up"])
    assert "lab+1234+key (publish it: customers verify exports with --key)" in done.stdout
