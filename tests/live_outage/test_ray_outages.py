"""A whole fabric under which parts of Ray are killed, or stop and go on: nothing is lost, and nobody has to do anything.

The control store (`gcs_server`) knows who is where; a raylet is a node. Which part, when and for how long is chosen by a
seed, which is printed.
"""

import random
import time
from contextlib import suppress

import psutil
import pytest

from fabric import daemon
from fabric.audit.verify import verify_export
from fabric.daemon.state_dir import ailment
from fabric.errors import FabricError, NotFound, Unavailable
from fabric.sdk import connect
from fabric.wire import fabric_pb2 as pb

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
WITHIN_S = 120
CONFIG = (
    "name: small\n"
    "ray: {mode: local, nodes: [{node: h, accelerator: H100, devices: 2}, {node: a, accelerator: A100, devices: 2}]}\n"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Of one fabric: one outage after the other, and it goes on."""
    place = tmp_path_factory.mktemp("outages") / "state"
    config = place.with_name("small.yaml")
    config.write_text(CONFIG)
    daemon.up(config, state_dir=place, any_port=True)
    yield place
    with suppress(NotFound):
        daemon.down(place, now=True)


@pytest.fixture
def fabric(place):
    found = daemon.running(place)
    with connect(found.address, daemon.operator_key(place), found.ca, account=found.account) as fabric:
        fabric.top_up("30")
        yield fabric


def parts(place, name):
    """Ray's processes of that name that run, each with what it was started with."""
    for process in psutil.Process(daemon.running(place).pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that has ended and waits to be collected is none either
            if process.name() == name:
                yield process, " ".join(process.cmdline())


def part(place, name, *, of=""):
    """Ray's process of that name, of a node with that accelerator."""
    (found,) = [process for process, line in parts(place, name) if of in line]
    return found


def head(place):
    """The raylet on whose node the gate is: it has no accelerators."""
    return next(
        raylet
        for raylet, line in parts(place, "raylet")
        if not {"H100", "A100"} & set(line.replace('"', ",").split(","))
    )


def wait_until(happens, within_s=WITHIN_S):
    deadline = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(fabric):
    with suppress(Unavailable):
        return fabric.balance() is not None
    return False


def steps_of(fabric, **wanted):
    """A job that saves each step, and says how often it was begun."""
    return fabric.submit(step_and_save, wanted.pop("steps"), tokens="3", **wanted)


def step_and_save(steps):
    from fabric import context

    job = context.current()
    at, starts = (int(word) for word in (job.load() or b"0 0").split())
    starts += 1
    while at < steps:
        time.sleep(0.2)
        at += 1
        job.save(f"{at} {starts}".encode(), step=at)
    return {"at": at, "starts": starts}


@pytest.fixture
def all_is_booked(fabric, place):
    """Every job has settled, nothing is held, and the journal's export proves what was paid for."""
    before_uhs = fabric.balance().free_uhs

    def check(*jobs):
        wait_until(lambda: all(job.cost().settled for job in jobs))
        wait_until(lambda: fabric.balance().held_uhs == 0)
        assert fabric.balance().free_uhs == before_uhs - sum(job.cost().burned_uhs for job in jobs)
        lines = fabric.client.fetch(pb.ExportRequest()).decode().splitlines()
        report = verify_export(lines, trusted_key=daemon.running(place).verifier_key)
        assert report.ok, report.problem

    return check


def test_a_killed_control_store_comes_back_and_jobs_notice_nothing(place, fabric, all_is_booked):
    """Killed, and killed again once it is back, beside a job that runs on."""
    running = steps_of(fabric, steps=60, accelerators="H100:1")
    wait_until(lambda: running.state == "running")
    others = []
    for _ in range(2):
        store = part(place, "gcs_server")
        store.kill()
        others.append(fabric.submit(pow, 2, 5, tokens="0.1", accelerators="A100:2"))
        others.append(fabric.submit(pow, 2, 5, tokens="0.1", accelerators="H100:1"))
        assert [job.result(timeout=WITHIN_S) for job in others[-2:]] == [32, 32]
        wait_until(lambda killed=store.pid: any(each.pid != killed for each, _ in parts(place, "gcs_server")))
    assert running.result(timeout=WITHIN_S) == {"at": 60, "starts": 1}
    all_is_booked(running, *others)


@pytest.mark.parametrize(
    ("seed", "longest_s"),
    [pytest.param(seed, longest, marks=pytest.mark.soak) for seed, longest in ((1, 10), (2, 120), (3, 120))],
)
def test_while_the_control_store_stands_still_what_runs_goes_on_and_the_rest_waits(
    place, fabric, all_is_booked, seed, longest_s
):
    """Calls are answered, a job that needs a new lease waits and pays nothing, and `fabric up` says what is away."""
    print("seed", seed)
    chance = random.Random(seed)
    running = steps_of(fabric, steps=30 + 8 * longest_s, accelerators="H100:1")
    wait_until(lambda: running.state == "running")
    time.sleep(chance.random())
    store = part(place, "gcs_server")
    store.suspend()
    try:
        waiting = fabric.submit(pow, 2, 5, tokens="0.1", accelerators="A100:2")
        wait_until(lambda: "Ray's control store is away" in ailment(place))
        began, away_s = time.monotonic(), chance.uniform(0.5, 1) * longest_s
        while time.monotonic() < began + away_s:
            assert answers(fabric)
            assert running.state == "running"
            assert waiting.state in ("queued", "starting")
            assert waiting.cost().burned_uhs == 0
            time.sleep(0.5)
    finally:
        store.resume()
    assert waiting.result(timeout=WITHIN_S) == 32
    wait_until(lambda: not ailment(place))
    assert running.result(timeout=WITHIN_S + longest_s) == {"at": 30 + 8 * longest_s, "starts": 1}
    all_is_booked(running, waiting)


def test_a_killed_node_comes_back_and_its_job_goes_on_from_what_it_saved(place, fabric, all_is_booked):
    running = steps_of(fabric, steps=60, accelerators="H100:1")
    other = steps_of(fabric, steps=60, accelerators="A100:1")
    wait_until(lambda: running.info().step > 3 and other.info().step > 3)
    part(place, "raylet", of="H100").kill()
    assert running.result(timeout=WITHIN_S) == {"at": 60, "starts": 2}
    assert other.result(timeout=WITHIN_S) == {"at": 60, "starts": 1}
    all_is_booked(running, other)


@pytest.mark.parametrize(
    ("seed", "longest_s"), [(1, 8), *(pytest.param(seed, 120, marks=pytest.mark.soak) for seed in (2, 3))]
)
def test_a_node_that_stands_still_for_a_while_costs_no_job_its_work(place, fabric, all_is_booked, seed, longest_s):
    """Whether or not Ray gives it up meanwhile."""
    print("seed", seed)
    chance = random.Random(seed)
    running = steps_of(fabric, steps=30 + 8 * longest_s, accelerators="H100:1")
    wait_until(lambda: running.info().step > 3)
    time.sleep(chance.random())
    node = part(place, "raylet", of="H100")
    node.suspend()
    try:
        waiting = fabric.submit(pow, 2, 5, tokens="0.1", accelerators="H100:1")
        time.sleep(chance.uniform(0.5, 1) * longest_s)
        assert answers(fabric)
    finally:
        with suppress(psutil.NoSuchProcess):
            node.resume()
    assert waiting.result(timeout=WITHIN_S + longest_s) == 32
    done = running.result(timeout=2 * (WITHIN_S + longest_s))
    assert done["at"] == 30 + 8 * longest_s
    all_is_booked(running, waiting)


def test_a_fabric_whose_ray_is_gone_begins_again_by_itself_at_the_same_address(place, fabric, all_is_booked):
    """The head's node is killed, and the gate with it. What it says meanwhile, `fabric up` says to whoever tries."""
    before = daemon.running(place)
    running = steps_of(fabric, steps=60, accelerators="H100:1")
    wait_until(lambda: running.info().step > 3)
    head(place).kill()
    wait_until(lambda: "everything is started again" in ailment(place))
    with suppress(FabricError):
        daemon.up(place.parent / "small.yaml", state_dir=place, any_port=True)
    wait_until(lambda: not ailment(place) and answers(fabric))
    after = daemon.running(place)
    assert (after.address, after.dashboard, after.pid) == (before.address, before.dashboard, before.pid)
    assert running.result(timeout=WITHIN_S) == {"at": 60, "starts": 2}
    all_is_booked(running)
