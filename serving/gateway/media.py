"""Images, sounds, films and files of a request: they come in it or not at all, and no more of them than may.

An engine that fetches what a tenant names would reach whatever the operator's machines reach. The whole body is walked,
wherever a surface takes media: in messages, in what a tool gave, in lists of conversations. What a schema describes or a
model wrote as a tool's arguments is data, and says nothing about what is fetched.
"""

import re
from typing import Any, Final

from fabric.errors import InvalidRequest
from serving.gateway.bodies import Body
from serving.limits import MEDIA_MAX

_ADDRESSES: Final = (
    "image_url", "audio_url", "video_url", "file_url", "image", "video", "audio", "file", "source", "input_image",
    "input_audio", "input_video", "input_file", "input_image_mask", "file_data",
)  # fmt: skip
_NAMES: Final = frozenset(_ADDRESSES)
_EXACT: Final = frozenset({"url", "uri", "image_url", "audio_url", "video_url", "file_url"})
"""Of these a text that isn't `data:` is an address, whatever it begins with."""
_PARTS: Final = frozenset({*_ADDRESSES, "document", "image_embeds", "audio_embeds", "video_embeds"})
_DATA: Final = frozenset(
    {"parameters", "input_schema", "schema", "json_schema", "structured_outputs", "arguments", "metadata", "documents"}
)
_WRITTEN: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_SCHEME: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:|\s*//", re.ASCII)


def check(body: Body) -> None:
    """Let pass a body whose media are all in it.

    Raises:
        InvalidRequest: one is to be fetched (`remote_media`) or found by a name (`media_uuid`), or there are too many.
    """
    count = 0
    for field, whole in body.items():
        if field in _DATA or not isinstance(whole, dict | list):
            continue
        layer: list[Any] = [whole]
        while layer:
            part = layer.pop()
            if isinstance(part, dict):
                if not (_NAMES.isdisjoint(part) and part.get("type") is None):
                    count += _is_medium(part, field)
                for name, inner in part.items():
                    if isinstance(inner, dict | list) and _is_walked(name, part):
                        layer.append(inner)
            else:
                layer += [inner for inner in part if isinstance(inner, dict | list)]
    if count > MEDIA_MAX:
        raise InvalidRequest(
            f"the request has {count} images, sounds, films or files, at most {MEDIA_MAX} may come: send fewer",
            code="limit_exceeded", number=count, limit=MEDIA_MAX,
        )  # fmt: skip


def _is_walked(name: str, part: Body) -> bool:
    if name != "input":
        return name not in _DATA
    kind = part.get("type")
    return not (isinstance(kind, str) and kind in _WRITTEN)


def _is_medium(part: Body, field: str) -> bool:
    """Whether a part of a body is an image or the like; nested ones, such as `{"image_url": {"url": ...}}`, count once."""
    named = _NAMES.intersection(part)
    if any(_is_remote(part[name], exact=name in _EXACT) for name in named):
        raise InvalidRequest(
            "files are not fetched from addresses here: send them in the request, as `data:...;base64,...`",
            code="remote_media", param=field,
        )  # fmt: skip
    kind = part.get("type")
    is_medium = (isinstance(kind, str) and kind in _PARTS) or any(isinstance(part[name], dict) for name in named)
    if is_medium and part.get("uuid") is not None:
        raise InvalidRequest(
            "media are not found again by a `uuid` here: send them in each request", code="media_uuid", param=field
        )
    return is_medium


def _is_remote(value: Any, *, exact: bool) -> bool:
    if isinstance(value, dict):
        return any(_is_remote(inner, exact=name in _EXACT) for name, inner in value.items())
    if isinstance(value, list):
        return any(_is_remote(inner, exact=exact) for inner in value)
    if not isinstance(value, str) or value.lstrip()[:5].lower() == "data:":
        return False
    return exact or _SCHEME.match(value) is not None
