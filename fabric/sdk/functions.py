"""From a function with its arguments to bytes that run elsewhere, and the files of its own modules that go with them.

Says no before anything is sent, and by name: to what can't leave its process, to what is too large, and to what would run
differently there without a word.
"""

import inspect
import io
import os
import sys
import threading
import types
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import cloudpickle

from fabric.errors import InvalidRequest
from fabric.results.exceptions import reduced
from fabric.sdk.project import Project, Standing, standing_of
from fabric.sdk.source import changed_globals, plain_code
from fabric.sdk.unpicklable import Unsendable, culprit_of, heaviest, refuse_unmakeable, refuse_unsendable, remedy_for

CALL_BYTES_MAX: Final = 512 * 1024 * 1024
"""Of a function with its arguments."""
FILES_BYTES_MAX: Final = 256 * 1024 * 1024
"""Of the modules that go with it, and of a working directory with them."""
FILES_MAX: Final = 20_000
_OTHER_ROOTS: Final = ".modules"
_BIGGEST: Final = 5
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_Cached: Final[Any] = type(lru_cache(abs))
_pickling: Final = threading.RLock()
"""What travels by value is registered with cloudpickle for the whole process."""


_BY_VALUE: Final = b"cloudpickle.cloudpickle"
"""What is in a pickle that holds code, which is good for one minor version of Python alone."""


class PackedCall(NamedTuple):
    """A call as it is sent."""

    pickled: bytes
    files: bytes | None
    """A zip of the working directory and of the modules that go along; None = none do."""
    python_path: tuple[str, ...]
    """The folders of it from which its modules are imported."""

    @property
    def python(self) -> str:
        """The Python that alone can read it; "" = any can."""
        return f"{sys.version_info.major}.{sys.version_info.minor}" if _BY_VALUE in self.pickled else ""


def pack_call(
    function: Callable[..., object],
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    working_dir: str | os.PathLike[str] | None = None,
    sent: bytes | None = None,
) -> PackedCall:
    """The call as bytes, and its modules. `sent` is a zip of the working directory, if there is one.

    Raises:
        InvalidRequest: something in it can't be pickled (`unpicklable`, naming it), or is too large (`arguments_too_large`,
            `modules_too_large`); or the function yields (`generator`), or doesn't take these arguments (`wrong_arguments`); or
            a module is called like one of Python's.
    """
    _check_kind(function)
    _check_arguments(function, args, kwargs)
    given = Path(os.path.normpath(Path(working_dir).absolute())) if working_dir is not None else None
    project = Project(given)
    with _main_in(given):
        pickled = _pickled(function, args, kwargs, project)
    if not project.files:
        return PackedCall(pickled, sent, (".",) if sent is not None else ())
    project.check()
    _warn_of_changes(function)
    folders = _folders_of(project, given)
    try:
        files = _zip(project, folders, sent)
    except (OSError, UnicodeError) as error:
        raise InvalidRequest(
            f"a file that goes along with the function can't be read ({error}): mend it, or name it in a .fabricignore",
            code="file_unusable",
        ) from None
    return PackedCall(pickled, files, tuple(dict.fromkeys((".", *folders.values()))))


def pickle_call(function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> bytes:
    """The call as bytes, without the modules of its own that it names."""
    return _pickled(function, args, kwargs, Project())


class _There(str):
    """The path of a file of the working directory: what it is here, and there that of the file that was sent."""

    __slots__ = ("inner",)
    inner: str

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        return os.path.abspath, (self.inner,)


@contextmanager
def _main_in(working_dir: Path | None) -> Iterator[None]:
    """Let functions of `__main__` find by `__file__` what is sent with it."""
    known = vars(sys.modules["__main__"])
    file = known.get("__file__")
    path = Path(file).absolute() if isinstance(file, str) and working_dir is not None else None
    if path is None or working_dir is None or not path.is_relative_to(working_dir):
        yield
        return
    known["__file__"] = there = _There(file)
    there.inner = path.relative_to(working_dir).as_posix()
    try:
        yield
    finally:
        known["__file__"] = file


def _check_kind(function: Callable[..., object]) -> None:
    """Refuse what gives its values one at a time: there is nobody there to take them."""
    inner: Any = function
    while isinstance(inner, partial):
        inner = inner.func
    called = inner if isinstance(inner, type) or inspect.isroutine(inner) else type(inner).__call__
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        name = getattr(inner, "__qualname__", type(inner).__qualname__)
        raise InvalidRequest(
            f"{name} is a generator, which hands out its values one at a time: submit a function that returns them, such as"
            f" `lambda: list({getattr(inner, '__name__', name)}(...))`, or one that writes them to storage as they come",
            code="generator",
        )


def _check_arguments(function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """Refuse what Python would refuse there, after the devices were waited for. What isn't plainly a function isn't looked at."""
    inner: Any = function
    while isinstance(inner, partial):
        inner = inner.func
    written = inner.__func__ if isinstance(inner, types.MethodType) else inner
    if not isinstance(written, types.FunctionType) or hasattr(written, "__signature__"):
        return
    if written is function and not kwargs and _takes(written, len(args)):
        return
    try:
        inspect.signature(function, follow_wrapped=False).bind(*args, **kwargs)
    except (TypeError, ValueError) as error:  # of a partial that has too many already, the latter
        raise InvalidRequest(
            f"{written.__qualname__} can't be called with these arguments: {error}; they follow it, as in"
            " submit(f, 1, 2, kwargs={'lr': 0.1}, tokens=...)",
            code="wrong_arguments",
        ) from None


def _takes(function: types.FunctionType, count: int) -> bool:
    """Whether it plainly takes so many arguments by position, which is mostly so and needs no signature made."""
    code, optional = function.__code__, len(function.__defaults__ or ())
    return not code.co_kwonlyargcount and code.co_argcount - optional <= count <= code.co_argcount


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Notes on its way which modules of the caller's own are reached, and how."""

    def __init__(self, file: Any, project: Project) -> None:
        super().__init__(file)
        self._project = project
        self.registered: list[types.ModuleType] = []

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.FunctionType | type):
            self._note(obj, str(getattr(obj, "__module__", None) or ""))
            obj = _as_written(obj) if isinstance(obj, types.FunctionType) else obj
        elif isinstance(obj, types.ModuleType):
            self._note_module(obj.__name__)
        elif isinstance(obj, _Cached):
            return self._cached(obj)
        elif isinstance(obj, BaseException):
            return reduced(obj)
        else:
            refuse_unsendable(obj)
        return super().reducer_override(obj)

    def _note(self, obj: Any, module: str) -> None:
        standing = self._note_module(module, reach=_is_found_in(module, obj))
        if standing is not Standing.VALUE and _is_found_in(module, obj):
            return
        if isinstance(obj, type):
            refuse_unmakeable(obj)
        else:
            self._project.reach_from(obj.__code__, package=str(obj.__globals__.get("__package__") or ""))

    def _cached(self, obj: Any) -> Any:
        """A function with a cache, which pickles itself by its name: that is of no use where nothing has the name."""
        module = str(getattr(obj, "__module__", None) or "")
        if _is_found_in(module, obj) and self._note_module(module) is not Standing.VALUE:
            return NotImplemented
        return cached_anew, (obj.__wrapped__, obj.cache_parameters())

    def _note_module(self, name: str, *, reach: bool = True) -> Standing:
        standing = standing_of(name)
        if standing is Standing.VALUE and name not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(sys.modules[name])
            self.registered.append(sys.modules[name])
        elif standing is Standing.FILE and reach:
            self._project.reach(name)
        return standing


def cached_anew(function: Callable[..., object], parameters: Mapping[str, Any]) -> Any:
    """A function with an empty cache of the same kind."""
    return lru_cache(**parameters)(function)


def _as_written(function: types.FunctionType) -> types.FunctionType:
    """The function with the code that its file has; itself in general."""
    code = plain_code(function.__code__)
    if code is function.__code__:
        return function
    written = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    written.__kwdefaults__, written.__qualname__ = function.__kwdefaults__, function.__qualname__
    written.__module__, written.__doc__ = function.__module__, function.__doc__
    written.__annotations__ = function.__annotations__
    vars(written).update(vars(function))
    return written


class _TooLarge(Exception):
    """It goes beyond the limit."""


class _Bounded(io.BytesIO):
    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self.tell() + size > CALL_BYTES_MAX:
            raise _TooLarge
        return super().write(data)


def _pickled(
    function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object], project: Project
) -> bytes:
    try:
        return _dumps((function, tuple(args), dict(kwargs)), project)
    except _TooLarge:
        title, size = heaviest(function, args, kwargs)
        raise InvalidRequest(
            f"the function and its arguments may have {CALL_BYTES_MAX >> 20} MiB, and have more; {title} has"
            f" {size / 2**20:,.0f} MiB: write it to storage, and pass where it lies, or make it inside the function",
            code="arguments_too_large",
            limit_bytes=CALL_BYTES_MAX,
        ) from None
    except InvalidRequest:
        raise
    except Exception as error:  # noqa: BLE001  # pickling calls the objects' own code, which raises what it likes
        title, culprit = culprit_of(function, args, kwargs, goes=partial(_goes, project))
        said = str(error) if not isinstance(error, Unsendable) else error.why
        raise InvalidRequest(
            f"{title} can't be pickled ({said}): {remedy_for(culprit)}", code="unpicklable", object=title
        ) from None


def _goes(project: Project, value: object) -> bool:
    try:
        _dumps(value, project)
    except _TooLarge:
        return True
    except Exception:  # noqa: BLE001  # as above
        return False
    return True


def _dumps(value: object, project: Project) -> bytes:
    out = _Bounded()
    with _pickling:
        pickler = _Pickler(out, project)
        try:
            pickler.dump(value)
        finally:
            for module in pickler.registered:
                cloudpickle.unregister_pickle_by_value(module)
    return out.getvalue()


def _is_found_in(module: str, obj: Any) -> bool:
    """Whether it is what its module has under its name."""
    found: Any = sys.modules.get(module)
    for part in str(getattr(obj, "__qualname__", "")).split("."):
        found = getattr(found, part, None)
    return found is obj and module != "__main__"


def _warn_of_changes(function: Callable[..., object]) -> None:
    inner: Any = inspect.unwrap(function.func if isinstance(function, partial) else function)
    if isinstance(inner, types.FunctionType) and standing_of(inner.__module__) is Standing.FILE:
        for name in changed_globals(inner):
            warnings.warn(
                f"{inner.__module__}.{name} was changed since its module was imported: the job imports the module anew, and"
                " sees what its file says; pass what you changed as an argument",
                stacklevel=5,
            )


def _folders_of(project: Project, working_dir: Path | None) -> dict[Path, str]:
    """Where what is imported from each folder here lies there: as below the working directory, or in a folder of its own."""
    order = {os.path.realpath(place or "."): at for at, place in reversed(list(enumerate(sys.path)))}
    roots = sorted(
        set(project.files.values()), key=lambda root: (order.get(os.path.realpath(root), len(order)), str(root))
    )
    folders: dict[Path, str] = {}
    for root in roots:
        if working_dir is not None and root.is_relative_to(working_dir):
            folders[root] = root.relative_to(working_dir).as_posix()
        elif working_dir is None and not folders:
            folders[root] = "."
        else:
            folders[root] = f"{_OTHER_ROOTS}/{len(folders)}"
    return folders


class _Entry(NamedTuple):
    """A file as it goes along: another one where any of this differs."""

    name: str
    file: Path
    mode: int
    size: int
    changed_ns: int


def _zip(project: Project, folders: Mapping[Path, str], sent: bytes | None) -> bytes:
    """Same files, same bytes. What is in the working directory's zip already stays as it is there."""
    if len(project.files) > FILES_MAX:
        folder, count = Counter(file.parent for file in project.files).most_common(1)[0]
        raise InvalidRequest(
            f"the function needs {len(project.files):,} files of its modules' folders, {FILES_MAX:,} are the most; {count:,} are in"
            f" {folder}: name what the job doesn't need in a .fabricignore beside them",
            code="modules_too_large",
            limit=FILES_MAX,
        )
    entries = []
    for file, root in sorted(project.files.items()):
        about = file.stat()
        name = Path(folders[root], file.relative_to(root)).as_posix()
        entries.append(_Entry(name, file, about.st_mode & 0o777, about.st_size, about.st_mtime_ns))
    return _zipped(tuple(entries), sent)


@lru_cache(maxsize=1)
def _zipped(entries: tuple[_Entry, ...], sent: bytes | None) -> bytes:
    """One is remembered: many jobs of one project are submitted in a row."""
    out = io.BytesIO()
    out.write(sent or b"")
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        names = set(archive.namelist())
        new = [entry for entry in entries if entry.name not in names]
        total = sum(entry.size for entry in new) + sum(entry.file_size for entry in archive.infolist())
        if total > FILES_BYTES_MAX:
            raise _too_large({entry.file: entry.size for entry in new}, total)
        for entry in new:
            info = zipfile.ZipInfo(entry.name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = entry.mode << 16
            archive.writestr(info, entry.file.read_bytes())
    return out.getvalue()


def _too_large(sizes: Mapping[Path, int], total: int) -> InvalidRequest:
    biggest = sorted(sizes.items(), key=lambda pair: -pair[1])[:_BIGGEST]
    told = ", ".join(f"{file} ({size / 2**20:,.1f} MiB)" for file, size in biggest)
    return InvalidRequest(
        f"the modules that the function needs have {total / 2**20:,.0f} MiB with the files beside them, and"
        f" {FILES_BYTES_MAX >> 20} MiB may go along; the biggest are {told}: name what the job doesn't need in a .fabricignore"
        " beside them, or read large data from where it lies",
        code="modules_too_large",
        limit_bytes=FILES_BYTES_MAX,
    )
