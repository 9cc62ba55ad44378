"""What commands print: tables for people, JSON for programs, one line for an error."""

import datetime as dt
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

from google.protobuf.message import Message
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fabric.cli.outlets import can_show
from fabric.errors import FabricError
from fabric.units import format_cny, format_ct
from fabric.visible import visible, visible_json, visible_lines

_PIPE_WIDTH: Final = 240
_NO_LIMIT: Final = 10_000
_NOTHING: Final = ("", "–")
_JOB_ID = re.compile(r"\b(job-[0-9a-f]{8})[0-9a-f]{12}\b")
_STATE_STYLES: Final = {
    "running": "green",
    "succeeded": "green",
    "up": "green",
    "ready": "green",
    "starting": "yellow",
    "failed": "red",
    "down": "red",
    "fail": "red",
    "warn": "yellow",
    "parked": "yellow",
    "stopping": "yellow",
    "draining": "yellow",
}


class _Console(Console):
    """Where all that commands say goes through: of text that others chose, what would steer a terminal is written out."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(_shown(each) for each in objects), **{"markup": False, **options})


def _shown(thing: Any) -> Any:
    if isinstance(thing, str):
        return visible_lines(thing)
    return Text(visible_lines(thing.plain), style=thing.style) if isinstance(thing, Text) else thing


def console() -> Console:
    """Standard output as it is now: colours and the terminal's width for people, plain wide lines in a pipe."""
    return _Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def say(text: str) -> None:
    """A line for people: never broken by us, so that it can be copied, nor by what is in it."""
    console().print(visible(text), soft_wrap=True)


def say_lines(text: str) -> None:
    """Text of several lines."""
    console().print(text, soft_wrap=True)


def tell(text: str) -> None:
    """The same beside the command's answer: on standard error."""
    _errors().print(visible(text))


def tell_over(text: str, *, done: bool) -> None:
    """On a terminal, over what was told this way before."""
    print(f"\r{visible(text)}", end="\n" if done else "", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A line that nobody may miss, in red on standard error."""
    _errors().print(Text(f"WARNING: {text}", style="bold red"))


def _errors() -> Console:
    return _Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: object, *, indent: int | None = 2) -> None:
    print(_json_text(value, sys.stdout, indent=indent), flush=True)


def _json_text(value: object, stream: Any, *, indent: int | None = None) -> str:
    """With letters as they are where the stream has them, else as JSON's escapes."""
    text = visible_json(json.dumps(value, indent=indent, ensure_ascii=False))
    return text if can_show(text, stream) else json.dumps(value, indent=indent)


def record(message: Message) -> dict[str, Any]:
    """A message for programs: every field, amounts as strings and in tokens."""
    return _record({field.name: _value(message, field) for field in message.DESCRIPTOR.fields})


def _record(values: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, value in values.items():
        if "_uhs" not in name and not name.endswith("_microcny"):
            shown[name] = value
            continue
        if isinstance(value, list):
            shown[name] = [str(each) for each in value]
            continue
        shown[name] = None if value is None else str(value)
        if value is not None and "_uhs" in name:
            shown[name.replace("_uhs", "_ct")] = format_ct(value, decimals=8)
        elif value is not None:
            shown[name.replace("_microcny", "_cny")] = format_cny(value)
    return shown


def _value(message: Message, field: Any) -> Any:
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [record(each) if isinstance(each, Message) else each for each in value]
    return record(value) if isinstance(value, Message) else value


def print_records(
    messages: Sequence[Message],
    *,
    as_json: bool,
    title: str,
    columns: Mapping[str, Callable[[Any], str]],
    spare: Sequence[str] = (),
) -> None:
    """A list: a table with these columns, or all of it as JSON. `spare` as in `table`."""
    if as_json:
        print_json([record(message) for message in messages])
        return
    if not messages:
        console().print(f"no {title}")
        return
    rows = [[show(message) for show in columns.values()] for message in messages]
    console().print(table(title, tuple(columns), rows, spare=spare))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, spare: Sequence[str] = ()) -> Table:
    """A plain table; numbers to the right.

    Where the terminal is too narrow, columns that say nothing go, then job ids are cut short (commands take them so), then
    the `spare` columns go, the first named first.
    """
    out = console()
    cells = [list(row) for row in rows]
    made = _table(title, columns, cells)
    for narrower in _narrower(list(columns), cells, spare=spare):
        if _width(made, out) <= out.width:
            break
        made = _table(title, *narrower)
    return made


def _narrower(
    columns: list[str], rows: list[list[str]], *, spare: Sequence[str]
) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Ever less of a table."""
    kept = [at for at, _ in enumerate(columns) if not rows or any(row[at] not in _NOTHING for row in rows)]
    columns, rows = [columns[at] for at in kept], [[row[at] for at in kept] for row in rows]
    yield columns, rows
    rows = [[_JOB_ID.sub(r"\1", cell) for cell in row] for row in rows]
    yield columns, rows
    for name in spare:
        if name in columns:
            at = columns.index(name)
            columns, rows = columns[:at] + columns[at + 1 :], [row[:at] + row[at + 1 :] for row in rows]
            yield columns, rows


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    made = Table(
        title=Text(visible(title)) if title else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        title_style="bold",
    )
    for column in columns:
        made.add_column(
            column, justify="right" if column.rpartition(" ")[2] in _TO_THE_RIGHT else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*(Text(visible(cell), style=_STATE_STYLES.get(cell, "")) for cell in row))
    return made


def _width(made: Table, out: Console) -> int:
    """How wide the table is where there is room enough."""
    return Measurement.get(out, out.options.update(max_width=_NO_LIMIT), made).maximum


_TO_THE_RIGHT: Final = frozenset({"CT", "CT/h", "CT/s", "CNY", "devices", "free", "util", "runway", "attempts"})


def print_facts(facts: Mapping[str, str], *, title: str = "") -> None:
    """Names and values, one a line; what a value has more of them is set in below it."""
    if title:
        console().print(Text(title, style="bold"))
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        for shown, line in zip_longest([visible(name)], value.split("\n"), fillvalue=""):
            say(f"{shown:{width}}  {visible(line)}")


def print_error(error: FabricError, *, as_json: bool) -> None:
    """One line on standard error; what a job's own error has more of them is set in, and is none of ours."""
    if as_json:
        parts = {"code": error.code, "http_status": error.http_status, "message": error.message, "facts": error.facts}
        print(_json_text({"error": parts}, sys.stderr), file=sys.stderr)
        return
    code = "" if f"({error.code})" in error.message else f" ({error.code})"
    said = f"error: {error.message}{code}".replace("\n", "\n  ")
    _errors().print(Text(said, style="red"))


def moment(at_us: int | None) -> str:
    """A time for a table: today's without its date, this year's without its year."""
    if not at_us:
        return "–"
    at, now = _local(at_us), dt.datetime.now(tz=dt.timezone.utc).astimezone()
    if at.date() == now.date():
        return at.strftime("%H:%M:%S")
    return at.strftime("%d %b %H:%M" if at.year == now.year else "%Y-%m-%d")


def time_of(at_us: int | None) -> str:
    """A time for people, in their own zone."""
    return _local(at_us).strftime("%Y-%m-%d %H:%M:%S") if at_us else "–"


def _local(at_us: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_us / 1_000_000, tz=dt.timezone.utc).astimezone()


def duration(us: int | None) -> str:
    """A duration for people: its two largest parts, the second unless it is nothing."""
    if us is None:
        return "–"
    seconds = us // 1_000_000
    parts = [(seconds // 86_400, "d"), (seconds // 3_600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{count} {unit}" for at, (count, unit) in enumerate(parts[:2]) if count or not at)


def percent(ppm: int) -> str:
    return f"{ppm // 10_000} %"


def optional(message: Message, field: str) -> Any:
    """A field's value, or None where it isn't set."""
    return getattr(message, field) if message.HasField(field) else None
