"""A request's body as it was before its client compressed it: no larger than a body may be, whatever it unpacks to."""

import zlib
from typing import Final

from fabric.errors import InvalidRequest
from serving.gateway.refusals import TooLarge, WrongType
from serving.limits import BODY_BYTES_MAX

KNOWN: Final = ("gzip", "br", "zstd", "deflate")
_STEP_BYTES: Final = 1 << 20
_WINDOW_BYTES: Final = 8 << 20
"""Of zstd: so much it asks for before the first byte."""
_GZIP: Final = 31
"""zlib's word for a gzip header and no other."""


def named(encoding: bytes) -> str:
    """The body's encoding; "" = it came as it is.

    Raises:
        WrongType: it isn't known here.
    """
    said = encoding.strip().lower().decode("latin-1").replace("x-gzip", "gzip")
    if said in {"", "identity"}:
        return ""
    if said not in KNOWN:
        raise WrongType(f"a body may come as it is or as {', '.join(KNOWN)}, once, not as {said[:60]!r}")
    return said


def unpacked(body: bytes, encoding: str) -> bytes:
    """The body itself.

    Raises:
        InvalidRequest: it isn't in this encoding, it is cut off, or more comes behind it (`invalid_encoding`).
        TooLarge: it is beyond `BODY_BYTES_MAX`.
    """
    match encoding:
        case "":
            return body
        case "gzip" | "deflate":
            return _inflated(body, encoding)
        case "br":
            return _of_brotli(body)
        case _:
            return _of_zstd(body)


def _inflated(body: bytes, encoding: str) -> bytes:
    inflating = zlib.decompressobj(_GZIP if encoding == "gzip" else zlib.MAX_WBITS)
    try:
        said = inflating.decompress(body, BODY_BYTES_MAX + 1)
    except zlib.error as error:
        raise _broken(encoding, str(error)) from None
    _check_size(len(said))
    if not inflating.eof:
        raise _broken(encoding, "it ends too soon")
    if inflating.unused_data:
        raise _broken(encoding, "more comes behind its end")
    return said


def _of_brotli(body: bytes) -> bytes:
    import brotli  # noqa: PLC0415 - only for whoever sends it

    reading, pieces, size = brotli.Decompressor(), [], 0
    try:
        piece = reading.process(body, output_buffer_limit=_STEP_BYTES)
        while piece:
            pieces.append(piece)
            size += len(piece)
            _check_size(size)
            piece = b"" if reading.is_finished() else reading.process(b"", output_buffer_limit=_STEP_BYTES)
    except brotli.error as error:
        raise _broken("br", str(error)) from None
    if not reading.is_finished():
        raise _broken("br", "it ends too soon")
    return b"".join(pieces)


def _of_zstd(body: bytes) -> bytes:
    import zstandard  # noqa: PLC0415 - only for whoever sends it

    reading = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()
    pieces, size = [], 0
    try:
        for at in range(0, len(body), _STEP_BYTES >> 10):  # a small piece becomes no more than some MiB
            piece = reading.decompress(body[at : at + (_STEP_BYTES >> 10)])
            size += len(piece)
            _check_size(size)
            pieces.append(piece)
            if reading.eof:
                if reading.unused_data or at + (_STEP_BYTES >> 10) < len(body):
                    raise _broken("zstd", "more comes behind its end")
                return b"".join(pieces)
    except zstandard.ZstdError as error:
        raise _broken("zstd", str(error)) from None
    raise _broken("zstd", "it ends too soon")


def _check_size(size: int) -> None:
    if size > BODY_BYTES_MAX:
        raise TooLarge(
            f"the body has more than {BODY_BYTES_MAX} bytes once it is unpacked, which is all that may come: shorten the"
            " prompt",
            limit=BODY_BYTES_MAX,
        )


def _broken(encoding: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the body is not what `content-encoding: {encoding}` says: {why[:200]}", code="invalid_encoding"
    )
