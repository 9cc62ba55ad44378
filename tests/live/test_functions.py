"""Functions of projects on a real cluster: programs that were written for no fabric, in processes of their own."""

import os
import subprocess
import sys
import textwrap

import pytest

from fabric.client import new_request_id
from fabric.wire import fabric_pb2 as pb
from fabric.wire import format_key, hash_secret, make_secret

APP = {
    "app/__init__.py": "",
    "app/names.py": """
        import dataclasses, enum
        class Color(enum.Enum):
            RED = 1
            BLUE = 2
        @dataclasses.dataclass
        class Point:
            x: int
            color: Color
        class Bad(Exception):
            def __init__(self, code, *, at):
                super().__init__(f"code {code} at {at}")
                self.code, self.at = code, at
    """,
    "app/jobs.py": """
        from importlib import resources
        from app.names import Bad, Color, Point
        def move(point, much):
            words = resources.files("app").joinpath("words.txt").read_text()
            print("moved", words, flush=True)
            return Point(point.x + much, Color.BLUE), isinstance(point, Point)
        def fail():
            try:
                {}["missing"]
            except KeyError as error:
                raise Bad(7, at="sea") from error
        async def later(point): return move(point, 10)[0]
    """,
    "app/words.txt": "WORDS",
}
MAIN = """
    import sys, fabric
    from app.jobs import fail, later, move
    from app.names import Bad, Color, Point
    from fabric.errors import JobFailed
    def wrapped(point): return move(point, 2)
    jobs = fabric.submit(move, Point(1, Color.RED), 1, tokens="0.2"), fabric.submit(wrapped, Point(1, Color.RED), tokens="0.2")
    print([job.result(timeout=120) == (Point(x, Color.BLUE), True) for job, x in zip(jobs, (2, 3))])
    print(fabric.submit(later, Point(1, Color.RED), tokens="0.2").result(timeout=120).color is Color.BLUE)
    print("".join(jobs[0].logs()), end="")
    failed = fabric.submit(fail, tokens="0.2")
    try: failed.result(timeout=120)
    except JobFailed as failure:
        print(type(failure.__cause__) is Bad, failure.__cause__.at, type(failure.__cause__.__cause__).__name__)
        print(failure.message)
"""


@pytest.fixture
def program(acme, running, tmp_path):
    """Write a project, and run its main program as a customer with a key of their own."""
    secret = make_secret()
    request = pb.CreateKeyRequest(request_id=new_request_id(), secret_sha256=hash_secret(secret), name="program")
    key = format_key(acme.client.call(request, pb.CreateKeyReply).key_id, secret)

    def program(files, name="project"):
        folder = tmp_path / name
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(textwrap.dedent(text))
        environ = os.environ | {"FABRIC_ADDRESS": running.address, "FABRIC_API_KEY": key, "FABRIC_CA": running.ca}
        ran = subprocess.run(
            [sys.executable, "main.py"], cwd=folder, capture_output=True, text=True, env=environ, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return program


def test_a_project_of_several_modules_runs_as_at_home(program):
    told = program(APP | {"main.py": MAIN})
    assert told.startswith("[True, True]\nTrue\nmoved WORDS\nTrue sea KeyError\njob job-")
    assert "direct cause of the following exception" in told
    assert "app/jobs.py" in told
    assert "stages.py" not in told
    assert told.rstrip().endswith("app.names.Bad: code 7 at sea")


def test_two_projects_of_one_account_have_modules_of_the_same_name(program):
    """The process that ran the first one's function may run the second one's."""
    for word in ("first", "second", "third"):
        files = {"app/__init__.py": "", "app/names.py": f"WORD = {word!r}\ndef say(): return WORD"}
        files["main.py"] = (
            "import fabric\nfrom app.names import say\nprint(fabric.submit(say, tokens='0.2').result(timeout=120))"
        )
        assert program(files, word) == f"{word}\n"


@pytest.mark.parametrize("end", ["cancel", "exit", "kill"])
def test_the_last_lines_are_told_however_a_job_ends(acme, end):
    """Of characters of three bytes, to one who follows and to one who comes late."""

    def job(end):
        import os
        import signal
        import time

        for number in range(20_000):
            print(f"{number} 汉字あ한")
        print("the last line", end="", flush=True)
        if end == "exit":
            os._exit(3)
        if end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

    made = acme.submit(job, end, tokens="0.2", accelerators="any")
    followed = ""
    for text in made.logs(follow=True):
        followed += text
        if end == "cancel" and followed.endswith("the last line"):
            made.cancel()
    assert made.wait(timeout=60) in {"cancelled", "failed"}
    for told in (followed, "".join(made.logs())):
        assert "\N{REPLACEMENT CHARACTER}" not in told
        assert told.startswith("0 汉字あ한\n1 汉字あ한\n")
        assert "19999 汉字あ한\nthe last line" in told
