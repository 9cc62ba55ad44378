"""What the pages name is there: links, files, targets, commands, benches."""

import ast
import html
import re
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

from fabric.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BENCHES = sorted((ROOT / "tests" / "bench").glob("bench_*.py"))
SCREEN_LINES = 70


def each_page(function):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))(function)


@cache
def text_of(page):
    return page.read_text(encoding="utf-8")


def anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text_of(page)):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_files_that_are_named_are_there(page):
    if page.name == "CHANGELOG.md":
        return  # it tells of what is gone, too
    top = r"(?:fabric|serving|training|tests|docs|examples|cluster-configs|locks)"
    for name in re.findall(rf"`({top}/[\w./*-]+)`", text_of(page)):
        assert list(ROOT.glob(name.rstrip("/"))), name


@each_page
def test_targets_of_make_that_are_named_are_there(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:`|^    )make ([a-z]+)", text_of(page), re.MULTILINE)
    assert set(named) <= targets


@each_page
def test_commands_that_are_named_are_there(page):
    command = get_command(app)
    for words in re.findall(r"(?:`|^    )fabric ([a-z][a-z -]*)", text_of(page), re.MULTILINE):
        at = command
        for word in words.split():
            inner = getattr(at, "commands", {})
            if not inner:
                break
            assert word in inner, words
            at = inner[word]


def test_the_readme_is_one_screen():
    assert len(text_of(ROOT / "README.md").splitlines()) <= SCREEN_LINES


def test_every_page_is_found_from_the_readme():
    found, looked = {ROOT / "README.md"}, set()
    while page := next(iter(found - looked), None):
        looked.add(page)
        links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text_of(page))
        found |= {(page.parent / link).resolve() for link in links if link.endswith(".md")}
    assert set(PAGES) - found == set()


@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.stem)
def test_every_bench_prints_the_yardstick_and_has_its_row(bench):
    assert f"`{bench.name}" in text_of(ROOT / "BENCHMARKS.md")
    mains = [each for each in ast.parse(bench.read_text()).body if getattr(each, "name", "") == "main"]
    calls = [each for each in ast.walk(mains[0]) if isinstance(each, ast.Call)]
    assert [each for each in calls if getattr(each.func, "id", "") == "print_yardstick"]


def test_the_picture_of_the_demo_has_headings_of_the_demo_and_asks_nobody_for_anything():
    """Drawn anew by `make picture` where the demo's story changes."""
    drawing = html.unescape(text_of(ROOT / "docs" / "demo.svg")).replace("\xa0", " ")
    told = re.findall(r'heading\((\d), "(.*?)"\)', text_of(ROOT / "fabric" / "demo" / "story.py"))
    shown = [text for _, text in told if text in drawing]
    assert len(shown) >= 4
    assert set(re.findall(r"https?://[^\"\s)]+", drawing)) == {"http://www.w3.org/2000/svg"}
