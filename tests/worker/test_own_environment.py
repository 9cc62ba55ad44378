"""A process in which one function runs after the other has the same environment before each, whatever they do to it."""

import os

import pytest

from fabric.worker.own_environment import environment_now, put_back, withhold

NAME = "A_VARIABLE_OF_A_TEST"


def sets():
    os.environ[NAME] = "other"


def removes():
    os.environ.pop(NAME, None)
    os.environ.pop("PATH", None)


def adds_bytes():
    os.environb[b"\xff" + NAME.encode()] = b"\xfe"


def puts_another_in_its_place():
    os.environ["MORE_" + NAME] = "1"
    os.environ = {"nothing": "else"}  # noqa: B003


def clears():
    os.environ.clear()


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ)
    monkeypatch.setattr(os, "environb", os.environb)
    monkeypatch.setenv(NAME, "as it was")
    return dict(os.environ)


PYTESTS = "PYTEST_CURRENT_TEST"
"""Changes while a test runs."""


def in_children():
    """As the system has it, for whom Python's own copy is nothing."""
    with os.popen("env -0") as told:
        return dict(line.split("=", 1) for line in told.read().split("\0") if NAME in line)


@pytest.mark.parametrize("does", [sets, removes, adds_bytes, puts_another_in_its_place, clears])
def test_what_a_function_does_to_the_environment_is_put_back(known, does):
    own, before = os.environ, environment_now()
    does()
    put_back(before)
    assert os.environ is own
    assert {**os.environ, PYTESTS: ""} == {**known, PYTESTS: ""}
    assert in_children() == {NAME: "as it was"}


def test_a_secret_is_withheld_each_time_also_one_that_came_since(known):
    before = environment_now()
    for more in ({}, {"FABRIC_API_KEY": "k"}, {"FABRIC_API_KEY": "k", "DATABASE": "postgresql://me:pw@db"}, {}):
        os.environ.update(more)
        withhold(())
        assert not more.keys() & os.environ.keys()
        assert "PATH" in os.environ
        put_back(before)


def test_one_that_became_an_address_with_a_password_is_withheld(known):
    withhold(())
    assert NAME in os.environ
    os.environ[NAME] = "postgresql://me:pw@db"
    withhold(())
    assert NAME not in os.environ


def test_what_an_owner_has_given_stays(known):
    os.environ["MY_API_KEY"] = "k"
    withhold({"MY_API_KEY"})
    assert os.environ["MY_API_KEY"] == "k"
    withhold(())
    assert "MY_API_KEY" not in os.environ
