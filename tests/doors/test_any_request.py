"""Any request whatever, of a customer or an operator: an answer or a clear no, a sound ledger, a journal that reads back."""

import asyncio
import inspect
import tempfile
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor as Field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.api.grpc_server import CALLS
from fabric.api.keys import Caller
from fabric.api.service import ApiService
from fabric.errors import FabricError, Internal
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import Configure, NodeUp, Pool, TopUp
from fabric.gate.key_scopes import OF_CUSTOMERS, OF_PROCESSES, KeyScope
from fabric.journal.encoding import decided, decode_entry, entries_of
from fabric.units import UHS_PER_CT
from fabric.wire import encode_error
from fabric.wire.service import METHODS
from tests.doors.conftest import CATALOGUE, TARIFFS, StandInPort

WORDS = (
    "", "r1", "r2", "r3", "h1", "own:acme:h1", "acme", "globex", "starter", "edge", "monthly", "H100", "A100", "any",
    "function", "script", "program", "lease", "training", "inference", "full", "rolling", "queued", "promotion", "2026-11",
    "a\0b", "汉" * 70, "#", "job-1#1", "../../etc", "x" * 201, "0" * 64, '{"pip": []}', "[1]", "\U0001f600", "-", "k" * 16,
)  # fmt: skip
NUMBERS = (0, 1, 2, 1000, UHS_PER_CT, 60_000_000, 2**31 - 1, 2**62, 2**63 - 1, -1, -(2**31), -(2**63))
ROOT = frozenset((KeyScope.OPERATOR,))
CALLERS = (
    Caller(key_id="k-acme", operator=False, home="acme", scopes=OF_CUSTOMERS),
    Caller(key_id="k-globex", operator=False, home="globex", scopes=frozenset((KeyScope.JOBS_OWN,)), limited=True),
    Caller(key_id="k-root", operator=True, home="op", acts_for="acme", scopes=ROOT),
    Caller(key_id="k-root", operator=True, home="op", scopes=ROOT),
    *(
        Caller(key_id="k-role", operator=True, home="op", acts_for="acme", scopes=frozenset((role,)))
        for role in sorted(OF_PROCESSES)
    ),
)
ENDLESS = ("WatchJobs", "Logs", "WatchServing")
UNARY = sorted(name for name, method in METHODS.items() if not (method.client_streams or name in ENDLESS))


class Journal(StandInPort):
    """Writes down what the gate decides, and insists that it can be read again."""

    def __init__(self, folder):
        super().__init__(folder)
        self.leaves = []
        self._handle, self.gate.handle = self.gate.handle, self.handle

    def handle(self, event, now_us):
        decision = self._handle(event, now_us)
        for entry in entries_of(len(self.leaves), at_us=now_us, event=event, decision=decision):
            recorded = decode_entry(entry.leaf)
            assert recorded.event in (event, None)
            self.leaves.append(recorded)
        return decision

    def check(self):
        self.gate.check()
        again = Gate()
        for recorded in self.leaves:
            if recorded.event is not None:
                outcome = again.handle(recorded.event, recorded.at_us).outcome
                assert decided(outcome) == recorded.outcome
        assert again.snapshot() == self.gate.snapshot() == Gate.restore(self.gate.snapshot()).snapshot()


def value_of(field):
    match field.type:
        case Field.TYPE_STRING:
            return st.sampled_from(WORDS)
        case Field.TYPE_BYTES:
            return st.sampled_from((b"", b"x", b"\xff" * 5_000))
        case Field.TYPE_BOOL:
            return st.booleans()
        case Field.TYPE_MESSAGE:
            return message_of(field.message_type._concrete_class)
        case Field.TYPE_INT32 | Field.TYPE_UINT32:
            return st.sampled_from([each for each in NUMBERS if -(2**31) <= each < 2**31])
        case _:
            return st.sampled_from(NUMBERS)


@st.composite
def message_of(draw, kind):
    made = kind()
    for field in kind.DESCRIPTOR.fields:
        if draw(st.integers(0, 5)) == 0:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name
            given_ = draw(st.dictionaries(value_of(entry["key"]), value_of(entry["value"]), max_size=2))
            getattr(made, field.name).update(given_)
        elif field.is_repeated:
            getattr(made, field.name).extend(draw(st.lists(value_of(field), max_size=3)))
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(draw(value_of(field)))
        else:
            setattr(made, field.name, draw(value_of(field)))
    return made


CALL = st.sampled_from(UNARY).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from(CALLERS), message_of(METHODS[name].request))
)


async def answer(door, name, caller, request):
    call = CALLS[name]
    if caller.scopes.isdisjoint(call.scopes):
        return
    try:
        answered = call.run(door, caller, request)
        if inspect.isasyncgen(answered):
            async for each in answered:
                each.SerializeToString()
        else:
            (await answered).SerializeToString()
    except Internal:
        raise
    except FabricError as refusal:
        encode_error(refusal)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(calls=st.lists(CALL, min_size=5, max_size=25), run_jobs=st.booleans())
def test_any_request_gets_an_answer_and_leaves_a_journal_that_reads_back(calls, run_jobs):
    async def go(folder):
        port = Journal(folder)
        port.run_jobs = run_jobs
        port.seed(
            Configure(tariffs=TARIFFS, catalogue=CATALOGUE),
            NodeUp(node_id="h1", accelerator="H100", devices=8, pool=Pool.SPOT),
            *(OpenAccount(account_id=name, name=name, plan="starter") for name in ("op", "acme", "globex")),
            *(TopUp(account_id=name, amount_uhs=100 * UHS_PER_CT) for name in ("acme", "globex")),
        )
        port._run = lambda lease: iter(())
        door = ApiService(port, clock=port.clock, sandbox_payments=True)
        for name, caller, request in calls:
            await answer(door, name, caller, request)
        port.check()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(go(Path(folder)))
