"""Ports that are chosen now and listened on later."""

import socket
from contextlib import ExitStack

import pytest

from fabric.system import ports


def given_out():
    return tuple(int(word) for word in ports._GIVEN_OUT.read_text().split())


def test_a_chosen_port_is_none_that_the_system_gives_to_whoever_connects():
    lowest, highest = given_out()
    with ExitStack() as held:
        for _ in range(50):
            one = held.enter_context(socket.create_server(("127.0.0.1", ports.free_port())))
            assert not lowest <= one.getsockname()[1] <= highest


@pytest.mark.parametrize("says", [None, "", "1024 65535", "x y"])
def test_where_none_is_out_of_reach_a_free_one_is_chosen(tmp_path, monkeypatch, says):
    file = tmp_path / "range"
    if says is not None:
        file.write_text(says)
    monkeypatch.setattr(ports, "_GIVEN_OUT", file)
    with socket.create_server(("127.0.0.1", ports.free_port())):
        pass


def test_one_that_somebody_listens_on_is_not_chosen(tmp_path, monkeypatch):
    taken = ports.free_port()
    (tmp_path / "range").write_text(f"{taken + 2} 65535")
    monkeypatch.setattr(ports, "_GIVEN_OUT", tmp_path / "range")
    monkeypatch.setattr(ports, "_LOWEST", taken)
    with socket.create_server(("127.0.0.1", taken)):
        assert {ports.free_port() for _ in range(10)} == {taken + 1}
