"""Machines for programs."""

import pytest

from tests.worker.programs import Machine, Zygotes


@pytest.fixture
def executing(tmp_path):
    """A machine on which a runner executes programs."""
    made = Machine(tmp_path)
    yield made
    made.close()


@pytest.fixture
def machine(executing):
    """The same, where it doesn't matter how they come to run."""
    return executing


@pytest.fixture(scope="session")
def zygotes():
    """What forks programs, and starts ranks in processes of their own: it takes seconds to come up."""
    found = Zygotes()
    yield found
    found.close()
