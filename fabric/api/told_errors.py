"""How a call that fails is told: a typed error in the trailing metadata; of our own mistakes only a number."""

import traceback
import uuid
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
import structlog

from fabric.api.statuses import STATUS
from fabric.errors import FabricError, Internal
from fabric.wire import ERROR_METADATA, encode_error
from fabric.wire.service import Method

log = structlog.get_logger()

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_DETAILS_CHARS_MAX: Final = 400
_ERROR_BYTES_MAX: Final = 6_000


async def refuse(context: Context, method: Method, error: Exception) -> None:
    """End the call with that error."""
    known = error if isinstance(error, FabricError) else _unexpected(method, error)
    encoded = encode_error(known)
    if len(encoded) > _ERROR_BYTES_MAX:
        encoded = encode_error(type(known)(known.message[: _ERROR_BYTES_MAX // 4], code=known.code))
    await context.abort(
        STATUS.get(known.http_status, grpc.StatusCode.INTERNAL),
        f"{known.code}: {known.message}"[:_DETAILS_CHARS_MAX],
        trailing_metadata=((ERROR_METADATA, encoded),),
    )


def _unexpected(method: Method, error: Exception) -> Internal:
    """Our own mistake: told by a number, and logged under it. The traceback is text, so no log shows local variables."""
    number = uuid.uuid4().hex[:12]
    trace = "".join(traceback.format_exception(error))
    log.error("call_failed", error_id=number, call=method.name, traceback=trace)
    return Internal(f"something went wrong here, not with your request: tell the operator {number}", error_id=number)
