"""Whoever submits: a test, a spawned process, an editable installation, a linked folder, a loop over many jobs."""

import subprocess
import sys

import pytest

from fabric.sdk.project import IN_USE
from tests.functions.test_projects import APP, CALL


def test_the_names_that_a_jobs_process_has_taken_are_known():
    """A module of the caller's own by such a name would be another one there, without a word."""
    look = "import sys, fabric.worker.runner; print(*{name.partition('.')[0] for name in sys.modules})"
    there = set(subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.split())
    assert {name for name in there - IN_USE - sys.stdlib_module_names if not name.startswith("_")} <= {"google"}


def test_a_test_of_pytest_submits_what_it_defines_and_imports(project):
    text = """
        import dataclasses
        from app.names import Color, Point
        from app.util import helper
        from tests.functions.afar import call
        @dataclasses.dataclass
        class Own:
            x: int
        def job(own, color):
            assert color is Color.RED
            return Own(helper(own.x)), Point(1)
        def test_it():
            own, point = call(job, Own(1), Color.RED)
            assert type(own) is Own and own.x == 2 and point == Point(1)
    """
    for mode in ("importlib", "prepend"):
        command = ["-m", "pytest", "-q", f"--import-mode={mode}", "-p", "no:cacheprovider", "checks/test_mine.py"]
        assert "1 passed" in project(APP | {"checks/test_mine.py": text, "pytest.ini": "[pytest]\n"}, *command)


def test_a_process_that_was_spawned_submits_what_main_defines(project):
    main = (
        CALL
        + """
import multiprocessing
from app.names import Color
class Own: pass
def job(): return Own(), Color.RED
def work():
    own, color = call(job)
    print(type(own) is Own, color is Color.RED, flush=True)
if __name__ == "__main__":
    for how in ("spawn", "fork"):
        process = multiprocessing.get_context(how).Process(target=work)
        process.start(); process.join()
"""
    )
    assert project(APP | {"main.py": main}) == "True True\nTrue True\n"


def test_an_editable_installation_goes_along_however_it_is_found(project):
    """By a finder of its own, as setuptools installs one, from a folder that is not on the path."""
    main = """
import importlib.util, sys
class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "app":
            return importlib.util.spec_from_file_location(
                name, "elsewhere/app/__init__.py", submodule_search_locations=["elsewhere/app"])
sys.meta_path.append(Finder)
"""
    main = main.replace('"elsewhere', 'sys.path[0] + "/elsewhere') + CALL
    main += "from app.jobs import move\nfrom app.names import *\nprint(call(move, Point(1)).x)"
    assert project({f"elsewhere/{name}": text for name, text in APP.items()} | {"main.py": main}) == "2\n"


def test_a_link_to_a_package_goes_along_as_what_it_points_to(project):
    project(APP | {"main.py": "", "data/real.txt": "real"})
    (project.folder / "linked").mkdir()
    (project.folder / "app").rename(project.folder / "elsewhere")
    (project.folder / "app").symlink_to("elsewhere")
    (project.folder / "elsewhere" / "data").symlink_to("../data")
    (project.folder / "elsewhere" / "again").symlink_to(".")
    main = CALL + "from importlib import resources\nfrom app.util import helper\n"
    main += "print(call(lambda: (helper(1), resources.files('app').joinpath('data/real.txt').read_text())))"
    assert project({"main.py": main}) == "(2, 'real')\n"


def test_many_jobs_of_one_project_are_packed_once_until_a_file_changes(project):
    main = """
import pathlib, time, zipfile
from app.util import helper
from fabric.sdk.functions import pack_call
first, second = (pack_call(helper, (n,), {}) for n in range(2))
print(first.files is second.files, first.pickled == second.pickled)
pathlib.Path("app/names.py").write_text("class Color: pass")
print(pack_call(helper, (1,), {}).files == first.files)
"""
    assert project(APP | {"main.py": main}) == "True False\nFalse\n"


def test_an_import_far_down_a_long_function_is_seen(project):
    """Its bytecode has longer arguments."""
    lines = "\n".join(f"    x{n} = 'text {n}'; y{n} = x{n}.upper" for n in range(400))
    main = CALL + f"def job(x):\n{lines}\n    from app.util import helper\n    return helper(x)\nprint(call(job, 41))"
    assert project(APP | {"main.py": main}) == "42\n"


REFUSED = """
from fabric.errors import InvalidRequest
from app.util import helper
import fabric.sdk.functions as functions
{0}
try: functions.pack_call(helper, (1,), {{}})
except InvalidRequest as error: print(error.code, error.message)
"""


def test_too_many_files_and_files_that_cannot_be_read_are_refused(project):
    files = APP | {f"app/data/{n}.txt": "" for n in range(30)}
    told = project(files | {"main.py": REFUSED.format("functions.FILES_MAX = 20")})
    assert told.startswith(
        "modules_too_large the function needs 34 files of its modules' folders, 20 are the most; 30 are in"
    )
    vanished = "import os; from pathlib import Path\nfunctions._warn_of_changes = lambda _: os.unlink('app/data/3.txt')"
    told = project({"main.py": REFUSED.format(vanished)})
    assert told.startswith("file_unusable a file that goes along with the function can't be read")
    assert "3.txt" in told


@pytest.mark.parametrize("marked", [True, False])
def test_the_ignore_file_of_a_project_holds_for_packages_below_it(project, marked):
    files = {f"src/{name}": text for name, text in APP.items()}
    files |= {
        "src/app/big.bin": "x",
        "src/app/more.bin": "x",
        "pyproject.toml": "",
        ".fabricignore": "src/app/big.bin\n",
    }
    files["main.py"] = CALL + "import os\nfrom app.util import helper\nimport app\n"
    files["main.py"] += (
        "def job():\n    helper(1)\n    return sorted(n for n in os.listdir(app.__path__[0]) if n[:8] != '__pycach')\n"
    )
    files["main.py"] += "print(call(job), call(job, working_dir='.'))"
    if not marked:  # then it is the working directory's
        files.pop("pyproject.toml")
        files["main.py"] = files["main.py"].replace("call(job), ", "call(job, working_dir='.'), ")
    there = "['__init__.py', 'jobs.py', 'more.bin', 'names.py', 'util.py']"
    assert project(files, path=["src"]) == f"{there} {there}\n"


def test_what_lies_beside_the_script_is_found_by_file_in_the_working_directory(project):
    main = (
        CALL
        + """
from pathlib import Path
def job():
    here = Path(__file__).parent
    return (here / "data" / "x.txt").read_text(), here.name, type(__file__).__name__, __file__
print(call(job, working_dir="..")[:3], type(__file__) is str)
away = call(job, working_dir="..")[3]
print(away != __file__, away.endswith("scripts/main.py"))
"""
    )
    assert project({"scripts/main.py": main, "scripts/data/x.txt": "x"}, "main.py", cwd="scripts") == (
        "('x', 'scripts', 'str') True\nTrue True\n"
    )
