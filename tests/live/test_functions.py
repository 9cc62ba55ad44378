"""Functions of projects on a real cluster: programs that were written for no fabric, in processes of their own."""

import os
import random
import subprocess
import sys
import textwrap
import time

import pytest

from fabric.client.client import new_request_id
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


def fitted(folds):
    """Of scikit-learn and xgboost, with processes of joblib's: nothing of it knows the fabric."""
    from pathlib import Path

    import numpy as np
    import xgboost
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 5))
    y = (x.sum(axis=1) > 0).astype(int)
    Path("begun").touch()
    scores = [
        cross_val_score(RandomForestClassifier(50, random_state=fold, n_jobs=2), x, y, cv=3, n_jobs=2).mean()
        for fold in range(folds)
    ]
    booster = xgboost.train({"max_depth": 2, "nthread": 1}, xgboost.DMatrix(x, y), num_boost_round=10)
    print("fitted", flush=True)
    return scores, booster.predict(xgboost.DMatrix(x[:3])).tolist()


def until(job, *states):
    deadline = time.monotonic() + 240
    while job.state not in states:
        assert time.monotonic() < deadline, (job.id, job.state)
        time.sleep(0.05)
    return job.state


def test_what_others_wrote_ends_the_same_plain_and_paused_at_random_instants(acme):
    pytest.importorskip("sklearn")
    pytest.importorskip("xgboost")
    plain = acme.submit(fitted, 4, tokens="1").result(timeout=240)
    delays = [random.uniform(0.1, 3.0) for _ in range(2)]
    job = acme.submit(fitted, 4, tokens="1", grace=2.0)
    for delay in delays:
        until(job, "running", "succeeded")
        time.sleep(delay)
        if job.state == "running":
            job.pause()
        if until(job, "parked", "succeeded") == "parked":
            job.resume()
    assert job.result(timeout=240) == plain, delays
    assert job.cost().settled


def test_a_functions_error_is_shown_whole_by_the_commands(program, running, tmp_path):
    files = APP | {
        "main.py": "import fabric\nfrom app.jobs import fail\njob = fabric.submit(fail, tokens='0.2')\nprint(job.id, job.wait(120))"
    }
    job_id, state = program(files).split()
    assert state == "failed"
    shown = program(
        {"main.py": f"import sys\nsys.argv = ['fabric', 'job', '{job_id}']\nfrom fabric.cli import main\nmain()"}
    )
    lines = [line.strip() for line in shown.splitlines()]
    assert "Traceback (most recent call last):" in shown
    assert "KeyError: 'missing'" in lines
    assert "app.names.Bad: code 7 at sea" in lines
    assert "\\n" not in shown
