"""What is told of an exception that ended a job: its chain of causes, each with the job's own frames, and no value of any
variable. How the job was called is left out, and so is what goes on inside the fabric's own code.
"""

import sys
import traceback
from pathlib import Path
from typing import Final

TOLD_CHARS_MAX: Final = 6_000
"""Of an error in its job's record. All of it is in the job's log."""
_HEAD_PART: Final = 3
_OURS: Final = Path(__file__).resolve().parents[1]
_CALL: Final = "function_call.py"
"""Where a job's function is called."""
_CALLERS: Final = frozenset({"runpy.py", "runners.py", "base_events.py", "cloudpickle.py"})
_DEPTH: Final = 100


def error_text(error: BaseException) -> str:
    """The whole traceback, as Python would print it for the job's own program."""
    told = traceback.TracebackException.from_exception(error, compact=True)
    _keep_own(told, _DEPTH)
    return "".join(told.format()).rstrip()


def shortened(text: str, chars: int = TOLD_CHARS_MAX) -> str:
    """The beginning of a text and more of its end, in whole lines where they aren't long."""
    if len(text) <= chars:
        return text
    head, tail = text[: chars // _HEAD_PART], text[-(chars - chars // _HEAD_PART) :]
    head, tail = head[: head.rfind("\n") + 1] or head, tail[tail.find("\n") + 1 :] or tail
    left_out = len(text) - len(head) - len(tail)
    return f"{head.rstrip()}\n  … {left_out} characters are left out: see `fabric logs` …\n{tail}"


def _keep_own(told: traceback.TracebackException, depth: int) -> None:
    if depth == 0:
        return
    kept = [frame for frame in told.stack or () if not _is_ours(frame)]
    if kept and len(kept) < len(told.stack):
        told.stack = traceback.StackSummary.from_list(kept)
    elif not kept and told.stack and Path(told.stack[-1].filename).name == _CALL:
        told.stack = None  # type: ignore[assignment]  # what was called is none of Python's: then it prints the error alone
    for cause in (told.__cause__, told.__context__, *(getattr(told, "exceptions", None) or ())):
        if cause is not None:
            _keep_own(cause, depth - 1)


def _is_ours(frame: traceback.FrameSummary) -> bool:
    file = Path(frame.filename)
    if file.is_relative_to(_OURS) or file.is_relative_to(_OURS.parent / "training"):
        return True
    is_python = file.is_relative_to(sys.base_prefix) or frame.filename.startswith("<frozen ")
    return (is_python or "site-packages" in file.parts) and file.name.removesuffix(">") in _CALLERS | {"<frozen runpy"}
