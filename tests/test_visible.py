"""Text that others chose: all of it can be seen, none of it steers, and honest text of any script stays what it is."""

import io
import json
import unicodedata

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from fabric import logs
from fabric.cluster.dashboard import entry_of
from fabric.visible import visible, visible_json, visible_lines
from tests.test_progress import view

ANY = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("训练 λ é ñ עברית عربي 👍", "训练 λ é ñ עברית عربي 👍"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\x9bb", "a\\x9bb"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("a\ud800b", "a\\ud800b"),
        ("a\u2028b", "a\\u2028b"),
        ("a\U000e0041b", "a\\U000e0041b"),
        ("", ""),
    ],
)
def test_what_steers_or_hides_is_written_out(text, shown):
    assert visible(text) == shown


@given(ANY)
def test_what_is_shown_has_one_line_an_encoding_and_nothing_that_hides(text):
    shown = visible(text)
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert visible(shown) == shown


@given(ANY)
def test_json_says_the_same_when_all_of_it_can_be_seen(text):
    shown = visible_json(json.dumps([text], ensure_ascii=False))
    assert json.loads(shown) == [text]
    shown.encode()
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_lines_stay_lines():
    assert visible_lines("a\n\tb\x1bc\r\n") == "a\n\tb\\x1bc\\r\n"


def test_a_log_line_cannot_be_forged_by_what_is_logged(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    before = structlog.get_config()
    try:
        logs.plain()
        log = structlog.get_logger()
        forged = "x\n2026-01-01 00:00:00 [info     ] gate_up \x1b[2J"
        log.warning("said", name=forged, of={"deep": forged})
        log.error("failed", exc_info=ValueError(forged))
    finally:
        structlog.configure(**before)
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert sum(not line.startswith("  | ") for line in lines) == 2, lines


def test_rays_pages_get_names_that_can_be_seen(monkeypatch):
    entry = entry_of(msgspec.structs.replace(view(), name="ev\x1b[2Jil\u202e"))
    assert entry.entrypoint == "ev\\x1b[2Jil\\u202e"
