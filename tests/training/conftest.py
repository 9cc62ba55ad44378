"""No test of training writes curves where it is started."""

import pytest


@pytest.fixture(autouse=True)
def curves(tmp_path, monkeypatch):
    folder = tmp_path / "curves"
    monkeypatch.setenv("FABRIC_TENSORBOARD_DIR", str(folder))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return folder
