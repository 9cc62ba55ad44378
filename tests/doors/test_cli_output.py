"""What people see: tables that fit, amounts that add up, times that are theirs."""

import datetime as dt
import io
import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fabric.cli import money, output
from fabric.cli.output import duration, moment, table, time_of
from fabric.units import format_ct

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


@pytest.mark.parametrize(
    ("uhs", "decimals", "shown"),
    [
        (0, 4, "0"),
        (331_560, 4, "0.000092"),
        (720_000, 4, "0.0002"),
        (72_000, 4, "0.00002"),
        (1, 8, "0.00000000027"),
        (1_800_000_001, 4, "0.5"),
        (1_234_567_890, 4, "0.3429"),
    ],
)
def test_an_amount_that_is_not_nothing_is_never_shown_as_nothing(uhs, decimals, shown):
    assert format_ct(uhs, decimals=decimals) == shown


def test_what_a_statement_shows_of_a_hold_adds_up_to_what_is_left_of_it():
    moves = [1_800_000_000, -54_401, -1_799_945_599]
    assert sum(moves) == 0
    shown, left = money._rounded(0, moves)
    assert sum(shown) + left == 0
    assert [money._signed(count) for count in shown] == ["+0.50000000", "-0.00001511", "-0.49998488"]
    assert money._signed(left) == "-0.00000001"


@given(st.integers(400, 10**13))
def test_a_statement_shows_an_amount_as_usage_does(uhs):
    (shown,), _ = money._rounded(0, [-uhs])
    assert Decimal(money._signed(shown)) == -Decimal(format_ct(uhs, decimals=8))


@given(st.lists(st.integers(-(10**13), 10**13), max_size=30), st.integers(0, 10**13), st.integers(0, 10**13))
def test_the_lines_of_a_statement_add_up_to_its_closing_as_they_are_shown(moves, free_uhs, debt_uhs):
    opening = free_uhs - debt_uhs
    shown, left = money._rounded(opening, moves)
    closing = opening // money.UHS_PER_DECIMAL + sum(shown) + left
    assert closing == (opening + sum(moves)) // money.UHS_PER_DECIMAL
    for exact, count in zip(moves, shown, strict=True):
        assert abs(exact - count * money.UHS_PER_DECIMAL) < money.UHS_PER_DECIMAL
    standing = {"free_uhs": free_uhs, "held_uhs": 7, "debt_uhs": debt_uhs}
    told = {name: Decimal(text.removesuffix(" CT")) for name, text in money._balances(standing).items()}
    worth = told["free"] + told["held"] - told["owed"]
    assert worth.scaleb(8) == money._worth(standing) // money.UHS_PER_DECIMAL


def test_a_value_of_several_lines_is_set_in_and_can_pass_for_no_other_fact(capsys):
    from fabric.cli.output import print_facts

    print_facts({"job": "j-1", "error": "Traceback:\n  held  9 CT\n\x1b[2Jend", "held": "1 CT"})
    assert capsys.readouterr().out.splitlines() == [
        "job    j-1",
        "error  Traceback:",
        "         held  9 CT",
        "       \\x1b[2Jend",
        "held   1 CT",
    ]
