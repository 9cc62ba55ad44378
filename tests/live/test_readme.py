"""What the README and the pages behind it show does what it says."""

import re
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def block(page):
    """The one piece of Python on it."""
    (found,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return found


def test_the_example_runs_as_it_is_written(acme, monkeypatch, capsys):
    profile = acme.client.profile
    for name in ("address", "api_key", "ca", "account"):
        monkeypatch.setenv(f"FABRIC_{name.upper()}", getattr(profile, name))
    exec(compile(block("README.md"), "README.md", "exec"), {"__name__": "readme"})
    assert "333333283333335000000" in capsys.readouterr().out


WORK = """
import time


def work():
    end = time.monotonic() + 0.009
    while time.monotonic() < end:
        pass


"""


def test_a_script_that_saves_as_the_page_on_jobs_says_goes_on_where_it_was(acme, tmp_path, monkeypatch):
    script = block("docs/jobs.md").replace("  # ... your work ...", "; work()")
    assert "; work()" in script
    (tmp_path / "train.py").write_text(f"{WORK}{script}print('began at', job.attempt, 'ended at', step)\n")
    monkeypatch.chdir(tmp_path)
    # Busy on its one device, it is asked to save after some 6 s, with a second and a half left: a fifth of its limit.
    job = acme.submit("train.py", tokens="0.0026", accelerators="H100:1", grace=5)
    deadline = time.monotonic() + 60
    while job.state != "parked" or job.cost().held_uhs:
        assert time.monotonic() < deadline, job.state
        time.sleep(0.1)
    job.raise_limit("0.1")
    job.result(timeout=90)
    assert "began at 2 ended at 1000" in "".join(job.logs())
    assert job.cost().settled
    assert [record.ended for record in acme.usage(job_id=job.id)] == ["saved", "succeeded"]


LOOP = """
import torch

torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
opt = torch.optim.AdamW(model.parameters(), lr=0.01)
sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 600)
"""
BODY = """
    loss = (model(torch.randn(8, 4)) - 1).square().mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    sched.step()
    time.sleep(0.01)
print("began at", run.resumed_at, "ended at", run.done, round(float(loss), 6))
"""


def test_two_changed_lines_make_a_loop_preemptible(acme, tmp_path, monkeypatch):
    shown = block("docs/training.md")
    assert "    ...  # your loop's body, as it was\n" in shown
    script = shown.replace("    ...  # your loop's body, as it was\n", BODY.lstrip("\n"))
    (tmp_path / "train.py").write_text(f"import time\n{LOOP}{script}")
    monkeypatch.chdir(tmp_path)
    alone = acme.submit("train.py", tokens="0.1", accelerators="H100:1")
    job = acme.submit("train.py", tokens="0.1", accelerators="H100:1")
    deadline = time.monotonic() + 60
    while not 0 < job.info().step < 600:
        assert time.monotonic() < deadline, job.state
        time.sleep(0.05)
    job.pause()
    while job.state != "parked" or job.cost().held_uhs:
        assert time.monotonic() < deadline, job.state
        time.sleep(0.1)
    job.resume()
    job.result(timeout=120)
    alone.result(timeout=120)
    assert last_words(job) != last_words(alone)
    assert last_words(job).split()[-1] == last_words(alone).split()[-1], "an interruption changed the result"


def last_words(job):
    (line,) = [line for line in "".join(job.logs()).splitlines() if line.startswith("began at")]
    return line
