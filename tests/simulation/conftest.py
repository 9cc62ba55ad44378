"""Where public traces are: beside the checkout, or where PUBLIC_TRACES says."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def public_traces():
    folder = Path(os.environ.get("PUBLIC_TRACES") or Path(__file__).parents[3] / "shared" / "traces")
    if not folder.is_dir():
        pytest.skip(f"there are no public traces at {folder}: name the folder that has them in PUBLIC_TRACES")
    return folder
