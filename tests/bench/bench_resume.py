"""How long a paused training job takes from `resume()` to its first step, through the doors and Ray: cold and warm.

    python tests/bench/bench_resume.py [ROUNDS]

Cold, every attempt starts a process that imports torch. Warm, it is forked from the machine's zygote, which has. Both run
the same script, in turn, in one run. The runner's own process is one of Ray's either way: kept for the account on the same
devices, new on others, so both are shown; to make the job go elsewhere, another one takes its devices while it is paused.
"""

import re
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from fabric import daemon
from fabric.client.client import new_request_id
from fabric.sdk import connect
from fabric.wire import fabric_pb2 as pb
from tests.bench.yardstick import print_yardstick

TYPES = ["H100:4", "A100:4"]
PLACES = ("same devices", "other devices")
SCRIPT = """
import time
import torch
from training import session

torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256))
opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
run = session(model=model, opt=opt)
first = True
for _ in run.steps(1_000_000):
    loss = model(torch.randn(32, 256)).square().mean()
    loss.backward()
    opt.step()
    opt.zero_grad()
    run.log(loss=loss)
    if first:
        print("first step at", time.time(), flush=True)
        first = False
    time.sleep(0.02)
"""


def main(rounds):
    print_yardstick()
    place = Path(tempfile.mkdtemp(prefix="fabric-bench-"))
    (place / "train.py").write_text(SCRIPT)
    found = daemon.up(state_dir=place / "state", any_port=True)
    try:
        measure(found, place, rounds)
    finally:
        daemon.down(place / "state", now=True)


def measure(found, place, rounds):
    with connect(found.address, daemon.operator_key(Path(found.state_dir)), found.ca, account="bench") as fabric:
        request = pb.OpenAccountRequest(request_id=new_request_id(), account_id="bench", name="b", plan="starter")
        fabric.client.call(request, pb.Accepted)
        fabric.top_up("100")
        took = {f"{how}, {where}": [] for how in ("cold", "warm") for where in PLACES}
        saves = {"cold": [], "warm": []}
        for how, preload in (("warm", "torch"), ("cold", "")):
            # The first attempt of a fabric brings the zygote up, and is not counted.
            job = fabric.submit(
                "train.py", tokens="9", accelerators=TYPES, working_dir=place, preload=preload, name=how
            )
            until(lambda job=job: job.info().step > 3)
            if how == "warm":
                time.sleep(8)
            for at in range(2 * rounds):
                was, where = job.info().accelerator, PLACES[at % 2]
                asked = time.monotonic()
                job.pause()
                until(lambda job=job: job.info().state == "parked" and not job.info().lease_id)
                saves[how].append(time.monotonic() - asked)
                with beside(fabric, was if where == "other devices" else other_than(was)):
                    began = time.time()
                    job.resume()
                    until(lambda job=job, began=began: max(firsts(job)) > began)
                    took[f"{how}, {where}"].append(max(firsts(job)) - began)
                    assert (job.info().accelerator == was) == (where == "same devices")
            print(how, job.info().timeline[-160:])
            job.cancel()
            job.wait(60)
        for how, seconds in took.items():
            told(f"resume → first step, {how}", seconds)
        for how in ("cold", "warm"):
            told(f"pause → released, {how}", saves[how])
        for where in PLACES:
            ratio = statistics.median(took[f"cold, {where}"]) / statistics.median(took[f"warm, {where}"])
            print(f"{where}: warm is {ratio:.1f} times as fast")


def other_than(kind):
    return next(choice for choice in TYPES if not choice.startswith(kind)).partition(":")[0]


@contextmanager
def beside(fabric, kind):
    """Somebody else has all devices of the kind."""
    blocker = fabric.submit(["sleep", "600"], tokens="9", accelerators=f"{kind}:4", name="beside")
    until(lambda: blocker.info().state == "running")
    try:
        yield
    finally:
        blocker.cancel()
        blocker.wait(60)
        until(lambda: not blocker.info().lease_id)


def firsts(job):
    return [float(at) for at in re.findall(r"first step at ([\d.]+)", "".join(job.logs()))]


def told(what, seconds):
    shown = " ".join(f"{each:.2f}" for each in seconds)
    print(
        f"{what:40} p50 {statistics.median(seconds):.2f} s  min {min(seconds):.2f}  max {max(seconds):.2f}  ({shown})"
    )


def until(found, within_s=120):
    deadline = time.monotonic() + within_s
    while not found():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
