"""Where Ray would look for a cluster is tried before Ray does, who takes minutes to give up."""

import pytest

from fabric.doctor import Health
from fabric.doctor.dependencies import check_ray_address


@pytest.fixture
def ray_folder(tmp_path, monkeypatch):
    """What Ray keeps of the cluster that was started here last; none runs, whatever runs on this machine."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray"


def test_a_ray_that_was_started_here_and_is_gone_is_named(ray_folder, closed_port):
    (ray_folder / "ray_current_cluster").write_text(f"127.0.0.1:{closed_port}")
    finding = check_ray_address("auto")
    assert finding.health is Health.FAIL
    assert f"auto, 127.0.0.1:{closed_port}" in finding.found
    assert "ray start" in finding.remedy


def test_auto_without_any_ray_says_so(ray_folder):
    finding = check_ray_address("auto")
    assert (finding.health, "RAY_ADDRESS isn't set" in finding.found) == (Health.FAIL, True)


def test_the_environment_goes_before_what_was_started_here(ray_folder, closed_port, monkeypatch):
    (ray_folder / "ray_current_cluster").write_text("127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    assert f"auto, 127.0.0.1:{closed_port}" in check_ray_address("auto").found
