"""The bytes of a result: a head that says what it is, as anybody may read it, and the value or a pickle of it behind.

parcel = read_parcel(pack_value({"loss": 0.25}))
parcel.is_data, parcel.value()                  # True, {"loss": 0.25}
"""

import builtins
import reprlib
import sys
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from fabric.errors import InvalidRequest
from fabric.results.plain import DEPTH_MAX, Damaged, NotPlain, Reader, Writer

MAGIC: Final = b"FABRIC-RESULT-1\n"
HEAD_BYTES_MAX: Final = 16 * 2**20
"""Of what lies in no buffer: it may become some fifty times as large in memory."""
TEXT_CHARS_MAX: Final = 2_000
TYPE_CHARS_MAX: Final = 200
NOTES_MAX: Final = 16
_LENGTH_BYTES: Final = 4
_ARRAYS_DEEP_MAX: Final = DEPTH_MAX + 2
_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_PYTHON_CHARS: Final = 16
_BY_VALUE: Final = b"cloudpickle.cloudpickle"
_NO_LIMIT: Final = 2**63
_GROUP: Final[Any] = getattr(builtins, "BaseExceptionGroup", ())
"""None before Python 3.11."""
_BRIEF: Final = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 4, 500, TEXT_CHARS_MAX


class ResultUnreadable(InvalidRequest):
    """These bytes are no result of ours, or need a package that isn't installed here."""

    code = "result_unreadable"


_NOTHING: Final = msgspec.Raw(msgspec.msgpack.encode(None))


class _Head(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    form: str
    """data | pickle | error"""
    kind: str = ""
    """The type's name: of a pickle and of an error."""
    text: str = ""
    """What the value's repr says of it, or the error's own text."""
    tree: msgspec.Raw = _NOTHING
    """The value; of an error what it was made with, or nothing."""
    notes: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    """Of the buffers. A pickle is the last of them."""
    pickled: bool = False
    python: str = ""
    """The Python whose code is in the pickle, "3.11"; "" = none's."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Head).decode
_decode_tree = msgspec.msgpack.Decoder().decode
_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_ARRAYS: Final = frozenset({*range(0x90, 0xA0), 0xDC, 0xDD})
_MAPS: Final = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})
"""How msgpack begins them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A result, unopened."""

    is_data: bool
    """Whether its value, or the error itself, is read without running anything."""
    is_error: bool
    type_name: str
    """As its maker says; "" = not said."""
    text: str
    """What it looks like, as its maker says: bounded, and anything may be in it."""
    size: int
    _tree: Any
    _notes: tuple[str, ...]
    _buffers: tuple[memoryview, ...]
    _pickle: memoryview | None
    python: str = ""
    """Of a pickle: the minor version of Python whose code it holds, which alone can run it; "" = any can."""

    def value(self) -> Any:
        """The value, or the exception. Runs nothing: `is_data` must hold.

        Raises:
            ResultUnreadable: it is damaged, or has arrays or tensors and there is no numpy or torch here.
        """
        assert self.is_data, "a pickle is opened with `unpickled`"
        try:
            found = Reader(self._buffers).value(self._tree)
            return _rebuilt(self.type_name, found, self._notes) if self.is_error else found
        except ImportError as error:
            raise ResultUnreadable(
                f"the result has values that need {error.name}, which is not installed here: install it, or write the result"
                " to a file with --output",
                code="result_needs_package",
                package=error.name,
            ) from None
        except Damaged as error:
            raise ResultUnreadable(f"the result is damaged: {error}"[:TEXT_CHARS_MAX]) from None

    @property
    def pickle(self) -> memoryview | None:
        """What only `unpickled` opens, where there is anything."""
        return self._pickle

    def unpickled(self) -> Any:
        """The value, by running what the job's side chose: for whoever trusts the job as they trust themselves.

        Raises:
            ResultUnreadable: it needs a module that isn't here, or raises where it is opened.
        """
        from fabric.results import unpickling  # noqa: PLC0415  # only where somebody decided to

        assert self._pickle is not None, "there is no pickle in it"
        if self.python not in ("", _PYTHON):
            raise ResultUnreadable(
                f"the result, of {self.type_name or 'a class'}, holds code of Python {self.python}, and this is Python {_PYTHON}: read it"
                f" with {self.python}, or have its class in a module of its own. It is {self.text or 'not shown'}",
                code="result_other_python",
                python=self.python,
            )
        try:
            return unpickling.unpickled(self._pickle)
        except ModuleNotFoundError as error:
            raise ResultUnreadable(
                f"the result is of {self.type_name or 'a class'}, and the module {error.name!r} is not here: read it where the"
                f" module can be imported (PYTHONPATH), or write it to a file with --output. It is {self.text or 'not shown'}",
                code="result_needs_package",
                package=error.name,
            ) from None
        except Exception as error:
            raise ResultUnreadable(
                f"the result, of {self.type_name or 'a class'}, can't be opened here ({type(error).__name__}: {error}). It is"
                f" {self.text or 'not shown'}"
            ) from error


def pack_value(value: Any) -> bytes:
    """What a job returned, as data where it is made of plain values, else as a pickle that says what it is.

    Raises:
        Exception: it is neither, as cloudpickle says.
    """
    writer = Writer()
    try:
        head = _encode(_Head(form="data", tree=_packed(writer.tree(value)), sizes=_sizes(writer.buffers)))
        if len(head) <= HEAD_BYTES_MAX:
            return _joined(head, writer.buffers)
    except (NotPlain, RecursionError):
        pass
    pickled = _pickled(value)
    head = _encode(
        _Head(
            form="pickle",
            kind=type_name(type(value)),
            text=shown(value),
            sizes=(len(pickled),),
            pickled=True,
            python=_python_of(pickled),
        )
    )
    return _joined(head, [pickled])


def pack_error(error: BaseException) -> bytes:
    """What a job raised: its type and text always; what it takes to make it anew where it is a built-in one; where it isn't,
    or has causes, a pickle.
    """
    writer = Writer()
    tree: Any = None
    pickled = b""
    if _builtin(type_name(type(error))) is type(error):
        try:
            made_of = error.__reduce__()[1] if isinstance(error, OSError) else error.args
            tree = writer.tree(made_of)
        except (NotPlain, RecursionError):
            writer = Writer()
    if tree is None or error.__cause__ is not None or error.__context__ is not None:
        pickled = _pickled_error(error)
    buffers = [*writer.buffers, *([pickled] if pickled else [])]
    notes = tuple(_fit(str(note), TEXT_CHARS_MAX) for note in getattr(error, "__notes__", ())[:NOTES_MAX])
    head = _Head(
        form="error",
        kind=type_name(type(error)),
        text=_text_of(error),
        tree=_packed(tree),
        notes=notes,
        sizes=_sizes(buffers),
        pickled=bool(pickled),
        python=_python_of(pickled),
    )
    return _joined(_encode(head), buffers)


def read_parcel(data: bytes | memoryview) -> Parcel:
    """What somebody packed. Opens nothing. What was kept before there were parcels is a pickle of something.

    Raises:
        ResultUnreadable: it is damaged.
    """
    whole = memoryview(data)
    if bytes(whole[: len(MAGIC)]) != MAGIC:
        return Parcel(
            is_data=False, is_error=False, type_name="", text="", size=len(whole), _tree=None, _notes=(), _buffers=(),
            _pickle=whole,
        )  # fmt: skip
    start = len(MAGIC) + _LENGTH_BYTES
    length = int.from_bytes(whole[len(MAGIC) : start], "little")
    if length > HEAD_BYTES_MAX:
        raise ResultUnreadable(f"the result is damaged: its head has {length} bytes, {HEAD_BYTES_MAX} are the most")
    try:
        head = _decode(whole[start : start + length])
        tree = _tree_of(head.tree)
        buffers = tuple(_cut(whole[start + length :], head.sizes))
    except (msgspec.MsgspecError, Damaged, RecursionError, ValueError) as error:
        raise ResultUnreadable(f"the result is damaged: {error}"[:TEXT_CHARS_MAX]) from None
    if head.pickled and not buffers:
        raise ResultUnreadable("the result is damaged: it has no pickle although it says so")
    return Parcel(
        is_data=head.form == "data" or (head.form == "error" and tree is not None),
        is_error=head.form == "error",
        type_name=head.kind[:TYPE_CHARS_MAX],
        text=head.text[:TEXT_CHARS_MAX],
        size=len(whole),
        _tree=tree,
        _notes=head.notes[:NOTES_MAX],
        _buffers=buffers,
        _pickle=buffers[-1] if head.pickled else None,
        python=head.python[:_PYTHON_CHARS],
    )


def _tree_of(packed: msgspec.Raw) -> Any:
    """A tree of leaves and arrays. A map is refused before it is made: its keys may be such as to take time with their square."""
    waiting = [([packed], 0)]
    while waiting:
        parts, depth = waiting.pop()
        for part in parts:
            begin = memoryview(part)[0]
            if begin in _MAPS or depth > _ARRAYS_DEEP_MAX:
                raise Damaged("a map without its tag, or too deep")
            if begin in _ARRAYS:
                waiting.append((_split(part), depth + 1))
    return _decode_tree(packed)


def _packed(tree: Any) -> msgspec.Raw:
    return msgspec.Raw(_encode(tree))


def _python_of(pickled: bytes) -> str:
    """Whose code is in it, if there is any: what cloudpickle sends by value."""
    return _PYTHON if _BY_VALUE in pickled else ""


def type_name(kind: type) -> str:
    return _fit(f"{kind.__module__}.{kind.__qualname__}", TYPE_CHARS_MAX)


def shown(value: Any, *, most: int | None = TEXT_CHARS_MAX) -> str:
    """A repr of so many characters at most, which looks into containers no further than that. Made where the value is:
    whoever may not open it sees this.
    """
    try:
        return _fit(repr(value), _NO_LIMIT) if most is None else _fit(_BRIEF.repr(value), most)
    except Exception as error:  # noqa: BLE001  # a tenant's own repr may raise anything
        return f"<its repr raised {_fit(type(error).__name__, TYPE_CHARS_MAX)}>"


def _text_of(error: BaseException) -> str:
    try:
        return _fit(str(error), TEXT_CHARS_MAX)
    except Exception:  # noqa: BLE001  # so may an exception's own text
        return ""


def _fit(text: str, chars: int) -> str:
    whole = text if len(text) <= chars else text[: chars - 1] + "…"
    return whole.encode("utf-8", "backslashreplace").decode()


def _pickled(value: Any) -> bytes:
    from fabric.results import exceptions  # noqa: PLC0415  # readers of data need no cloudpickle

    return exceptions.pickled(value)


def _pickled_error(error: BaseException) -> bytes:
    from fabric.results import exceptions  # noqa: PLC0415  # as above

    return exceptions.pickled_error(error)


def _sizes(buffers: list[Any]) -> tuple[int, ...]:
    return tuple(map(len, buffers))


def _joined(head: bytes, buffers: list[Any]) -> bytes:
    return b"".join((MAGIC, len(head).to_bytes(_LENGTH_BYTES, "little"), head, *buffers))


def _cut(rest: memoryview, sizes: tuple[int, ...]) -> list[memoryview]:
    if any(size < 0 for size in sizes) or sum(sizes) != len(rest):
        raise Damaged("its parts are longer or shorter than it says")
    cut, start = [], 0
    for size in sizes:
        cut.append(rest[start : start + size])
        start += size
    return cut


def _builtin(name: str) -> type[BaseException] | None:
    """The built-in exception of that name; no group, which holds others."""
    module, _, own = name.rpartition(".")
    found = getattr(builtins, own, None) if module == "builtins" else None
    if isinstance(found, type) and issubclass(found, BaseException) and not issubclass(found, _GROUP):
        return found
    return None


def _rebuilt(name: str, made_of: Any, notes: tuple[str, ...]) -> BaseException:
    kind = _builtin(name)
    if kind is None or type(made_of) is not tuple:
        raise Damaged(f"{name!r:.80} is no exception that is made from plain values")
    try:
        error = kind(*made_of)
    except (TypeError, ValueError, OverflowError) as failure:
        raise Damaged(f"{name} can't be made of that: {failure}") from None
    if notes:
        setattr(error, "__notes__", list(notes))  # noqa: B010  # as add_note does, which Python 3.10 has not
    return error
