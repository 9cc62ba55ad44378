"""Scripts of strangers as processes of their own: as they are, or with the lines changed that their comments name."""

import multiprocessing
import os
import random
import re
import runpy
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

LOOPS = Path(__file__).parent / "loops"
MARK = re.compile(r"^(?P<indent> *)(?P<before>.*?) *# fabric: (?P<after>.+)$")
WITHIN_S = 240
LIBRARIES = ("numpy", "torch", "transformers", "accelerate", "peft", "trl", "datasets", "diffusers", "gymnasium", "pytorch_lightning")  # fmt: skip
_starter = multiprocessing.get_context("forkserver")
_starter.set_forkserver_preload([*LIBRARIES, "diffusers.training_utils", "training", "tests.strangers.launch"])


def changed(text):
    """The script with its changes made, and how many lines they are, imports left out."""
    lines, count = [], 0
    for line in text.splitlines():
        if (found := MARK.match(line)) is None:
            lines.append(line)
            continue
        lines.append(found["indent"] + found["after"])
        count += not found["after"].startswith(("from ", "import "))
    return "\n".join(lines) + "\n", count


def _run(script, words, folder, said, environment):
    """What a forked process does."""
    import torch

    os.chdir(folder)
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    torch.set_num_threads(1)
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")


@dataclass
class Attempt:
    """One process, in an empty folder as on another node."""

    process: object
    folder: Path
    said: Path
    before: int

    @property
    def lines(self):
        """What it has said by now."""
        out = self.said / "out"
        return out.read_text().splitlines()[self.before :] if out.exists() else []

    @property
    def errors(self):
        return (self.said / "err").read_text()

    def until(self, count):
        """Whether it has come to so many lines, and still runs."""
        deadline = time.monotonic() + WITHIN_S
        while self.process.is_alive() and len(self.lines) < count:
            assert time.monotonic() < deadline, self.errors[-2_000:]
            time.sleep(0.002)
        return self.process.is_alive()

    def ended(self):
        """Its exit code."""
        self.process.join(WITHIN_S)
        assert self.process.exitcode is not None, f"it does not end: {self.errors[-2_000:]}"
        return self.process.exitcode


@dataclass
class Job:
    """A script that is started until it ends by itself."""

    script: Path
    words: tuple
    folder: Path
    lines: list = field(default_factory=list)
    codes: list = field(default_factory=list)

    def start(self, **environment):
        folder = self.folder / f"attempt-{len(self.codes)}"
        folder.mkdir(parents=True)
        given = (self.script, self.words, folder, self.folder, {"FABRIC_TENSORBOARD_DIR": str(folder), **environment})
        process = _starter.Process(target=_run, args=given)
        process.start()
        return Attempt(process, folder, self.folder, len(self.lines))

    def end(self, attempt):
        """Take in what an attempt has come to."""
        self.codes.append(attempt.ended())
        self.lines += attempt.lines
        return self.codes[-1]


def written(name, words, folder, *, is_changed):
    """The job of a script below `folder`, with its changes made or not."""
    text = (LOOPS / f"{name}.py").read_text()
    folder.mkdir(parents=True)
    script = folder / f"{name}.py"
    script.write_text(changed(text)[0] if is_changed else text)
    return Job(script, tuple(words), folder)


def plain(name, words, folder):
    """The script as it is, to its end: where its result is, and what it said."""
    job = written(name, words, folder / "plain", is_changed=False)
    attempt = job.start()
    assert job.end(attempt) == 0, attempt.errors[-2_000:]
    return attempt.folder / "final.pt", job.lines


def evicted(name, words, folder, *, evictions, steps, dice):
    """The script with its changes, told to stop so often at random instants; its job and where its result is."""
    job = written(name, words, folder / f"evicted-{dice.randrange(10**9)}", is_changed=True)
    notices = 0
    while True:
        attempt = job.start(FABRIC_CHECKPOINT_DIR=str(job.folder / "kept"))
        if notices < evictions and attempt.until(dice.randint(1, max(1, 2 * steps // (evictions + 1) - 1))):
            time.sleep(dice.uniform(0, 0.03))
            if attempt.process.is_alive():
                os.kill(attempt.process.pid, signal.SIGTERM)
                notices += 1
        code = job.end(attempt)
        if code == 0:
            return job, attempt.folder / "final.pt"
        if code == -signal.SIGTERM and len(job.lines) >= steps:  # all was trained, and it was at other things
            continue
        assert code == 75, f"ended with {code}: {attempt.errors[-3_000:]}"
        assert len(job.codes) <= evictions + 1, "it is not told to stop, and ends as if"


def seed():
    return random.randrange(2**32)
