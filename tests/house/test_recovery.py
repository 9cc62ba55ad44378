"""An end waits for a control store of Ray's that answers, and not for one that doesn't."""

import threading
from pathlib import Path

import pytest
import ray

from fabric import house, recovery


class Ended(BaseException):
    pass


@pytest.fixture
def ended(monkeypatch):
    said = []
    monkeypatch.setattr(recovery, "SILENT_S", 0.05)
    monkeypatch.setattr(house, "end_remains", said.append)

    def leave(code):
        raise Ended(code)

    monkeypatch.setattr("os._exit", leave)
    return said


async def test_where_ray_answers_the_end_goes_its_ordinary_way(ended, monkeypatch, tmp_path):
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(recovery, "SILENT_S", 30)
    await recovery.end_if_silent(tmp_path, tmp_path / "work")
    assert ended == []


async def test_where_ray_says_nothing_all_of_it_is_ended_at_once(ended, monkeypatch, tmp_path):
    goes = threading.Event()
    monkeypatch.setattr(ray, "nodes", lambda: goes.wait(30))
    (tmp_path / "work").mkdir()
    with pytest.raises(Ended):
        await recovery.end_if_silent(tmp_path, tmp_path / "work")
    goes.set()
    assert ended == [Path(tmp_path)]
    assert not (tmp_path / "work").exists()
