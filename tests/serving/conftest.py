"""One real engine for all live tests of the session, on a model that was trained for some seconds."""

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    from training import byte_lm

    folder = tmp_path_factory.mktemp("models") / "byte-lm"
    byte_lm.train(steps=40, export_to=str(folder), directory=folder.with_name("run"))
    return folder


@pytest.fixture(scope="session")
def rig(model_folder, tmp_path_factory):
    from .rig import Rig

    rig = Rig(model_folder, tmp_path_factory.mktemp("replica")).start()
    yield rig
    left = rig.stop()
    rig.wire.close()
    assert left == []
