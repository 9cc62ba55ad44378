"""What people see: tables that fit, amounts that add up, times that are theirs."""

import datetime as dt
import io
import time

import pytest
from rich.console import Console

from fabric.cli import money, output
from fabric.cli.output import duration, moment, table, time_of

JOB = "job-9829cded7d97285f73b3"
COLUMNS = ("job", "name", "why", "submitted")
ROWS = [(JOB, "train", "–", "12:23:22")]


def printed(monkeypatch, *, width, **options):
    out = Console(width=width, file=io.StringIO(), highlight=False)
    monkeypatch.setattr(output, "console", lambda: out)
    out.print(table("", COLUMNS, ROWS, **options))
    return [line.rstrip() for line in out.file.getvalue().splitlines() if line.strip()]


def test_where_there_is_room_a_table_says_everything(monkeypatch):
    heads, row = printed(monkeypatch, width=80, spare=("submitted",))
    assert heads.split() == list(COLUMNS)
    assert row.split() == list(ROWS[0])


@pytest.mark.parametrize(
    ("width", "cells"),
    [
        (46, [JOB, "train", "12:23:22"]),
        (30, ["job-9829cded", "train", "12:23:22"]),
        (22, ["job-9829cded", "train"]),
    ],
)
def test_a_narrow_table_drops_what_says_nothing_then_shortens_ids_then_spares_columns(monkeypatch, width, cells):
    _, row = printed(monkeypatch, width=width, spare=("submitted",))
    assert row.split() == cells


def test_a_statement_gathers_a_holds_charges_and_its_sums_stay():
    lines = [
        {"kind": "hold", "ref": "a", "amount_uhs": 0, "held_uhs": 9},
        {"kind": "capture", "ref": "a", "amount_uhs": -2, "held_uhs": -2},
        {"kind": "capture", "ref": "b", "amount_uhs": -1, "held_uhs": -1},
        {"kind": "capture", "ref": "a", "amount_uhs": -3, "held_uhs": -3},
        {"kind": "release", "ref": "a", "amount_uhs": 0, "held_uhs": -4},
    ]
    gathered = money._gathered(lines)
    assert [(line["kind"], line["ref"], line["amount_uhs"], line["count"]) for line in gathered] == [
        ("hold", "a", 0, 1),
        ("capture", "b", -1, 1),
        ("capture", "a", -5, 2),
        ("release", "a", 0, 1),
    ]
    for name in ("amount_uhs", "held_uhs"):
        assert sum(line[name] for line in gathered) == sum(line[name] for line in lines)


@pytest.mark.parametrize(
    ("us", "shown"),
    [(None, "–"), (0, "0 s"), (900_000_000, "15 min"), (901_000_000, "15 min 1 s"), (86_400_000_000, "1 d")],
)
def test_a_duration_is_its_two_largest_parts_without_a_second_that_is_nothing(us, shown):
    assert duration(us) == shown


@pytest.fixture
def shanghai(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("shanghai")
def test_times_are_in_the_zone_of_whoever_reads_them_and_as_short_as_they_can_be():
    assert time_of(1_795_494_202_737_592) == "2026-11-24 12:23:22"
    now = dt.datetime.now(tz=dt.UTC).astimezone()
    last_year = now.replace(year=now.year - 1, month=3, day=4)
    assert moment(int(now.timestamp() * 1e6)) == now.strftime("%H:%M:%S")
    assert moment(int(last_year.timestamp() * 1e6)) == f"{now.year - 1}-03-04"
    assert moment(0) == moment(None) == "–"
