"""A function takes along the modules of its project, whatever the project looks like."""

import pytest

APP = {
    "app/__init__.py": "",
    "app/util.py": """
        from .names import Color
        def helper(x): return x + 1
        def warm(color): return color is Color.RED
    """,
    "app/names.py": """
        import dataclasses, enum
        class Color(enum.Enum):
            RED = 1
            BLUE = 2
        @dataclasses.dataclass
        class Point:
            x: int
            color: Color = Color.RED
        class Bad(Exception):
            def __init__(self, code, *, at):
                super().__init__(f"code {code} at {at}")
                self.code, self.at = code, at
    """,
    "app/jobs.py": """
        from app import util
        from app.names import Bad, Color, Point
        def move(point):
            assert type(point) is Point and util.warm(point.color), type(point).__module__
            return Point(util.helper(point.x), Color.BLUE)
        def fail(): raise Bad(7, at="sea")
    """,
}
CALL = "from tests.functions.afar import call\n"


def test_a_function_of_a_package_takes_the_package_along(project):
    main = (
        CALL + "from app.jobs import move\nfrom app.names import *\nprint(call(move, Point(1)) == Point(2, Color.BLUE))"
    )
    assert project(APP | {"main.py": main}) == "True\n"


def test_a_function_of_main_takes_along_what_it_imports_at_the_top(project):
    main = CALL + "from app.util import helper\ndef job(x): return helper(x)\nprint(call(job, 41))"
    assert project(APP | {"main.py": main}) == "42\n"


@pytest.mark.parametrize(
    "line",
    [
        "from app.util import helper",
        "import app.util; helper = app.util.helper",
        "import importlib; helper = importlib.import_module('app.util').helper",
        "from app import util as u; helper = u.helper",
        "inner = lambda: __import__('helpers').helper; helper = inner()",
        "import helpers as h; helper = h.helper",
    ],
)
def test_what_is_imported_inside_a_function_goes_along(project, line):
    main = CALL + f"def job(x):\n    {line}\n    return helper(x)\nprint(call(job, 41))"
    files = APP | {"helpers.py": "from app.util import helper", "main.py": main}
    assert project(files) == "42\n"


def test_a_sibling_of_the_script_goes_along_with_its_own_siblings(project):
    files = {
        "one.py": "import two\ndef up(x): return two.up(x)",
        "two.py": "def up(x):\n    from three import STEP\n    return x + STEP",
        "three.py": "STEP = 1",
        "main.py": CALL + "from one import up\nprint(call(lambda: up(41)), call(up, 1))",
    }
    assert project(files) == "42 2\n"


@pytest.mark.parametrize("how", ["main.py", "-m app.start", "-", "-c"])
def test_classes_are_the_same_on_both_sides(project, how):
    """As arguments, results and errors; also for a function that is pickled by value."""
    start = CALL + (
        "from app.jobs import fail, move\n"
        "from app.names import Bad, Color, Point\n"
        "from fabric.errors import JobFailed\n"
        "def job(point, color): return isinstance(point, Point), color is Color.RED, move(point)\n"
        "def run():\n"
        "    print(call(job, Point(1), Color.RED) == (True, True, Point(2, Color.BLUE)))\n"
        "    assert call(job, Point(1), Color.RED)[2].color is Color.BLUE\n"
        "    try: call(fail)\n"
        "    except JobFailed as failure: print(type(failure.__cause__) is Bad, failure.__cause__, failure.__cause__.at)\n"
        "run()\n"
    )
    files = APP | {"main.py": start, "app/start.py": start}
    command = {"main.py": ["main.py"], "-m app.start": ["-m", "app.start"], "-": ["-"], "-c": ["-c", start]}[how]
    assert project(files, *command, stdin=start if how == "-" else None) == "True\nTrue code 7 at sea sea\n"


def test_a_function_of_main_run_as_a_module_imports_relatively(project):
    start = CALL + "def job(x):\n    from .util import helper\n    return helper(x)\nprint(call(job, 41))"
    assert project(APP | {"app/start.py": start}, "-m", "app.start") == "42\n"


def test_a_source_layout_goes_along_whichever_way_it_is_on_the_path(project):
    files = {f"src/{name}": text for name, text in APP.items()}
    files["scripts/main.py"] = (
        CALL + "from app.jobs import move\nfrom app.names import *\nprint(call(move, Point(1)).x)"
    )
    assert project(files, "scripts/main.py", path=["src"]) == "2\n"


def test_a_namespace_package_gives_what_is_named_and_no_more(project):
    files = {
        "corp/tools/text.py": "from corp.tools import words\ndef up(x): return x.upper() + words.END",
        "corp/tools/words.py": "END = '!'",
        "corp/secret_plans/all.py": "PLANS = 1",
        "corp/data/big.py": "X = 1",
        "main.py": CALL
        + "import os\nfrom corp.tools.text import up\n"
        + "print(call(lambda: (up('a'), os.listdir('corp'), sorted(set(os.listdir('corp/tools')) - {'__pycache__'}))))",
    }
    assert project(files) == "('A!', ['tools'], ['text.py', 'words.py'])\n"


def test_portions_of_a_namespace_in_two_places_are_both_there(project):
    files = {
        "a/corp/one.py": "def one(): return 1",
        "b/corp/two.py": "from corp.one import one\ndef two(): return one() + 1",
        "main.py": CALL + "from corp.two import two\nprint(call(two))",
    }
    assert project(files, path=["a", "b"]) == "2\n"


def test_data_in_a_package_is_found_by_resources_and_by_file(project):
    files = {
        "app/__init__.py": "",
        "app/data/words.txt": "汉字",
        "app/data/model.bin": bytes(range(256)),
        "app/read.py": """
            from importlib import resources
            from pathlib import Path
            def read():
                text = resources.files("app").joinpath("data/words.txt").read_text()
                return text, len((Path(__file__).parent / "data" / "model.bin").read_bytes())
        """,
        "main.py": CALL + "from app.read import read\nprint(call(read))",
    }
    assert project(files) == "('汉字', 256)\n"


def test_data_that_a_module_names_beside_itself_goes_along(project):
    files = {
        "readers.py": """
            from pathlib import Path
            HERE = Path(__file__).parent
            def read(): return (HERE / "table.csv").read_text() + (HERE / "more" / "x.txt").read_text()
        """,
        "table.csv": "1,2",
        "more/x.txt": ";3",
        "other.csv": "no",
        "main.py": CALL
        + "import os\nfrom readers import read\nprint(call(lambda: (read(), os.path.exists('other.csv'))))",
    }
    assert project(files) == "('1,2;3', False)\n"


def test_secrets_hidden_files_and_what_is_ignored_never_go(project):
    secrets = [".env", "app/.env", "app/.netrc", "app/server.key", "app/tls.pem", "app/id_rsa", "app/credentials.json"]
    files = APP | dict.fromkeys([*secrets, "app/.git/config", "app/cache/x.bin", "app/ok.txt"], "x")
    files |= dict.fromkeys(["app/one.bin", "app/two.bin"], "x")
    files[".fabricignore"] = "app/cache\n"
    files["app/.fabricignore"] = "*.bin\n!two.bin\n!.env\n!server.key\n"
    files["main.py"] = CALL + (
        "import os\nfrom app.util import helper\n"
        "def job():\n"
        "    helper(1)\n"
        "    return sorted(n for w, _, names in os.walk('.') for n in names if not n.endswith(('.py', '.pyc')))\n"
        "print(call(job))"
    )
    assert project(files) == "['ok.txt', 'two.bin']\n"


def test_a_working_directory_is_laid_out_for_functions_and_imported_from(project):
    files = APP | {
        "data/table.csv": "1,2",
        "plugins.py": "def plugin(): return 'found by a name made at run time'",
        "main.py": CALL
        + "import importlib\nfrom app.util import helper\n"
        + "def job():\n"
        + "    return open('data/table.csv').read(), importlib.import_module('plug' + 'ins').plugin(), helper(1)\n"
        + "print(call(job, working_dir='.'))",
    }
    assert project(files) == "('1,2', 'found by a name made at run time', 2)\n"


def test_a_source_layout_in_a_working_directory_keeps_its_place(project):
    files = {f"src/{name}": text for name, text in APP.items()} | {
        "data/x.txt": "there",
        "src/app/where.py": """
            from pathlib import Path
            def read(): return (Path(__file__).parents[2] / "data" / "x.txt").read_text()
        """,
        "main.py": CALL + "from app.where import read\nprint(call(read, working_dir='.'))",
    }
    assert project(files, path=["src"]) == "there\n"


def test_what_lies_outside_the_working_directory_goes_along_too(project):
    files = {
        "lib/outer.py": "def outer(): return 'outer'",
        "work/data.txt": "inner",
        "main.py": CALL
        + "from outer import outer\nprint(call(lambda: (outer(), open('data.txt').read()), working_dir='work'))",
    }
    assert project(files, path=["lib"]) == "('outer', 'inner')\n"


def test_a_project_that_is_too_large_is_refused_with_its_biggest_files(project):
    main = CALL + (
        "import fabric.sdk.functions as f\nf.FILES_BYTES_MAX = 1 << 20\nfrom fabric.errors import InvalidRequest\n"
        "from app.util import helper\n"
        "try: call(helper, 1)\nexcept InvalidRequest as error: print(error.code, error.message)"
    )
    said = project(APP | {"app/model.bin": b"x" * (1 << 21), "main.py": main})
    assert said.startswith("modules_too_large the modules that the function needs have 2 MiB")
    assert "1 MiB may go along" in said
    assert "app/model.bin (2.0 MiB)" in said
    assert ".fabricignore" in said


@pytest.mark.parametrize("name", ["training", "secrets", "click"])
def test_a_module_whose_name_is_taken_there_is_refused(project, name):
    files = {
        f"{name}.py": "def job(): return 1",
        "main.py": CALL
        + "from fabric.errors import InvalidRequest\n"
        + f"import sys; sys.modules.pop('{name}', None)\nimport {name}\n"
        + f"try: call({name}.job)\nexcept InvalidRequest as error: print(error.code, error.message)",
    }
    assert project(files).startswith(f"module_name_taken your module '{name}' has the name of")


def test_two_jobs_of_one_process_each_see_their_own_modules(tmp_path, monkeypatch):
    """A process that serves an account again must not remember the first project's modules."""
    import sys

    from fabric.worker.working_folder import forget_modules, import_from

    path = list(sys.path)
    for word in ("first", "second"):
        folder = tmp_path / word
        (folder / "mine_alone").mkdir(parents=True)
        (folder / "mine_alone" / "word.py").write_text(f"WORD = {word!r}")
        monkeypatch.setenv("PYTHONPATH", "")
        import_from(folder, (".",))
        from mine_alone.word import WORD

        assert word == WORD
        sys.path[:] = path
        forget_modules(folder)
    assert not any(name.startswith("mine_alone") for name in sys.modules)


def test_a_module_that_imports_much_when_it_is_asked_is_not_asked(tmp_path, monkeypatch):
    """As libraries with lazy imports do, of which one may be missing."""
    import sys
    from types import ModuleType

    from fabric.imports import stated_by
    from fabric.sdk.project import Standing, standing_of
    from fabric.worker.working_folder import forget_modules

    class Lazy(ModuleType):
        def __getattribute__(self, name):
            raise ModuleNotFoundError(f"no module named {name}")

    monkeypatch.setitem(sys.modules, "lazy_one", Lazy("lazy_one"))
    monkeypatch.setitem(sys.path_importer_cache, str(tmp_path / "x"), None)
    forget_modules(tmp_path)
    assert "lazy_one" in sys.modules
    assert standing_of("lazy_one") is Standing.VALUE
    assert stated_by(sys.modules["lazy_one"], "__name__") == "lazy_one"
    assert stated_by(object(), "__file__") is stated_by(None, "__file__") is None


def test_a_global_that_was_changed_since_the_import_is_warned_of(project):
    files = {
        "settings.py": "RATE = 1\nMODE = 'a'\ndef help(): return 1\ndef rate(): return RATE, MODE, help()",
        "main.py": CALL + "import settings\nsettings.RATE = 5\nsettings.help = lambda: 2\nprint(call(settings.rate))",
    }
    ran = project(files, check=False)
    assert ran.stdout == "(1, 'a', 1)\n"
    assert "settings.RATE was changed since its module was imported" in ran.stderr
    assert "settings.help was changed" in ran.stderr
    assert "MODE" not in ran.stderr


def test_a_class_of_the_program_is_its_own_in_a_later_run_too(project):
    """A result that is read by the same program, started again."""
    main = """
        import enum, dataclasses, pathlib, sys
        from fabric.storage.archive import DirectoryArchive
        from fabric.storage.results import read_result
        from fabric.results import read_parcel
        from tests.functions.afar import submitted
        class Color(enum.Enum):
            RED = 1
        @dataclasses.dataclass
        class Point:
            x: int
            color: Color = Color.RED
            def twice(self): return 2 * self.x
            class Inner: pass
        def job(): return [Point(1), Point.Inner(), Color.RED, Point]
        if len(sys.argv) == 1:
            done = submitted(job)
            print(done["archive"], done["end"]["result_ref"])
        else:
            point, inner, color, kind = read_parcel(read_result(DirectoryArchive(pathlib.Path(sys.argv[1])), sys.argv[2])).unpickled()
            print(type(point) is Point, point == Point(1), type(inner) is Point.Inner, color is Color.RED, kind is Point)
            print(point.color is Color.RED, point.twice(), len(Color))
    """
    kept = project({"main.py": main}).split()
    assert project({}, "main.py", *kept) == "True True True True True\nTrue 2 1\n"


def test_a_result_whose_module_is_not_here_says_which_and_what_to_do(project):
    read = """
        import pathlib, sys
        from fabric.storage.archive import DirectoryArchive
        from fabric.storage.results import read_result
        from fabric.errors import InvalidRequest
        from fabric.results import read_parcel
        try: read_parcel(read_result(DirectoryArchive(pathlib.Path(sys.argv[1])), sys.argv[2])).unpickled()
        except InvalidRequest as error: print(error.code, error.message)
    """
    main = "from app.names import Point\nfrom app.jobs import move\nfrom tests.functions.afar import submitted\n"
    main += "done = submitted(move, Point(1))\nprint(done['archive'], done['end']['result_ref'])"
    kept = project(APP | {"main.py": main, "elsewhere/read.py": read}).split()
    told = project({}, "read.py", *kept, cwd="elsewhere")
    assert told.startswith("result_needs_package the result is of app.names.Point, and the module 'app' is not here")
    assert "Point(x=2, color=<Color.BLUE: 2>)" in told
