"""What a loop's body hands on to its next round in plain variables: a batch drawn ahead, a count, the best loss so far.

A resumed loop begins with what the script made before it, which is another round's. So the variables that a round reads
before it writes them, and writes, are kept with the boundary and put back. Which they are is read from the loop's code. What
it changes in place is `training.state.loop_objects`' to see.
Knows frames and code, and nothing of training; a loop that it can't read (`next(...)` by hand) has none.
"""

import ctypes
import dis
import sys
import threading
from collections.abc import Iterable
from types import CodeType, FrameType, FunctionType
from typing import Any, Final

from training.progress import say
from training.state.loop_objects import KEPT, LoopObjects
from training.state.loop_roots import names_in
from training.state.plain import holds_parts, is_plain, like, placed, plain, restored

OVER: Final = "\0over"
"""No name of a variable: the loop was left by the script, and has no further round."""
_BYTES_MAX: Final = 256 * 1024 * 1024
_READS: Final = frozenset({"LOAD_FAST", "LOAD_NAME", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_CLOSURE"})
_WRITES: Final = frozenset({"STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF"})
_JUMPS: Final = frozenset({"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"})
_ENDS: Final = frozenset({"RETURN_VALUE", "RAISE_VARARGS", "RERAISE"})
_SHOWN: Final = ("tqdm", "rich.progress")
"""Who loops over a run's steps for the script, to show how far it is."""


class LoopVariables:
    """The variables of the loop around a run, between two of its rounds."""

    def __init__(self, tracked: Iterable[int] = (), objects: Iterable[Any] = (), *, is_needed: bool = True) -> None:
        """`tracked`: where tensors lie that are kept anyway, and that a variable may only be another name of; `objects` that are.

        `is_needed`: whether anything is kept.
        """
        self._tracked = frozenset(tracked) - {0}  # where all that holds nothing lies
        self._objects, self._is_needed = LoopObjects(objects, self._tracked), is_needed
        self._code: CodeType | None = None
        self._thread = 0
        self._names: tuple[str, ...] = ()
        self._told: set[str] = set()
        self.is_over = False
        """Whether the script has left the loop by itself."""

    def begin(self, frame: FrameType | None, kept: dict[str, Any]) -> None:
        """The loop in `frame` asks for its first round: give it what `now` had found when it was interrupted."""
        frame = script_of(frame)
        if frame is None:
            return
        self._code, self._thread, self._names = frame.f_code, threading.get_ident(), carried(frame)
        known = frame.f_locals  # read once: each reading makes it anew
        if self._is_needed:
            read, written = used(frame.f_code, frame.f_lasti)
            self._objects.begin(frame, read, written, known, kept)
        for name in set(self._names) & kept.keys():
            scope = _scope(frame, name, known)
            scope[name] = like(restored(kept[name]), scope.get(name), kept[name])
        if kept and known is not frame.f_globals:
            ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))

    def now(self) -> dict[str, Any]:
        """What is handed on to the next round, as plain values."""
        over = {OVER: True} if self.is_over else {}
        if not self._names and not self._objects.is_any:
            return over
        frame = self._frame()
        kept: dict[str, Any] = {**over}
        if frame is None:
            return kept
        known = frame.f_locals
        for name in self._names:
            found = _scope(frame, name, known)
            if name in found:
                self._keep(name, found[name], kept)
        return kept | self._objects.now(known)

    @property
    def late(self) -> str | None:
        """What is too much to be kept with every boundary; `at_boundary` reads it."""
        return self._objects.late

    def at_boundary(self) -> dict[str, Any]:
        """What `now` leaves out as it is `late`; while the loop's thread is at a boundary."""
        frame = self._frame() if self._objects.late else None
        return {} if frame is None else self._objects.at_boundary(frame.f_locals)

    def _frame(self) -> FrameType | None:
        """The loop's, below whatever its thread is doing."""
        frame = sys._current_frames().get(self._thread)  # noqa: SLF001  # there is no other way to it
        while frame is not None and frame.f_code is not self._code:
            frame = frame.f_back
        return frame

    def say_left_out(self, name: str, value: Any) -> None:
        """Say, once, that a variable is in no checkpoint."""
        name = name.removeprefix(KEPT)
        if name not in self._told:
            self._told.add(name)
            say(
                f"{name} ({type(value).__qualname__}) is handed on from step to step and can't be kept: a resumed run begins "
                "with the one that the script makes before its loop. Track it by extra=, or make it in the body"
            )

    def _is_tracked(self, value: Any) -> bool:
        return _is_tensor(value) and is_plain(value) and value.data_ptr() in self._tracked

    def _keep(self, name: str, value: Any, kept: dict[str, Any]) -> None:
        try:
            if self._is_tracked(value):
                return
            if not holds_parts(value) and sum(_bytes_of(tensor) for tensor in _tensors(value)) <= _BYTES_MAX:
                kept[name] = plain(value, name, tensor=placed)
                return
        except Exception:  # noqa: BLE001, S110  # the script's own objects may raise anything, and end no run by it
            pass
        self.say_left_out(name, value)


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    return [value] if _is_tensor(value) else []


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _bytes_of(tensor: Any) -> int:
    """What a copy of it takes; of a sparse one, what its values do."""
    count = tensor.numel() if tensor.layout == sys.modules["torch"].strided else tensor._nnz()  # noqa: SLF001
    return int(count * tensor.element_size())


def script_of(frame: FrameType | None) -> FrameType | None:
    """The frame whose loop it is: that of a progress bar is passed over."""
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith(_SHOWN):
        frame = frame.f_back
    return frame


def has_left(frame: FrameType | None) -> bool:
    """Whether the loop in `frame` was left by `break` or `return`, and not by an error."""
    return frame is not None and any(
        at.offset == frame.f_lasti and at.opname == "POP_TOP" for at in dis.get_instructions(frame.f_code)
    )


def carried(frame: FrameType) -> tuple[str, ...]:
    """Names that a round of the loop at which `frame` stands reads before it writes them, and writes."""
    code = _Code(frame.f_code)
    head = code.at.get(frame.f_lasti)
    if head is None or code.instructions[head].opname != "FOR_ITER":
        return ()
    live, inside = code.live(), code.loop(head)
    written = {name for at in inside if (name := code.written(at)) is not None}
    read = live[head] | (_read_by_functions(frame) if frame.f_locals is frame.f_globals else set())
    return tuple(sorted(read & written))


def used(code: CodeType, at: int) -> tuple[set[str], set[str]]:
    """Names that a round of the loop around an instruction reads, and that it writes; of the whole code, if there is none."""
    known = _Code(code)
    inside = known.loop(known.at[at]) if at in known.at else set()
    nested = {name for part in code.co_consts if isinstance(part, CodeType) for name in names_in(part)}
    looked_at = [known.instructions[each] for each in inside] or known.instructions
    read = {str(found.argval) for found in looked_at if found.opname in _READS}
    return read | nested, {name for each in inside if (name := known.written(each)) is not None}


class _Code:
    """Which instruction may follow which, and what each reads and writes."""

    def __init__(self, code: CodeType) -> None:
        self.instructions = list(dis.get_instructions(code))
        self.at = {found.offset: at for at, found in enumerate(self.instructions)}
        self.following = [self._following(at) for at in range(len(self.instructions))]

    def _following(self, at: int) -> list[int]:
        found = self.instructions[at]
        jumps = [self.at[found.argval]] if found.opcode in dis.hasjrel or found.opcode in dis.hasjabs else []
        falls = found.opname not in _JUMPS and found.opname not in _ENDS and at + 1 < len(self.instructions)
        return [*([at + 1] if falls else []), *jumps]

    def written(self, at: int) -> str | None:
        found = self.instructions[at]
        return str(found.argval) if found.opname in _WRITES else None

    def live(self) -> list[set[str]]:
        """For each instruction, the names whose value some way from it on may read before it is written."""
        live: list[set[str]] = [set() for _ in self.instructions]
        changed = True
        while changed:
            changed = False
            for at in reversed(range(len(self.instructions))):
                found = self.instructions[at]
                now = set().union(*(live[after] for after in self.following[at]))
                now.discard(self.written(at) or "")
                if found.opname in _READS:
                    now.add(str(found.argval))
                if now != live[at]:
                    live[at], changed = now, True
        return live

    def loop(self, head: int) -> set[int]:
        """The instructions of a round: reached from the head, and leading to it again."""
        reached, waiting = set[int](), self.following[head][:1]
        while waiting:
            at = waiting.pop()
            if at not in reached and at != head:
                reached.add(at)
                waiting += self.following[at]
        before: dict[int, list[int]] = {}
        for at in reached:
            for after in self.following[at]:
                before.setdefault(after, []).append(at)
        inside, waiting = set[int](), list(before.get(head, ()))
        while waiting:
            at = waiting.pop()
            if at not in inside:
                inside.add(at)
                waiting += before.get(at, ())
        return inside


def _read_by_functions(frame: FrameType) -> set[str]:
    """What functions of the script read of its own variables."""
    own = [value for value in list(frame.f_globals.values()) if isinstance(value, FunctionType)]
    return {name for made in own if made.__globals__ is frame.f_globals for name in made.__code__.co_names}


def _scope(frame: FrameType, name: str, known: dict[str, Any]) -> dict[str, Any]:
    """Where the variable is: among those of the frame, which are `known`, or the module's."""
    code = frame.f_code
    is_local = name in {*code.co_varnames, *code.co_cellvars, *code.co_freevars} or known is frame.f_globals
    return known if is_local else frame.f_globals


def caller() -> FrameType | None:
    """The frame that resumed the generator which calls this."""
    return sys._getframe(2)  # noqa: SLF001  # there is no other way to it
