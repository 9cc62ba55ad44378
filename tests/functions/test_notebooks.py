"""Functions of a notebook, whose `__main__` is IPython's: in a real kernel, as Jupyter, nbclient and papermill run them."""

import json
import sys

import pytest

pytest.importorskip("ipykernel")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

CELLS = [
    "from tests.functions.afar import call, submitted\nimport helper\nfrom app.names import Color\n",
    """import dataclasses
RATE = 3
@dataclasses.dataclass
class Point:
    x: int
class Bad(Exception):
    def __init__(self, *, at):
        super().__init__(f'at {at}')
        self.at = at""",
    "def scale(point):\n    return Point(helper.up(point.x) * RATE), Color.RED\n",
    "point, color = call(scale, Point(1))\nprint(type(point) is Point, point, color is Color.RED)",
    "RATE = 10\nprint(call(scale, Point(1))[0].x)",
    "async def later(x):\n    import asyncio\n    await asyncio.sleep(0)\n    return scale(Point(x))\nprint(call(later, 1)[0].x)",
    """from fabric.errors import InvalidRequest, JobFailed
def shell():
    !ls
try:
    call(shell)
except InvalidRequest as error:
    print(error.code, error.message)""",
    "def fail():\n    raise Bad(at='sea')\n",
    """try:
    call(fail)
except JobFailed as failure:
    print(type(failure.__cause__) is Bad, failure.__cause__.at, 'in fail' in str(failure))""",
    "%%timeit -n1 -r1\nassert call(scale, Point(1))[0].x == 20",
]
FILES = {
    "helper.py": "from app.names import Color\ndef up(x): return x + 1",
    "app/__init__.py": "",
    "app/names.py": "import enum\nclass Color(enum.Enum):\n    RED = 1",
}


@pytest.fixture
def notebook(tmp_path, far_side, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("AFAR_SOCKET", far_side)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    kernel = tmp_path / "kernels" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "here", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "kernels"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "here", "language": "python"}
    nbformat.write(made, tmp_path / "work.ipynb")
    return tmp_path / "work.ipynb"


def printed(cells):
    return ["".join(out.get("text", "") for out in cell.outputs if out.get("name") == "stdout") for cell in cells]


def check(cells):
    said = printed(cells)
    assert said[3] == "True Point(x=6) True\n"
    assert said[4] == "20\n", "the value that the variable has now"
    assert said[5] == "20\n"
    assert said[6].startswith("unpicklable variable 'get_ipython' of shell")
    assert "use subprocess" in said[6]
    assert said[8] == "True sea True\n"


def test_functions_of_a_notebook_run_with_its_classes_and_its_modules(notebook):
    made = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(made, timeout=120, resources={"metadata": {"path": str(notebook.parent)}}).execute()
    check(made.cells)


def test_functions_of_a_notebook_that_papermill_runs(notebook):
    papermill = pytest.importorskip("papermill")
    done = papermill.execute_notebook(
        str(notebook), str(notebook.parent / "done.ipynb"), cwd=str(notebook.parent), progress_bar=False
    )
    check([cell for cell in done.cells if cell.source in CELLS])
