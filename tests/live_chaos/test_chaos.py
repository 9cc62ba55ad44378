"""Mixed jobs on machines that come and go, paused, cancelled, drained and orphaned of their gate at random instants.

Whatever happens: every job comes to what it must come to, is charged once, and nothing runs or holds a device afterwards.
`CHAOS_JOBS=300` makes an hour of it, `CHAOS_SEED` another one.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from itertools import zip_longest

import psutil
import pytest

from fabric.audit.verify import verify_export
from fabric.client.client import new_request_id
from fabric.errors import Conflict, InvalidRequest, NotFound, Unavailable
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from tests.cluster.ray_cluster.squatters import WAYS
from tests.live_chaos.calls import Callers
from tests.live_chaos.machines import NODES, SERVES
from tests.live_chaos.work import KINDS, TOKENS

JOBS = int(os.environ.get("CHAOS_JOBS", "40"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 10_000)
AT_ONCE = max(2, min(10, JOBS // 4))
"""So that a short run has its blows, too: there is one between two looks for room."""
CREDIT = 1_000
ENDS_S = 900
"""In which all jobs must have ended after the last blow."""
TELLS_S = 30
NOTICED_US = 20_000_000
"""After which at the latest a dead node is known to be dead: Ray needs some 15 s."""
SQUATS_S = 15
"""How long a stranger's program may go on after its start, most of which it needs to begin."""
BLOWS = {
    "pause": 5,
    "resume": 6,
    "cancel": 2,
    "drain": 2,
    "undrain": 4,
    "kill node": 1,
    "add node": 3,
    "kill gate": 1,
    "save": 3,
    "squat": 3,
}
"""What happens, and how often beside the others."""
LONG = 100
"""A run of so many jobs has every blow more than once."""
GIVEN_BACK_S = 120
"""For a process that it has started Ray keeps devices for a minute, also where that is long dead."""
UNLEASED_S = 2.0
"""For so long, at most, may somebody hold a device without a lease, also while the gate is dead."""
ENDED = {"succeeded", "failed", "cancelled"}
MARK = "CHAOS_OF"
ACCELERATORS = ("H100:1", "A100:1", "910B:1", "any", "any:1-2", ["H100:1-2", "A100:1-2"])


class Chaos:
    """One run: what was submitted, and what was done to it."""

    def __init__(self, place, seed):
        self.place = place
        self.dice = random.Random(seed)
        self.fabric = place.customer(str(CREDIT))
        self.operator = place.connect("")
        self.mark = new_request_id()
        self.jobs = {}
        """job -> (kind, seed, cancelled)"""
        self.cancelled = set()
        self.paused = []
        self.drained = []
        self.gone = []
        self.strangers, self.squats_since = [], 0.0
        self.cut_off = []
        """When the node was killed that serves."""
        self.killed = []
        """Which nodes were killed, and when."""
        self.blows = Counter()
        self.silent_s = 0.0
        """For how long the gate was not to be heard after a blow, at the longest."""

    def tried(self, act, *arguments, **options):
        """What a caller would do: ask again while the gate is away, and take a no for a no."""
        deadline = time.monotonic() + 120
        while True:
            try:
                return act(*arguments, **options)
            except Unavailable:
                assert time.monotonic() < deadline, "the gate did not come back"
                time.sleep(0.5)
            except (Conflict, NotFound, InvalidRequest):
                return None

    def submit(self):
        kind, seed = self.dice.choice(KINDS), self.dice.randrange(1, 1_000)
        options = {
            "tokens": TOKENS,
            "accelerators": "H100:1" if kind.name == "squats" else self.dice.choice(ACCELERATORS),
            "name": kind.name,
            "env": {MARK: self.mark},
            "grace": 10,
            "request_id": new_request_id(),
        }
        job = self.tried(kind.submit, self.fabric, seed, options)
        assert job is not None
        self.jobs[job.id] = (job, kind, seed)

    def going(self):
        return [job for job, *_ in self.jobs.values() if job.state not in ENDED]

    def some(self):
        found = [job for job in self.going() if job.id not in self.paused]
        return self.dice.choice(found) if found else None

    def blow(self):
        """Do one bad thing, or undo one."""
        what = self.dice.choices([*BLOWS], [*BLOWS.values()])[0]
        done = getattr(self, what.replace(" ", "_"))()
        self.blows[what] += bool(done)
        began = time.monotonic()
        self.tried(self.fabric.balance)
        self.silent_s = max(self.silent_s, time.monotonic() - began)

    def pause(self):
        if (job := self.some()) is None:
            return False
        self.tried(job.pause)
        self.paused.append(job.id)
        return True

    def resume(self):
        if not self.paused:
            return False
        job = self.jobs[self.paused[0]][0]
        if job.state == "parked":
            self.tried(job.resume)
        if job.state != "stopping":
            self.paused.pop(0)
        return True

    def cancel(self):
        if (job := self.some()) is None:
            return False
        self.cancelled.add(job.id)
        self.tried(job.cancel, save=self.dice.random() < 0.5)
        return True

    def save(self):
        if (job := self.some()) is None:
            return False
        self.tried(job.save_now)
        return True

    def drain(self):
        node = self.dice.choice([*NODES])
        if len(self.drained) + len(self.gone) > 1 or node in self.drained + self.gone:
            return False
        asked = pb.DrainNodeRequest(node_id=node, grace_us=self.dice.randrange(1, 10) * 1_000_000)
        self.tried(self.operator.client.call, asked, pb.Accepted)
        self.drained.append(node)
        return True

    def undrain(self):
        if not self.drained:
            return False
        self.tried(self.operator.client.call, pb.DrainNodeRequest(node_id=self.drained.pop(0), undo=True), pb.Accepted)
        return True

    def kill_node(self):
        node = self.dice.choice([*NODES])
        if len(self.drained) + len(self.gone) > 1 or node in self.drained + self.gone:
            return False
        if done := self.place.say("kill", node):
            self.killed.append((node, time.time()))
            self.gone.append(node)
            if node == SERVES:
                self.cut_off.append(time.time())
        return done

    def add_node(self):
        if not self.gone:
            return False
        self.place.say("add", self.gone.pop(0))
        return True

    def squat(self):
        """Another program of the cluster takes devices, in one of many ways; one at a time, each for a while."""
        if self.strangers and self.strangers[0].poll() is None and time.monotonic() - self.squats_since < SQUATS_S:
            return False
        self.end_strangers()
        self.strangers.append(self.place.stranger(self.dice.choice([*WAYS])))
        self.squats_since = time.monotonic()
        return True

    def end_strangers(self):
        """What they have left in the cluster is not theirs to end."""
        while self.strangers:
            stranger = self.strangers.pop()
            stranger.kill()
            stranger.communicate()

    def kill_gate(self):
        for gate in self.place.gates():
            with suppress(ProcessLookupError):
                os.kill(gate, signal.SIGKILL)
        return True

    def end_all(self):
        """No more blows; everything goes on to its end."""
        self.end_strangers()
        while self.gone:
            self.add_node()
        while self.drained:
            self.undrain()
        told = time.monotonic()
        deadline = told + ENDS_S
        while going := self.going():
            assert time.monotonic() < deadline, [
                (job.id, self.jobs[job.id][1].name, job.state, self.tried(job.info).reason) for job in going
            ]
            for job in going:
                if job.state == "parked":
                    self.tried(job.resume)
            if time.monotonic() - told > TELLS_S:
                told = time.monotonic()
                print([(job.id, self.jobs[job.id][1].name, self.tried(job.info).timeline) for job in going], flush=True)
            time.sleep(0.5)

    def died(self):
        """The nodes that ended though nobody killed them."""
        lines = [json.loads(line) for line in self.place.taken.read_text().splitlines()]
        return [holders["ended"] for _, nodes, holders in lines if nodes is None and "ended" in holders]

    def check_time(self, job, records):
        """Nothing is charged for a time in which no attempt of the job had its devices, nor twice, nor on a node that is dead."""
        stays = {stay.attempt: stay for stay in job.info().ran}
        records = sorted(records, key=lambda record: record.started_at_us)
        for record, following in zip_longest(records, records[1:]):
            assert record.metered_us <= record.ended_at_us - record.started_at_us, record
            assert following is None or record.ended_at_us <= following.started_at_us, (record, following)
            stay = stays.get(int(record.lease_id.rpartition(".")[2]))
            nodes = [] if stay is None else [each.partition(" ")[0] for each in stay.nodes]
            for died_us in (int(at * 1_000_000) for node, at in self.killed if node in nodes):
                if record.started_at_us < died_us < record.ended_at_us:
                    assert record.metered_us <= died_us - record.started_at_us + NOTICED_US, record


def marked(mark):
    """Processes that carry the mark of this run's jobs."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.environ().get(MARK) == mark:
                found.append(each)
    return found


@pytest.mark.timeout(7_200)
def test_whatever_happens_every_job_comes_to_its_end_once_and_leaves_nothing(place):
    print(f"CHAOS_SEED={SEED} CHAOS_JOBS={JOBS}")
    chaos, callers = Chaos(place, SEED), Callers(place, SEED)
    place.wait_for_model()
    callers.begin()
    began = time.monotonic()
    while len(chaos.jobs) < JOBS:
        if len(chaos.going()) < AT_ONCE:
            chaos.submit()
        chaos.blow()
        time.sleep(chaos.dice.random())
    chaos.end_all()
    callers.end()
    kinds = Counter(kind.name for _, kind, _ in chaos.jobs.values())
    print(f"{len(chaos.jobs)} jobs in {time.monotonic() - began:.0f} s: {dict(kinds)}; blows: {dict(chaos.blows)}")
    longest, who = place.squatted()
    print(
        f"devices held without a lease, longest by node, s: { {k: (round(v, 1), who[k]) for k, v in longest.items()} };"
        f" the gate was silent for {chaos.silent_s:.1f} s at the longest"
    )
    print(f"calls: {dict(callers.ends)}")
    for at, said, call_id in callers.mistakes:
        print(f"500 at {at:.1f}: {said}\n" + "\n".join(place.logged(call_id)), flush=True)
    assert JOBS < LONG or min(chaos.blows[what] for what in BLOWS) > 1
    assert chaos.died() == []
    for job, kind, seed in chaos.jobs.values():
        if job.id in chaos.cancelled and job.state == "cancelled":
            continue
        try:
            kind.check(job, seed)
        except Exception as error:
            info = job.info()
            raise AssertionError(f"{job.id} {kind.name} {seed}: {info.state} {info.timeline} {info.error}") from error
    charged = 0
    for job, *_ in chaos.jobs.values():
        deadline = time.monotonic() + 120
        while not (cost := chaos.tried(job.cost)).settled:
            assert time.monotonic() < deadline, f"{job.id} is {job.state} and not settled"
            time.sleep(0.2)
        records = chaos.fabric.usage(job_id=job.id)
        assert sum(record.charged_uhs for record in records) == cost.burned_uhs
        assert cost.burned_uhs <= UHS_PER_CT // 2
        chaos.check_time(job, records)
        charged += cost.burned_uhs
    balance = chaos.fabric.balance()
    assert (balance.held_uhs, balance.free_uhs) == (0, CREDIT * UHS_PER_CT - charged)
    leases = chaos.operator.client.call(pb.ListLeasesRequest(), pb.ListLeasesReply).leases
    assert not [lease for lease in leases if lease.account_id == balance.account_id]
    calls = callers.check(chaos.cut_off)
    print(f"{calls} calls booked; {dict(callers.ends)}")
    assert calls
    lines = chaos.fabric.client.fetch(pb.ExportRequest()).decode().splitlines()
    report = verify_export(lines, trusted_key=place.found.verifier_key)
    assert report.ok, report.problem
    deadline = time.monotonic() + 30
    while left := marked(chaos.mark):
        assert time.monotonic() < deadline, [each.cmdline() for each in left if each.is_running()]
        time.sleep(0.5)
    deadline = time.monotonic() + GIVEN_BACK_S
    while json.loads(place.taken.read_text().splitlines()[-1])[1] != {}:
        assert time.monotonic() < deadline, f"devices are taken although nothing runs: {place.left()}"
        time.sleep(0.5)
    assert not {node: who[node] for node, seconds in longest.items() if seconds > UNLEASED_S}
