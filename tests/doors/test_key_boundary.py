"""Any sequence of calls with a restricted key: nothing beyond its limit, no other key's job, no money, no stronger key."""

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.api import grpc_server
from fabric.api.service import ApiService
from fabric.gate.account_events import CreateKey, OpenAccount
from fabric.gate.events import Configure, NodeUp, Pool, TopUp
from fabric.gate.key_scopes import OF_CUSTOMERS, KeyScope
from fabric.units import UHS_PER_CT
from fabric.wire import ERROR_METADATA, decode_error, format_key, hash_secret
from fabric.wire import fabric_pb2 as pb
from fabric.wire.service import METHODS
from tests.doors.conftest import CATALOGUE, TARIFFS, StandInPort

CT = UHS_PER_CT


class Refused(Exception):
    pass


class Context:
    """What a handler is given, without a network."""

    def __init__(self, api_key):
        self.api_key = api_key

    def invocation_metadata(self):
        return (("authorization", f"Bearer {self.api_key}"),)

    def peer(self):
        return "ipv4:127.0.0.1:1"

    async def abort(self, _code, _text, trailing_metadata):
        raise Refused(decode_error(dict(trailing_metadata)[ERROR_METADATA]))


async def said(request):
    yield request.SerializeToString()


async def handled(door, api_key, request):
    name = type(request).__name__.removesuffix("Request")
    method, context = METHODS[name], Context(api_key)
    try:
        if method.server_streams:
            answers = grpc_server._streaming(door, method, grpc_server.CALLS[name])(said(request), context)
            return [each async for each in answers]
        return await grpc_server._answering(door, method, grpc_server.CALLS[name])(said(request), context)
    except Refused as refusal:
        return refusal.args[0]


AMOUNTS = (1, CT, 3 * CT, 5 * CT, 60 * CT)
LIMIT = 5 * CT
JOBS = st.sampled_from(["first", "parked", "own", "last"])
SCOPES = st.sets(st.sampled_from(sorted(OF_CUSTOMERS)), max_size=3)
STEPS = st.lists(
    st.tuples(
        st.sampled_from([
            "Submit", "Submit", "Cancel", "Pause", "Resume", "RaiseLimit", "RaiseLimit", "Fork", "TopUp", "BuyBundle", "Subscribe",
            "Authorize", "UpdateHold", "SettleHold", "ReleaseHold", "CreateKey", "RevokeKey", "SaveNow", "RollBack", "Grant",
        ]),
        JOBS,
        st.sampled_from(AMOUNTS),
        st.booleans(),
    ),
    max_size=15,
)  # fmt: skip


def request_of(name, job, amount, number, *, rolling):
    made = {
        "Submit": lambda: pb.SubmitRequest(
            spec=pb.JobSpec(
                name="j", kind="script", devices=1, limit_uhs=amount, hold="rolling" if rolling else "full"
            ),
            payload=pb.Payload(command=["true"]),
        ),
        "RaiseLimit": lambda: pb.RaiseLimitRequest(job_id=job, limit_uhs=amount),
        "TopUp": lambda: pb.TopUpRequest(amount_uhs=amount),
        "BuyBundle": lambda: pb.BuyBundleRequest(bundle="edge"),
        "Subscribe": lambda: pb.SubscribeRequest(subscription="monthly"),
        "Authorize": lambda: pb.AuthorizeRequest(hold_id="h", amount_uhs=amount, ttl_us=60_000_000),
        "UpdateHold": lambda: pb.UpdateHoldRequest(hold_id="h", seq=number + 1, used_uhs=amount, more_uhs=amount),
        "SettleHold": lambda: pb.SettleHoldRequest(hold_id="h", seq=number + 1, used_uhs=amount),
        "ReleaseHold": lambda: pb.ReleaseHoldRequest(hold_id="h", seq=number + 1),
        "CreateKey": lambda: pb.CreateKeyRequest(
            secret_sha256=hash_secret("s" * 64), scopes=["read"] if rolling else []
        ),
        "RevokeKey": lambda: pb.RevokeKeyRequest(key_id="k-main"),
        "Grant": lambda: pb.GrantRequest(account_id="acme", amount_uhs=amount),
    }.get(name)
    request = made() if made else METHODS[name].request(job_id=job)
    if "request_id" in request.DESCRIPTOR.fields_by_name:
        request.request_id = f"r{number}"
    return request


def worth(port):
    """What the account has and what it owes, all lots together."""
    balance = port.gate.state.book.balance("acme", now_us=port.clock.now_us())
    return balance.posted_uhs, balance.held_uhs, balance.debt_uhs


async def tried(folder, scopes, limited, steps):
    port = StandInPort(folder)
    port.run_jobs = False
    secret = "s" * 64
    port.seed(
        Configure(tariffs=TARIFFS, catalogue=CATALOGUE),
        NodeUp(node_id="h1", accelerator="H100", devices=8, pool=Pool.SPOT),
        OpenAccount(account_id="acme", name="Acme", plan="starter"),
        TopUp(account_id="acme", amount_uhs=100 * CT),
        CreateKey(key_id="k-main", account_id="acme", secret_sha256=hash_secret(secret)),
        CreateKey(
            key_id="k-tried",
            account_id="acme",
            secret_sha256=hash_secret(secret),
            scopes=tuple(sorted(scopes)),
            limit_uhs=LIMIT if limited else None,
        ),
    )
    door = ApiService(port, clock=port.clock, sandbox_payments=True, batched=False)
    jobs = {}
    for number, name in enumerate(("first", "parked"), 900):
        reply = await handled(door, format_key("k-main", secret), request_of("Submit", "", CT, number, rolling=False))
        jobs[name] = reply.job_id
    await handled(door, format_key("k-main", secret), pb.PauseRequest(request_id="p", job_id=jobs["parked"]))
    state, others = port.gate.state, dict(jobs)
    before, keys = {job: snapshot(state.jobs[job]) for job in others.values()}, set(state.keys)
    posted, held, _ = worth(port)
    key = state.keys["k-tried"]
    may = frozenset(KeyScope(scope) for scope in scopes) or (
        frozenset((KeyScope.JOBS_OWN, KeyScope.MODELS)) if limited else OF_CUSTOMERS
    )
    for number, (name, job, amount, rolling) in enumerate(steps):
        job_id = jobs.get(job, "job-none")
        answer = await handled(
            door, format_key("k-tried", secret), request_of(name, job_id, amount, number, rolling=rolling)
        )
        if isinstance(answer, pb.SubmitReply):
            jobs.setdefault("own", answer.job_id)
            jobs["last"] = answer.job_id
        assert answer is not None
    if limited:
        assert key.spent_uhs + key.held_uhs <= LIMIT
        now_posted, now_held, debt = worth(port)
        spent = (now_held - held) + (posted - now_posted)
        if KeyScope.MONEY not in may:
            assert max(now_held - held, spent - now_held + held) <= LIMIT
        assert debt == 0
    if KeyScope.MONEY not in may:
        assert worth(port)[0] <= posted
    if KeyScope.JOBS_ALL not in may:
        assert {job: snapshot(state.jobs[job]) for job in others.values()} == before
    if KeyScope.KEYS not in may:
        assert set(state.keys) == keys
        assert not state.keys["k-main"].revoked
    assert may.issuperset(
        scope
        for made in set(state.keys) - keys
        for scope in KeyScope.__members__.values()
        if scope in scopes_made(port, made)
    )
    port.gate.check()


def scopes_made(port, key_id):
    found = port.gate.state.keys[key_id]
    return found.scopes


def snapshot(job):
    return job.state, job.reason, job.limit_uhs, job.held_uhs, job.resume_asked, job.saved_step


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCOPES, st.booleans(), STEPS)
def test_no_sequence_of_calls_gets_a_key_beyond_its_boundary(scopes, limited, steps):
    if limited:
        scopes = scopes - {KeyScope.KEYS, KeyScope.HOLDS}
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(tried(Path(folder), scopes, limited, steps))
