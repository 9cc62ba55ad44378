"""A fabric in this process: the real gate and the real door, with a stand-in for the cluster and the archive."""

import asyncio
import base64
import threading
from collections import deque
from io import BytesIO

import cloudpickle
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from fabric.api.grpc_server import serve
from fabric.api.limits import Limits
from fabric.api.service import ApiService
from fabric.api.tls import ensure_certificate
from fabric.audit.records import Balances, Receipt, Sealed, Statement
from fabric.audit.usage import own
from fabric.charging.catalogue import Bundle, Catalogue, Component, Plan, Subscription
from fabric.charging.tariffs import Tariffs, Weight
from fabric.checkpoints.jobs import checkpoints_in
from fabric.cli import app
from fabric.client.client import Client
from fabric.client.profile import Profile
from fabric.clock import VirtualClock
from fabric.errors import NotFound, Unavailable
from fabric.gate.account_events import CreateKey, OpenAccount
from fabric.gate.events import (
    Configure,
    JobKind,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseStarted,
    NodeUp,
    Pause,
    Pool,
    TopUp,
)
from fabric.gate.gate import Gate
from fabric.gate.instructions import Accepted, RemoveLease, StartLease, StopLease
from fabric.gate.questions import (
    BookedOf,
    BookedPage,
    CheckpointOf,
    JobOf,
    JobsOf,
    ReceiptsOf,
    ReceiptsPage,
    RecordsOf,
    RecordsPage,
    StatementOf,
    StatementPage,
)
from fabric.gate.views import CHANGES_MAX, LogChunk
from fabric.journal.followers import Position
from fabric.notifications.desk import NoticeDesk
from fabric.notifications.rows import MADE
from fabric.notifications.scripts import SqliteScripts
from fabric.notifications.store import NoticeStore
from fabric.results import pack_error, pack_value
from fabric.sdk import Fabric
from fabric.storage.archive import DirectoryArchive, Kept, Stored
from fabric.storage.layout import lease_info_key, result_key
from fabric.storage.results import keep_result
from fabric.units import UHS_PER_CT
from fabric.wire import format_key, hash_secret
from fabric.worker.payload import read_payload

CATALOGUE = Catalogue(
    version=1,
    plans=(Plan(name="starter", tier_rank=2, price_microcny_per_ct=500_000, lifetime_days=30),),
    bundles=(
        Bundle(
            name="edge",
            price_microcny=9_000_000,
            components=(
                Component(asset="CT", amount=10 * UHS_PER_CT, share_microcny=6_000_000, lifetime_days=30),
                Component(asset="5g-min", amount=60, share_microcny=3_000_000, lifetime_days=30),
            ),
        ),
    ),
    subscriptions=(Subscription(name="monthly", plan="starter", price_microcny=4_000_000, amount_uhs=10 * UHS_PER_CT),),
)
TARIFFS = Tariffs(
    version=1,
    weights=(Weight(accelerator="H100", ppm=1_000_000), Weight(accelerator="A100", ppm=312_000)),
)
START_US = 1_700_000_000_000_000


class StandInPort:
    """A `GatePort` over the real gate; leases run on the spot, in this process, and finish at once."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = VirtualClock(START_US)
        self.gate = Gate()
        self.records, self.booked = [], []
        self.blobs, self.put_at = {}, {}
        self.batches = []
        self.away = False
        self.lose_answers = 0
        self.run_jobs = True
        self.pause_jobs = False
        self.explode = None
        self.exit_code = 0
        self.log_lines = {}
        self._changed = asyncio.Condition()
        self._latest = {}

    async def decide(self, events):
        self._reachable()
        self.batches.append(list(events))
        await asyncio.sleep(0)
        outcomes = self._apply(events)
        async with self._changed:
            self._changed.notify_all()
        if self.lose_answers:
            self.lose_answers -= 1
            raise Unavailable("the answer got lost", code="gate_restarting")
        return outcomes

    def seed(self, *events):
        for outcome in self._apply(events):
            assert isinstance(outcome, Accepted), outcome

    def _apply(self, events):
        outcomes, waiting = [], deque((event, True) for event in events)
        while waiting:
            event, asked = waiting.popleft()
            decision = self.gate.handle(event, self.clock.now_us())
            self.booked.append((len(self.booked), self.clock.now_us(), decision.transfers, decision.records))
            self.clock.advance(us=1000)
            self.records.extend(decision.records)
            if asked:
                outcomes.append(decision.outcome)
            waiting.extend((report, False) for report in self._carry_out(decision.instructions))
        for job_id in self.gate.take_changed():
            self._latest.pop(job_id, None)
            self._latest[job_id] = self.gate.state.jobs[job_id].revision
        return outcomes

    def _carry_out(self, instructions):
        for instruction in instructions:
            match instruction:
                case StartLease(lease=lease) if self.run_jobs or lease.kind is JobKind.LEASE:
                    yield from self._run(lease)
                case StopLease(lease_id=lease_id):
                    yield LeaseFinished(lease_id=lease_id, outcome=LeaseOutcome.SAVED)
                case RemoveLease(lease_id=lease_id):
                    yield LeaseRemoved(lease_id=lease_id)

    def _run(self, lease):
        if lease.kind is JobKind.LEASE:
            told = f'{{"lease_id": "{lease.lease_id}", "placement_group_id": "ab", "bundles": []}}'
            self.blobs[lease_info_key(lease.account_id, lease.job_id)] = told.encode()
        yield LeaseStarted(lease_id=lease.lease_id)
        if lease.kind is JobKind.LEASE:
            return
        if self.pause_jobs:
            yield Pause(job_id=lease.job_id, account_id=lease.account_id)
            return
        payload = read_payload(lease.payload)
        self.log_lines[lease.job_id] = f"running {lease.name}\n".encode()
        error, value = "", None
        if payload.is_call:
            pickled = self.blobs[payload.blob] if payload.blob else base64.b64decode(payload.inline)
            function, args, kwargs = cloudpickle.loads(pickled)
            try:
                value = function(*args, **kwargs)
            except Exception as failure:  # noqa: BLE001  # a job may raise what it likes
                value, error = failure, f"{type(failure).__name__}: {failure}"
        elif self.exit_code:
            error = f"exit code {self.exit_code}"
        exit_code = None if payload.is_call else self.exit_code
        key = result_key(lease.account_id, lease.job_id)
        result_ref = "" if self.exit_code else keep_result(self, key, pack_error(value) if error else pack_value(value))
        outcome = LeaseOutcome.FAILED if error else LeaseOutcome.SUCCEEDED
        yield LeaseFinished(
            lease_id=lease.lease_id, outcome=outcome, error=error, result_ref=result_ref, exit_code=exit_code
        )

    def put(self, key, data):
        self.blobs[key] = data

    async def ask(self, question):
        self._reachable()
        match question:
            case RecordsOf(account_id=account, job_id=job):
                found = [
                    each for each in self.records if account in (None, each.account_id) and job in (None, each.job_id)
                ]
                start = question.after[0] if question.after else 0
                after = replace(question, after=(start + 2,)) if len(found) > start + 2 else None
                return RecordsPage(records=tuple(found[start : start + 2]), following=after)
            case BookedOf(account_id=account, from_us=from_us, until_us=until_us):
                end = until_us if until_us is not None else 2**62
                found = [own(account, *each) for each in self.booked if from_us <= each[1] < end]
                start = question.after[0] if question.after else 0
                after = replace(question, after=(start + 2,)) if len(found) > start + 2 else None
                return BookedPage(entries=tuple(found[start : start + 2]), following=after)
            case CheckpointOf():
                return Sealed(note="note", key="key")
            case ReceiptsOf():
                one = Receipt(seq=1, leaf="", leaf_hash="00", proof=(), tree_size=2, checkpoint="note")
                return ReceiptsPage(receipts=(one,))
            case StatementOf(account_id=account):
                nothing = Balances()
                empty = Statement(
                    account_id=account, from_us=0, until_us=None, opening=nothing, closing=nothing, lines=(),
                    from_size=0, from_root="", until_size=0, until_root="", records=(),
                )  # fmt: skip
                return StatementPage(statement=empty)
            case _:
                return self.gate.ask(question, self.clock.now_us())

    async def changes(self, *, account_id, after_revision, timeout_s):
        self._reachable()
        async with self._changed:
            try:
                async with asyncio.timeout(timeout_s):
                    while not (found := self._since(account_id, after_revision)):
                        await self._changed.wait()
            except TimeoutError:
                return []
        return found

    def _since(self, account_id, after_revision):
        newer = [job_id for job_id, revision in self._latest.items() if revision > after_revision]
        views = [self.gate.ask(JobOf(job_id=job_id), self.clock.now_us()) for job_id in newer]
        return [view for view in views if account_id in (None, view.account_id)][:CHANGES_MAX]

    async def logs(self, job_id, *, offsets, follow):
        data = self.log_lines.get(job_id, b"")[offsets.get("1/0", 0) :]
        yield LogChunk(rank=0, attempt=1, offset=offsets.get("1/0", 0), data=data)

    async def put_blob(self, key, data):
        self._reachable()
        self.blobs[key], self.put_at[key] = data, self.clock.now_us()

    async def kept_blobs(self, prefix):
        kept = {key: data for key, data in self.blobs.items() if key.startswith(f"{prefix}/")}
        return [Kept(key, len(data), self.put_at.get(key, 0)) for key, data in kept.items()]

    async def archive_stored(self, prefix):
        size = sum(len(data) for key, data in self.blobs.items() if key.startswith(f"{prefix}/"))
        values = sum(key.startswith(f"{prefix}/") for key in self.blobs)
        return Stored(size, values) + DirectoryArchive(self.folder / "archive").stored(prefix)

    async def delete_blob(self, key):
        self.blobs.pop(key, None)

    async def fetch_blob(self, key, into):
        if key not in self.blobs:
            raise NotFound(f"nothing under {key}")
        into.write(self.blobs[key])

    async def small_blob(self, key, *, limit_bytes):
        kept = BytesIO()
        await self.fetch_blob(key, kept)
        return kept.getvalue() if len(kept.getvalue()) <= limit_bytes else None

    def checkpoints_of(self, account_id, job_id):
        return checkpoints_in(DirectoryArchive(self.folder / "archive"), account_id, job_id)

    async def from_archive(self, work):
        return await work

    async def export(self, *, account_id, since=None):
        for job in self.gate.ask(JobsOf(account_id=account_id), self.clock.now_us()):
            yield f'{{"job": "{job.job_id}"}}'.encode()

    def _reachable(self):
        if self.explode is not None:
            raise self.explode
        if self.away:
            raise Unavailable("the gate is restarting: try again", code="gate_restarting")


class House:
    """The door in a thread of its own, and how to reach it."""

    def __init__(self, tmp_path, **door):
        self.tls = ensure_certificate(tmp_path)
        self.folder = tmp_path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self.run(self._make_port())
        self.notices = NoticeStore(SqliteScripts(tmp_path / "notices", MADE))
        desk = NoticeDesk(self.notices, here=self._here, begun=lambda: None, now_us=self.port.clock.now_us)
        self.door = ApiService(self.port, clock=self.port.clock, notices=desk, **door)
        self.server = self.run(serve(self.door, tls=self.tls.read()))
        self.address = self.server.address
        self._opened = []
        self.furnish()

    async def _here(self):
        return Position(0)

    async def _make_port(self):
        return StandInPort(self.folder)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def furnish(self):
        self.port.seed(
            Configure(tariffs=TARIFFS, catalogue=CATALOGUE),
            *(NodeUp(node_id=f"h{i}", accelerator="H100", devices=8, pool=Pool.SPOT) for i in range(2)),
            NodeUp(node_id="a1", accelerator="A100", devices=8, pool=Pool.SPOT),
            OpenAccount(account_id="op", name="the operator", plan="starter"),
            OpenAccount(account_id="acme", name="Acme", plan="starter"),
            OpenAccount(account_id="globex", name="Globex", plan="starter"),
            TopUp(account_id="acme", amount_uhs=100 * UHS_PER_CT),
            TopUp(account_id="globex", amount_uhs=100 * UHS_PER_CT),
        )
        self.root = self.key("op", "root", operator=True)
        self.acme = self.key("acme", "acme")
        self.globex = self.key("globex", "globex")

    def key(self, account, name, **more):
        secret = (name + "-") * 40
        secret = "".join(letter for letter in secret if letter.isalnum() or letter == "-")[:64]
        self.port.seed(CreateKey(key_id=f"k-{name}", account_id=account, secret_sha256=hash_secret(secret), **more))
        return format_key(f"k-{name}", secret)

    def profile(self, api_key, account=""):
        return Profile(address=self.address, api_key=api_key, ca=str(self.tls.ca), account=account)

    def client(self, api_key=None, account=""):
        client = Client(self.profile(api_key or self.acme, account))
        self._opened.append(client)
        return client

    def fabric(self, api_key=None, account=""):
        fabric = Fabric(self.client(api_key, account))
        self._opened.append(fabric)
        return fabric

    def close(self):
        for opened in reversed(self._opened):
            opened.close()
        self.run(self.server.stop())
        self.run(self.notices.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path, sandbox_payments=True)
    yield made
    made.close()


@pytest.fixture
def make_house(tmp_path):
    made = []

    def make(**door):
        made.append(House(tmp_path, **door))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def limits():
    return Limits


@pytest.fixture
def run(house, monkeypatch, tmp_path):
    """Run a command as a customer, or as the operator."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("FABRIC_ADDRESS", house.address)
    monkeypatch.setenv("FABRIC_CA", str(house.tls.ca))

    def command(*words, key=None, code=0):
        monkeypatch.setenv("FABRIC_API_KEY", key or house.acme)
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == code, done.output + repr(done.exception)
        return done

    return command
