"""Which of one's own files a command reaches: those that it names, and what its programs import of what lies beside them.

Found by reading, without running anything: of `python`, of whatever starts it (`torchrun train.py`, `env A=1 python -m app`)
and of a shell's text, in which Python and shell scripts count alone, not data. What is named by a word that is made at run
time needs `working_dir=`.
"""

import os
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from fabric.imports import imported_beside, imported_by, module_in

MAIN: Final = "__main__.py"
_INTERPRETERS: Final = frozenset(("bash", "sh", "dash", "zsh", "node", "perl", "ruby", "Rscript", "julia", "php"))
"""Of which the first word that is no option, and is a file, is the script."""
_SHELLS: Final = frozenset(("bash", "sh", "dash", "zsh"))
_SHELLS_CODE: Final = re.compile(r"-\w*c")
_TAKE_A_VALUE: Final = "WX"
"""Python's options of one letter with a value, beside those that end the options: -c and -m."""
_MODULE: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_SCRIPT_IN_SHELL: Final = re.compile(r"[\w./-]+\.(?:py|sh)\b")
_MODULE_IN_SHELL: Final = re.compile(r"(?<!\S)-\w*m\s*(" + _MODULE.pattern + ")")
_SHELL_BYTES_MAX: Final = 1 << 20


def script_of(command: Sequence[str]) -> str | None:
    """The script that a command runs, if it plainly runs one; of Python it may be a folder with a `__main__.py`."""
    if command and _is_python(command[0]):
        return _python(command).script
    if command and Path(command[0]).name in _INTERPRETERS:
        first = next((word for word in command[1:] if not word.startswith("-")), None)
        flags = command[1 : command.index(first)] if first is not None else ()
        return None if {"-c", "-e", "-m"} & set(flags) or first is None or not is_file(first) else first
    return command[0] if command and command[0].endswith((".py", ".sh")) else None


def main_of(program: str) -> str | None:
    """What `python program` runs of a folder: its `__main__.py`; None if it is none that can be run."""
    main = os.path.join(program, MAIN)  # noqa: PTH118  # as below
    return main if is_file(main) else None


def reached(command: Sequence[str]) -> dict[str, Path]:
    """The files below this folder that a command reaches, by their names there."""
    reach = _Reach()
    reach.command(command)
    return reach.found


def is_file(word: str | Path) -> bool:
    """Whether there is such a file. A word may be any text, such as that of `python -c`, which is longer than a name may be."""
    return os.path.isfile(word)  # noqa: PTH113  # Path.is_file raises OSError for what can't be a file's name


class _Reach:
    def __init__(self) -> None:
        self.found: dict[str, Path] = {}

    def command(self, words: Sequence[str]) -> None:
        for at, word in enumerate(words):
            name, _, value = word.partition("=")
            self._file(word)
            self._file(value)
            if name == "--module":
                self._module(value)
            if _is_python(word):
                started = _python(words[at:])
                self._module(started.module)
                self._file((main_of(started.script) or "") if started.script else "")
                self._take(imported_by(started.code, Path()))
        for before, word in pairwise(words):
            if before in {"-m", "--module"}:
                self._module(word)
            if _SHELLS_CODE.fullmatch(before) and Path(words[0]).name in _SHELLS:
                self._shell(word)

    def _file(self, word: str) -> None:
        path = Path(word)
        if path.is_absolute() or ".." in path.parts or path.as_posix() in self.found or not is_file(word):
            return
        self._take([path])
        if path.suffix == ".py":
            self._take(imported_beside(path))
        elif path.suffix == ".sh":
            self._shell(_text_of(path))

    def _shell(self, text: str) -> None:
        """Scripts and modules alone: what else a shell reads may be large, or secret."""
        for word in _SCRIPT_IN_SHELL.findall(text):
            self._file(word)
        for name in _MODULE_IN_SHELL.findall(text):
            self._module(name)

    def _module(self, name: str) -> None:
        """Those of `python -m NAME`, if it is one of this folder's own."""
        if _MODULE.fullmatch(name):
            self._take(module_in(name, Path()))

    def _take(self, files: Iterable[Path]) -> None:
        self.found |= {file.as_posix(): file for file in files}


class _Started(NamedTuple):
    """What `python` is asked to run: one of these, or nothing."""

    script: str | None = None
    module: str = ""
    code: str = ""


def _python(command: Sequence[str]) -> _Started:
    """Its options read as it does."""
    words = iter(command[1:])
    for word in words:
        if word == "--check-hash-based-pycs":
            next(words, None)
        elif word == "--":
            return _Started(next(words, None))
        elif word == "-":
            return _Started()
        elif not word.startswith("-"):
            return _Started(word)
        elif not word.startswith("--"):
            at = next((at for at, letter in enumerate(word) if letter in "cm" + _TAKE_A_VALUE), None)
            if at is None:
                continue
            value = word[at + 1 :] or next(words, "")
            if word[at] == "m":
                return _Started(module=value)
            if word[at] == "c":
                return _Started(code=value)
    return _Started()


def _is_python(word: str) -> bool:
    return Path(word).name.startswith("python")


def _text_of(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(_SHELL_BYTES_MAX).decode(errors="replace")
