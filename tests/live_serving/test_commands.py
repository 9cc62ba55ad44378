"""The commands about models against one that is really served: shown, called, calibrated, billed."""

import json

import pytest
from typer.testing import CliRunner

from fabric import daemon
from fabric.cli import app


@pytest.fixture
def run(service, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("FABRIC_ADDRESS", service.found.address)
    monkeypatch.setenv("FABRIC_CA", service.found.ca)
    monkeypatch.setenv("FABRIC_API_KEY", daemon.operator_key(service.place))

    def command(*words):
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output + repr(done.exception)
        return done.output

    return command


def test_a_served_model_is_shown_calibrated_and_each_call_of_it_is_in_the_usage(service, run):
    service.until({"ready"})
    shown = run("models", "-a", "local")
    assert "ready" in shown
    assert service.found.endpoint in shown
    before = len(json.loads(run("usage", "-a", "operator", "--json")))
    words = ("--streams", 2, "--prompt", 32, "--answer", 8, "--seconds", 0.5)
    said = json.loads(run("calibrate", "serving", "byte-lm", *words, "--json"))
    assert said["measured"]["completion"]["tokens"] > 0
    assert int(said["rates"][0]["output_uhs_per_mtok"]) > int(said["rates"][0]["cached_uhs_per_mtok"]) > 0
    assert len(json.loads(run("usage", "-a", "operator", "--json"))) >= before
