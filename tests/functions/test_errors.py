"""What a customer sees of an error: their own frames, all its causes, and the exception itself."""

import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import NotFound
from fabric.log_text import last_lines
from fabric.results import pack_error, pack_value, read_parcel
from fabric.worker.error_text import error_text, shortened

LIB = {
    "app/__init__.py": "",
    "app/deep.py": """
        SECRET = "s3cr3t-value"
        def divide(password):
            return 1 / 0
        def outer(password):
            try:
                divide(password)
            except ZeroDivisionError as error:
                error.add_note("a note of the customer's")
                raise KeyError("not there") from error
        def group():
            errors = []
            for word in ("one", "two"):
                try: int(word)
                except ValueError as error: errors.append(error)
            raise ExceptionGroup("several", errors)
        async def later(password):
            return outer(password)
    """,
}
TELL = """from tests.functions.afar import submitted
from app import deep
job = submitted(deep.{0}, *{1})
print(job["end"]["error"])
print("LOG")
print(job["log"])
"""


@pytest.mark.parametrize("name", ["outer", "later"])
def test_the_customers_frames_and_the_whole_chain_are_told(project, name):
    told = project(LIB | {"main.py": TELL.format(name, ("s3cr3t-value",))})
    record, log = told.split("LOG\n")
    for text in (record, log):
        lines = text.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert "app/deep.py" in lines[1], "the first frame is the customer's own"
        assert "ZeroDivisionError: division by zero" in text
        assert "a note of the customer's" in text
        assert "direct cause" in text
        assert text.rstrip().endswith("KeyError: 'not there'")
        assert "return 1 / 0" in text
        assert "fabric/" not in text, "no frame of ours"
        assert "asyncio" not in text
        assert "s3cr3t" not in text, "no variable's value"


@pytest.mark.parametrize("call", ["open, 'nothing/there'", "functools.partial(int, 'no'),", "[].index, 7"])
def test_what_is_called_and_has_no_frames_of_its_own_is_told_without_ours(project, call):
    main = f"import functools\nfrom tests.functions.afar import submitted\njob = submitted({call})\n"
    told = project({"main.py": main + "print(job['end']['error'])\nprint(job['log'])"})
    assert "Error: " in told
    assert "fabric/" not in told
    assert "Traceback" not in told


def test_each_exception_of_a_group_is_told(project):
    record = project(LIB | {"main.py": TELL.format("group", ())}).split("LOG\n")[0]
    assert "ExceptionGroup: several (2 sub-exceptions)" in record
    assert "invalid literal for int() with base 10: 'one'" in record
    assert "invalid literal for int() with base 10: 'two'" in record


def test_what_a_module_raises_when_it_is_imported_is_told_with_its_line(project):
    files = {
        "broken.py": "import os\nif 'AFAR_CALLER' not in os.environ: raise RuntimeError('no model here')\ndef job(): pass",
        "main.py": "import os\nos.environ['AFAR_CALLER'] = '1'\nfrom broken import job\n"
        "from tests.functions.afar import submitted\nprint(submitted(job)['end']['error'])",
    }
    told = project(files)
    assert told.startswith("unpicklable: the function can't be unpickled here.")
    assert "Traceback" in told.splitlines()[1]
    assert "broken.py" in told
    assert "RuntimeError: no model here" in told
    assert "fabric/" not in told


def test_a_package_that_nodes_do_not_have_is_named_with_the_remedy(project, tmp_path):
    files = {"lib/only_here/__init__.py": "def f(): pass", "main.py": (
        "import sys, types\nmodule = types.ModuleType('only_here'); module.__file__ = sys.prefix + '/lib/python3.11/site-packages/x.py'\n"
        "exec('def f(): pass', vars(module)); sys.modules['only_here'] = module\n"
        "from tests.functions.afar import submitted\nprint(submitted(module.f)['end']['error'])"
    )}  # fmt: skip
    told = project(files)
    assert told.startswith("module_not_found: the function needs the module 'only_here', which is not on the node")
    assert "runtime_env={'pip': ['only_here']}" in told
    assert "working_dir=" in told


class TwoParts(Exception):
    def __init__(self, code, *, at):
        super().__init__(f"code {code}")
        self.code, self.at = code, at


class Prefixed(ValueError):
    def __init__(self, text):
        super().__init__("prefix: " + text)


class WithSlots(Exception):
    __slots__ = ("place",)

    def __init__(self, place):
        super().__init__()
        self.place = place


class Errno(OSError):
    def __init__(self, where):
        super().__init__(28, "No space left", where)
        self.where = where


class Reduced(Exception):
    def __init__(self, one, two):
        super().__init__(one)
        self.two = two

    def __reduce__(self):
        return Reduced, (self.args[0], self.two)


class WronglyReduced(TwoParts):
    def __reduce__(self):
        return WronglyReduced, self.args


class HasLock(Exception):
    def __init__(self, text):
        super().__init__(text, Path(__file__).open())  # noqa: SIM115
        self.text, self.file = text, self.args[1]
        self.file.close()


class NoText(Exception):
    def __str__(self):
        raise RuntimeError("it has no text")


def raised_by_a_job(error):
    raise error


RAISED = [
    (TwoParts(3, at="x"), lambda e: (e.code, e.at, str(e)) == (3, "x", "code 3")),
    (Prefixed("a"), lambda e: str(e) == "prefix: a"),
    (WithSlots("here"), lambda e: e.place == "here"),
    (Errno("f"), lambda e: (e.errno, e.filename, e.where, str(e)) == (28, "f", "f", "[Errno 28] No space left: 'f'")),
    (Reduced(1, 2), lambda e: e.two == 2),
    (WronglyReduced(3, at="x"), lambda e: (e.code, e.at) == (3, "x")),
    (HasLock("a"), lambda e: e.text == "a" and "TextIOWrapper" in e.file and "TextIOWrapper" in e.args[1]),
    (NoText(1), lambda e: e.args == (1,)),
    (NotFound("no such", code="x", at=1), lambda e: (e.code, e.facts) == ("x", {"at": 1})),
    (ExceptionGroup("g", [TwoParts(1, at=2), KeyError(1)]), lambda e: e.exceptions[0].at == 2),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), lambda e: e.object == b"\xff"),
    (ImportError("no", name="n", path="p"), lambda e: (e.name, e.path) == ("n", "p")),
    (SystemExit(3), lambda e: e.code == 3),
]


@pytest.mark.parametrize(("error", "same"), RAISED, ids=lambda value: type(value).__name__)
def test_any_exception_is_remade_with_its_causes(error, same):
    """However it is made: the original error is never hidden behind one of making it."""
    for wrapped in (error, [error]):
        found = read_parcel(pack_value(wrapped)).unpickled()
        found = found[0] if isinstance(found, list) else found
        assert type(found) is type(error)
        assert same(found)
    try:
        try:
            raised_by_a_job(error)
        except BaseException as cause:
            cause.add_note("noted")
            raise TwoParts(9, at="top") from cause
    except TwoParts as raised:
        found = read_parcel(pack_error(raised)).unpickled()
    assert (type(found), found.at) == (TwoParts, "top")
    assert same(found.__cause__)
    assert found.__cause__.__notes__ == ["noted"]
    assert found.__suppress_context__


def test_a_built_in_error_comes_with_its_causes_and_is_data_for_others():
    try:
        try:
            raised_by_a_job(TwoParts(1, at=2))
        except TwoParts:
            {}["missing"]
    except KeyError as raised:
        parcel = read_parcel(pack_error(raised))
    assert isinstance(parcel.value(), KeyError)
    assert parcel.unpickled().__context__.at == 2


def test_a_circle_of_causes_is_told_and_kept():
    one, two = KeyError(1), ValueError(2)
    one.__context__, two.__context__ = two, one
    assert "ValueError: 2" in error_text(one)
    found = read_parcel(pack_error(one)).unpickled()
    assert found.__context__.__context__ is found


def test_a_chain_beyond_all_depth_is_told():
    error = ValueError("first")
    for number in range(3_000):
        nearer = ValueError(number)
        nearer.__cause__ = error
        error = nearer
    assert read_parcel(pack_error(error)).value().args == (2999,)
    assert error_text(error).endswith("ValueError: 2999")


def test_our_own_errors_inside_are_told_by_the_customers_line():
    def job():
        raise NotFound("there is no such artifact", code="no_artifact")

    try:
        job()
    except NotFound as error:
        lines = error_text(error).splitlines()
    assert lines[-1].endswith("there is no such artifact")
    assert any("in job" in line for line in lines)


@given(st.text(max_size=400), st.integers(80, 200))
def test_a_shortened_error_keeps_its_first_and_last_words(middle, chars):
    text = f"Traceback\n{middle}\nValueError: the end"
    told = shortened(text, chars)
    assert told.startswith("Traceback")
    assert told.endswith("ValueError: the end")
    assert len(told) <= max(chars + 80, len(text) if len(text) <= chars else 0)


def test_a_recursion_without_end_is_told_in_few_lines():
    def down(n):
        return down(n + 1)

    try:
        down(0)
    except RecursionError as error:
        told = error_text(error)
    assert "Previous line repeated" in told
    assert len(told.splitlines()) < 40
    assert traceback.format_exc().strip() == "NoneType: None"


SCRIPT = """
import sys
print("早い", "x" * 100)
def deep(n): return 1 / n
def middle():
    try: deep(0)
    except ZeroDivisionError as error: raise KeyError("second") from error
def outer():
    try: middle()
    except KeyError: raise {0}
outer()
"""


@pytest.mark.parametrize(
    "raised", ["RuntimeError('third')", "ExceptionGroup('third', [ValueError(n) for n in range(5)])"]
)
def test_of_a_scripts_error_all_causes_are_among_its_last_lines(tmp_path, raised):
    (tmp_path / "x.py").write_text("import logging\nlogging.error('before')\n" + SCRIPT.format(raised))
    ran = subprocess.run([sys.executable, tmp_path / "x.py"], capture_output=True, check=False)
    told = last_lines(b"said\n" * 9 + ran.stdout + b"ERROR before\n" + ran.stderr, 12)
    assert told.startswith("Traceback (most recent call last):\n")
    for words in ("in deep", "ZeroDivisionError: division by zero", "KeyError: 'second'", "third"):
        assert words in told


def test_a_traceback_long_before_the_end_is_not_taken_for_the_error():
    text = "Traceback (most recent call last):\n  old\nKeyError: 1\n" + "went on\n" * 100 + "Killed\n"
    assert last_lines(text.encode(), 3) == "went on\nwent on\nKilled"


ARGUMENT = """
from tests.functions.afar import call
from app import bad
class Mine(Exception):
    def __init__(self, *, why):
        super().__init__()
        self.why = why
def told(errors, first):
    return [(type(each).__name__, str(each), vars(each)) for each in (*errors["all"], first)], type(first) is bad.Bad
made = [bad.Bad("disk", code=7), Mine(why="so"), OSError(2, "no", "x"), bad.Slotted(5, 6), bad.Reduced(3)]
assert call(told, {"all": made}, made[0]) == (told({"all": made}, made[0])[0], True)
found = call(lambda error: (error.a, error.b), made[3])
assert found == (5, 6), found
print("as they were")
"""


def test_an_exception_as_an_argument_arrives_however_it_is_made(project):
    bad = """
        class Bad(Exception):
            def __init__(self, what, *, code):
                super().__init__(f"bad {what}")
                self.what, self.code = what, code
        class Slotted(ValueError):
            __slots__ = ("a", "b")
            def __init__(self, a, b):
                super().__init__()
                self.a, self.b = a, b
        class Reduced(Exception):
            def __init__(self, n):
                super().__init__("n", n, "more")
                self.n = n
            def __reduce__(self):
                return Reduced, (self.n,)
    """
    assert project({"app/__init__.py": "", "app/bad.py": bad, "main.py": ARGUMENT}) == "as they were\n"


def test_what_an_exception_has_and_can_not_be_sent_is_named(project):
    main = """
    import threading
    from fabric.errors import InvalidRequest
    from tests.functions.afar import call
    error = ValueError("x")
    error.lock = threading.Lock()
    try:
        call(repr, error)
    except InvalidRequest as refused:
        print(refused.code, "argument 0" in str(refused))
    """
    assert project({"main.py": main}) == "unpicklable True\n"
