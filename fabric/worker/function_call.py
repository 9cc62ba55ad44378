"""A job that is a function: its modules laid out, it and its arguments unpickled, called, and its value packed."""

import asyncio
import base64
import inspect
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import cloudpickle

from fabric.errors import FabricError, InvalidRequest
from fabric.results import pack_value
from fabric.storage.archive import Archive
from fabric.worker.error_text import error_text, shortened
from fabric.worker.payload import Payload
from fabric.worker.working_folder import import_from, unpacked


def call(payload: Payload, archive: Archive, *, folder: Path) -> Any:
    """What the function returns; of a coroutine, what it comes to. `folder` is where its files are laid out.

    Raises:
        InvalidRequest: it can't be unpickled here, as its message says why.
        BaseException: whatever the function raises.
    """
    if payload.working_dir_blob:
        import_from(unpacked(archive, payload.working_dir_blob, into=folder), payload.python_path or (".",))
    function, args, kwargs = _loaded(base64.b64decode(payload.inline) if payload.inline else archive.get(payload.blob))
    result = function(*args, **kwargs)
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


def packed(result: Any) -> bytes:
    """What a function returned, as bytes.

    Raises:
        InvalidRequest: `result_not_picklable`.
    """
    try:
        return pack_value(result)
    except Exception as error:
        kind = f"{type(result).__module__}.{type(result).__qualname__}".removeprefix("builtins.")
        raise InvalidRequest(
            f"the result, a {kind}, can't be pickled ({error}): return plain values, such as list(...) of a generator, or write"
            " it to storage and return where it lies",
            code="result_not_picklable",
        ) from error


def _loaded(pickled: bytes) -> Any:
    try:
        return cloudpickle.loads(pickled)
    except FabricError:
        raise
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        about = (
            f"the function needs the module {error.name!r}, which is not on the node: add it with"
            f" runtime_env={{'pip': [{top!r}]}}, or if it is your own send its folder with working_dir="
        )
        raise InvalidRequest(f"{about}\n{shortened(error_text(error))}", code="module_not_found") from error
    except Exception as error:
        about = (
            "the function can't be unpickled here. What __main__ defines travels by value: where that can't be, define it in a"
            f" module of your own, beside the script, which goes along as a file\n{shortened(error_text(error))}"
        )
        raise InvalidRequest(about, code="unpicklable") from error


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result
