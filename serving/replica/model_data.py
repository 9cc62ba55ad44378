"""What a model that a job made may hold where it is served: data. Whoever serves it runs nothing that its maker wrote.

An engine would load a pickle with care, and code from the model's folder only where it is told to; here neither gets so far.
"""

import json
from pathlib import Path
from typing import Any, Final

from fabric.errors import InvalidRequest

_DATA: Final = frozenset({"", ".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".md", ".jsonl"})
"""What files of a model may be called: weights are safetensors."""
_CONFIG_BYTES_MAX: Final = 2**20
_CODE: Final = ("auto_map", "custom_pipelines")
"""Fields of a configuration that name classes in files beside it."""
_CONFIGURATIONS: Final = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def check_data(folder: Path) -> Path:
    """The folder itself, if there is nothing but data in it.

    Raises:
        InvalidRequest: `bad_model`.
    """
    inside = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise _bad(f"{path.name!r} leads out of it")
        if path.is_file() and path.suffix.lower() not in _DATA:
            raise _bad(f"{path.name!r} may be code or a pickle")
        if path.is_file() and path.name in _CONFIGURATIONS and (found := _code_in(path)):
            raise _bad(f"{path.name} names code of its own ({found})")
    return folder


def _code_in(path: Path) -> str:
    if path.stat().st_size > _CONFIG_BYTES_MAX:
        raise _bad(f"{path.name} has {path.stat().st_size:,} bytes, of at most {_CONFIG_BYTES_MAX:,}")
    try:
        said: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _bad(f"{path.name} is no JSON ({str(error)[:100]})") from None
    waiting = [said]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if found := next((name for name in _CODE if name in each), ""):
                return found
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    return ""


def _bad(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"a model that a job made is served as data only: {why}. Export it with training.export, or save weights as"
        " safetensors, with a configuration that needs no code of its own",
        code="bad_model",
    )
