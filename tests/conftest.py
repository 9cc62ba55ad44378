"""What holds for every test: nothing of the caller's environment leaks in, nothing is left in their home."""

import atexit
import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings

for name in [name for name in os.environ if name.startswith("FABRIC_")]:
    del os.environ[name]
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["XDG_STATE_HOME"] = home = tempfile.mkdtemp(prefix="fabric-tests-")
atexit.register(shutil.rmtree, home, ignore_errors=True)

# A shared machine is sometimes slow: how long an example takes is no property of the code.
settings.register_profile("fabric", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", settings.get_profile("fabric"), max_examples=5_000)
settings.load_profile("fabric")


def pytest_collection_modifyitems(config, items):
    """Long tests run when they are asked for, by `-m soak`."""
    if "soak" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("soak")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


@pytest.fixture
def state_dir(tmp_path, monkeypatch):
    """A state directory of this test's own, which everything that reads the settings uses."""
    monkeypatch.setenv("FABRIC_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"
