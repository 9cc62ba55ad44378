"""Rows as text: CSV that a spreadsheet can't take for formulas, or JSON Lines. A row at a time, nothing is kept."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final

Value = str | Decimal | dict[str, object] | None
Row = Mapping[str, Value]
CSV: Final = "csv"
JSON_LINES: Final = "jsonl"
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""With what spreadsheets begin formulas, in full width, too."""


def safe_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula: with an apostrophe before what would be one, also behind blanks."""
    return f"'{text}" if text.lstrip(" \u00a0\u3000").startswith(_FORMULA) or text.startswith("'") else text


def plain_cell(cell: str) -> str:
    """What `safe_cell` was given."""
    return cell.removeprefix("'")


def plain_number(value: Decimal) -> str:
    """A number without an exponent, a plus or zeros at its end."""
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in {"-0", ""} else text


def csv_lines(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[bytes]:
    """The header, then a line a row (RFC 4180, UTF-8, CRLF). Null is an empty cell."""
    yield _csv_line(columns)
    for row in rows:
        yield csv_line(row, columns)


def csv_line(row: Row, columns: Sequence[str]) -> bytes:
    return _csv_line([_cell(row.get(name)) for name in columns])


def csv_header(columns: Sequence[str]) -> bytes:
    return _csv_line(columns)


def json_line(row: Row, columns: Sequence[str]) -> bytes:
    """One row as an object with all columns; numbers in full, and JSON values as such."""
    parts = [f"{json.dumps(name)}:{_json(row.get(name))}" for name in columns]
    return ("{" + ",".join(parts) + "}\n").encode()


def _csv_line(cells: Sequence[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().encode()


def _cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return plain_number(value)
    return safe_cell(value) if isinstance(value, str) else _compact(value)


def _json(value: Value) -> str:
    if isinstance(value, Decimal):
        return plain_number(value)
    return _compact(value)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_number)


def _number(value: object) -> float | int:
    assert isinstance(value, Decimal), f"no number: {value!r}"
    return int(value) if value == value.to_integral_value() else float(value)
