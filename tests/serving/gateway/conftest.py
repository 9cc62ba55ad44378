"""A gateway for a test."""

import pytest

from tests.serving.gateway.house import house_of


@pytest.fixture
async def house(tmp_path):
    async with house_of(tmp_path) as one:
        yield one
