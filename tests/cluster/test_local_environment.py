"""What the processes of a local Ray cluster are started with."""

import ctypes
import os

import ray  # noqa: F401 - before what builds on it

from fabric.cluster import local

in_c = ctypes.CDLL(None).getenv
in_c.restype = ctypes.c_char_p


def test_what_rays_processes_are_told_is_set_under_no_thread_of_this_one(tmp_path, monkeypatch):
    """Threads of Ray's look variables up in the C library, which has no lock for that: set meanwhile, it ends the process."""
    monkeypatch.setenv("DB_PASSWORD", "of whoever starts it")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    before = os.environ
    with local._environment(tmp_path, {"RAY_AUTH_TOKEN_PATH": "there"}):
        told = os.environ.copy()
        assert (in_c(b"DB_PASSWORD"), in_c(b"RAY_AUTH_TOKEN_PATH")) == (b"of whoever starts it", None)
    assert told["RAY_AUTH_TOKEN_PATH"] == "there"
    assert "DB_PASSWORD" not in told
    assert os.environ is before


def test_a_variable_that_is_as_it_should_be_is_not_set_again(monkeypatch):
    monkeypatch.setattr(os, "environ", Watched(RAY_AUTH_MODE="token"))
    local._put({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": None})
    assert os.environ.sets == []
    local._put({"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN": "t"})
    assert os.environ == {"RAY_AUTH_TOKEN": "t"}


class Watched(dict):
    """A stand-in for the variables of a process, which notes each that is set."""

    def __init__(self, **variables):
        super().__init__(**variables)
        self.sets = []

    def __setitem__(self, name, value):
        self.sets.append(name)
        super().__setitem__(name, value)
