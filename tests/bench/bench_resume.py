"""How long a paused training job takes from `resume()` to its first step, through the doors and Ray: cold and warm.

    python tests/bench/bench_resume.py [ROUNDS]

Cold, every attempt starts a process that imports torch. Warm, it is forked from the machine's zygote, which has. Both run
the same script on the same nodes, in turn, in one run. The runner's own process is one of Ray's either way: new on other
devices, kept for the account on the same ones, so both are shown.
"""

import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from fabric import house
from fabric.client import new_request_id
from fabric.sdk import connect
from fabric.wire import fabric_pb2 as pb

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
    place = Path(tempfile.mkdtemp(prefix="fabric-bench-"))
    (place / "train.py").write_text(SCRIPT)
    found = house.up(state_dir=place / "state", any_port=True)
    try:
        measure(found, place, rounds)
    finally:
        house.down(place / "state")


def measure(found, place, rounds):
    with connect(found.address, house.operator_key(Path(found.state_dir)), found.ca, account="bench") as fabric:
        request = pb.OpenAccountRequest(request_id=new_request_id(), account_id="bench", name="b", plan="starter")
        fabric.client.call(request, pb.Accepted)
        fabric.top_up("100")
        took = {"cold": [], "warm": []}
        saves = {"cold": [], "warm": []}
        for how, preload in (("warm", "torch"), ("cold", "")):
            # The first attempt of a fabric brings the zygote up, and is not counted.
            job = fabric.submit(
                "train.py", tokens="5", accelerators="H100:1", working_dir=place, preload=preload, name=how
            )
            until(lambda job=job: job.info().step > 3)
            if how == "warm":
                time.sleep(8)
            for _ in range(rounds):
                asked = time.monotonic()
                job.pause()
                until(lambda job=job: job.info().state == "parked" and not job.info().lease_id)
                saves[how].append(time.monotonic() - asked)
                began = time.time()
                job.resume()
                until(lambda job=job, began=began: max(firsts(job)) > began)
                took[how].append(max(firsts(job)) - began)
            print(how, job.info().timeline[-160:])
            job.cancel()
            job.wait(60)
        for how in ("cold", "warm"):
            told(f"resume → first step, {how}", took[how])
        for how in ("cold", "warm"):
            told(f"pause → released, {how}", saves[how])
        ratio = statistics.median(took["cold"]) / statistics.median(took["warm"])
        print(f"warm is {ratio:.1f} times as fast")


def firsts(job):
    return [float(at) for at in re.findall(r"first step at ([\d.]+)", "".join(job.logs()))]


def told(what, seconds):
    shown = " ".join(f"{each:.2f}" for each in seconds)
    print(
        f"{what:32} p50 {statistics.median(seconds):.2f} s  min {min(seconds):.2f}  max {max(seconds):.2f}  ({shown})"
    )


def until(found, within_s=120):
    deadline = time.monotonic() + within_s
    while not found():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
