"""A customer's costs in FOCUS over HTTP: `GET /v1/focus/cost-and-usage?since=2026-11-01&until=2026-12-01&format=csv`.

Asked of the fabric with the customer's own key, and sent on piece by piece; nothing is kept here. Where the fabric fails in the
middle, the connection is cut: a file that ends too soon would look whole.
"""

from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qs

from fabric.errors import FabricError, InvalidRequest, NotFound
from serving.gateway.directory import Directory
from serving.gateway.exchange import ClientGone, Exchange
from serving.gateway.keys import presented
from serving.http_server import ABORT

_DATASETS: Final = {"cost-and-usage": "CostAndUsage", "contract-commitment": "ContractCommitment"}
_FORMS: Final = {"csv": b"text/csv; charset=utf-8", "jsonl": b"application/x-ndjson"}
_ASKED: Final = ("since", "until", "format")


async def hand_on(exchange: Exchange, named: str, directory: Directory) -> None:
    """Answer with a dataset.

    Raises:
        NotFound: there is no such dataset.
        InvalidRequest: the query says something else than from when, until when and in which form.
        PermissionDenied: the key may not read its account's books.
    """
    if named not in _DATASETS:
        raise NotFound(f"there is no dataset {named[:40]!r}: choose of {', '.join(_DATASETS)}", code="unknown_dataset")
    asked = _query(exchange.scope.get("query_string", b"").decode("latin-1"))
    form = asked.get("format", "csv")
    if form not in _FORMS:
        raise InvalidRequest(f"format {form[:40]!r}: choose of {', '.join(_FORMS)}", code="invalid_format")
    pieces = directory.focus(
        presented(exchange.headers).decode("latin-1").strip(),
        dataset=_DATASETS[named],
        form=form,
        from_us=_moment(asked.get("since", "")) or 0,
        until_us=_moment(asked.get("until", "")),
    )
    exchange.watch()
    try:
        async for piece in pieces:
            if not exchange.begun:
                await exchange.begin(200, [(b"content-type", _FORMS[form])])
            await exchange.more(piece)
    except FabricError:
        if not exchange.begun:
            raise
        if ABORT in exchange.scope:
            exchange.scope[ABORT]()
        raise ClientGone from None
    if not exchange.begun:
        await exchange.begin(200, [(b"content-type", _FORMS[form])])
    await exchange.more(b"", last=True)


def _query(text: str) -> dict[str, str]:
    try:
        found = parse_qs(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=len(_ASKED))
    except ValueError:
        raise InvalidRequest(f"the query may say {', '.join(_ASKED)}, each once", code="invalid_query") from None
    if unknown := set(found) - set(_ASKED):
        name = min(unknown)[:40]
        raise InvalidRequest(f"the query may say {', '.join(_ASKED)}, not {name!r}", code="invalid_query")
    return {name: values[-1] for name, values in found.items()}


def _moment(text: str) -> int | None:
    """A date or time of ISO 8601, UTC where it doesn't say; None = none."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()) * 1_000_000
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{text[:40]!r} is no date or time, such as 2026-11-01", code="invalid_moment") from None
