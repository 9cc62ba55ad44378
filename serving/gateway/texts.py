"""What is embedded, scored and ranked: texts. What else an engine would take there, images that it fetches among them, isn't."""

from typing import Any, Final, NamedTuple

from fabric.errors import InvalidRequest
from serving.gateway.bodies import Body
from serving.gateway.routes import Route


class Form(NamedTuple):
    """One way to say what is compared: the fields, each with a text or a list of texts."""

    first: str
    second: str


_SCORED: Final = (
    Form("text_1", "text_2"), Form("queries", "documents"), Form("queries", "items"), Form("data_1", "data_2"),
)  # fmt: skip
_ENCODINGS: Final = (None, "float", "base64")


def check(body: Body, route: Route) -> None:
    """Let pass texts.

    Raises:
        InvalidRequest: `not_text`, or `invalid_encoding` where the answer would be no JSON.
    """
    match route.surface:
        case "rerank":
            if not (isinstance(body.get("query"), str) and _are_texts(body.get("documents"))):
                raise _not_text(
                    "`query` must be a text, and `documents` a list of texts: send the text of each", "documents"
                )
        case "score":
            form = form_of(body)
            if form is None or not all(_are_texts(body[name]) for name in form):
                raise _not_text(
                    "`text_1` and `text_2` must be texts, or lists of texts (or `queries` and `documents`): send the text of"
                    " each",
                    "text_1",
                )
        case "embed":
            if any(body.get(name) is not None for name in ("images", "inputs")) or not _are_texts(body.get("texts")):
                raise _not_text("`texts` must be a list of texts, and images are not embedded here", "texts")
        case "embeddings" if body.get("encoding_format") not in _ENCODINGS:
            raise InvalidRequest(
                "`encoding_format` is float or base64", code="invalid_encoding", param="encoding_format"
            )
        case _:
            return


def form_of(body: Body) -> Form | None:
    """Which way a request for scores says what is compared; None where it says it in none, or in parts of several: an engine
    might read others than were looked at.
    """
    said = {name for form in _SCORED for name in form if body.get(name) is not None}
    return next((form for form in _SCORED if said == set(form)), None)


def count_of(body: Body, route: Route) -> int:
    """How many texts an engine reads, at most."""
    if route.surface == "score":
        return max(1, sum(_count(body[name]) for name in form_of(body) or ()))
    return _count(body.get("texts"))


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else 1


def _are_texts(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(isinstance(each, str) for each in listed)


def _not_text(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, code="not_text", param=param)
