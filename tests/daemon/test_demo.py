"""The demo clears up after itself however it ends; nothing is started here."""

import ast
from pathlib import Path

import pytest

import fabric
from fabric.demo import __main__ as demo
from fabric.demo import story
from fabric.errors import Unavailable


@pytest.fixture
def ended(monkeypatch, tmp_path):
    """Run the demo with parts that end as they are told; what was cleared away is noted."""
    monkeypatch.setattr(demo.tempfile, "mkdtemp", lambda **_: str(tmp_path / "state"))
    downs = []

    def ended(*, up=None, told=None, words=()):
        (tmp_path / "state").mkdir()
        monkeypatch.setattr(demo, "_bring_up", lambda _: _raise(up))
        monkeypatch.setattr(demo.story, "tell", lambda *_, **__: _raise(told))
        monkeypatch.setattr(demo.daemon, "down", lambda place, *, now: downs.append((place, now)))
        return demo.main([*words]), len(downs), (tmp_path / "state").exists()

    return ended


def _raise(error):
    if error is not None:
        raise error


def test_a_demo_that_is_interrupted_clears_up_and_says_so_in_one_line(ended, capsys):
    assert ended(told=KeyboardInterrupt()) == (130, 1, False)
    assert capsys.readouterr().err == "interrupted: everything was cleared away\n"
    assert ended(up=KeyboardInterrupt()) == (130, 1, False)


def test_a_demo_that_is_kept_and_interrupted_says_what_it_left(ended, capsys):
    assert ended(told=KeyboardInterrupt(), words=["--keep"]) == (130, 0, True)
    assert "left running" in capsys.readouterr().err


def test_a_demo_that_can_not_start_ends_with_the_errors_code_and_no_traceback(ended, capsys):
    assert ended(up=Unavailable("can't listen", code="address_taken")) == (8, 0, False)
    assert capsys.readouterr().err == "error: can't listen (address_taken)\n"


def test_the_demo_runs_a_program_that_comes_with_a_package_of_others():
    script = story.stranger()
    assert not script.is_relative_to(Path(fabric.__file__).parents[1]) or "site-packages" in script.parts
    assert "__main__" in {
        node.value for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Constant)
    }
