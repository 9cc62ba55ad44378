"""A key is a boundary: what it isn't for can't be done with it, whatever is asked, and in whatever order."""

import pytest

from fabric.api import grpc_server
from fabric.daemon import operator_keys
from fabric.errors import FabricError, InsufficientTokens, InvalidRequest, NotFound, PermissionDenied
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import Configure, NodeUp, Pool, RaiseLimit
from fabric.gate.key_scopes import OF_CUSTOMERS, OF_PROCESSES, KeyScope
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from fabric.wire import parse_key
from tests.doors.conftest import CATALOGUE, TARIFFS, StandInPort
from tests.doors.test_keys import create
from tests.doors.test_rpc import NAMES, ask, submit

CT = UHS_PER_CT


def refused(client, request):
    with pytest.raises(PermissionDenied) as refusal:
        ask(client, request)
    return refusal.value.code


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_call_says_which_keys_may_ask_for_it():
    assert all(call.scopes for call in grpc_server.CALLS.values())
    with pytest.raises(TypeError):
        grpc_server.Call(lambda *_: None)


@pytest.mark.parametrize("scope", sorted(OF_CUSTOMERS))
def test_a_key_with_one_scope_may_ask_for_that_alone(house, scope):
    client = house.client(house.key("acme", "narrow", scopes=(scope,)))
    for name, request in NAMES.items():
        if scope in grpc_server.CALLS[name].scopes:
            continue
        house.port.batches.clear()
        assert refused(client, request) == (
            "operator_only" if grpc_server.CALLS[name].operators_only else "restricted_key"
        )
        assert house.port.batches == []


@pytest.mark.parametrize("role", sorted(OF_PROCESSES))
def test_a_key_of_a_process_may_ask_for_what_that_needs_alone(house, role):
    client = house.client(house.key("op", "process", operator=True, scopes=(role,)), account="acme")
    allowed = {name for name, call in grpc_server.CALLS.items() if role in call.scopes}
    assert allowed == {
        KeyScope.GATEWAY: {"CallerOf", "ListModels", "PaymentNotice", "ReportServing", "WatchServing"},
        KeyScope.REPLICA: {"Authorize", "UpdateHold", "SettleHold", "ReleaseHold", "RecordCalls", "KeepUsage"},
        KeyScope.HOST: {
            "Submit", "GetJob", "ListJobs", "WatchJobs", "Cancel", "Result", "ListModels", "ReportServing", "WatchServing",
        },
    }[role]  # fmt: skip
    for name, request in NAMES.items():
        if name not in allowed:
            assert refused(client, request) == "restricted_key"
    assert house.port.batches == []


def test_the_hosts_key_leases_devices_and_touches_no_customers_job(house):
    house.port.run_jobs = False
    house.port.seed(NodeUp(node_id="r1", accelerator="H100", devices=8, pool=Pool.RESERVED))
    theirs = submit(house.client()).job_id
    host = house.client(house.key("op", "host", operator=True, scopes=(KeyScope.HOST,)), account="acme")
    assert refused(host, NAMES["Submit"]) == "restricted_key"
    lease = pb.JobSpec(name="serve", kind="lease", service="inference", devices=1, limit_uhs=CT)
    own = host.call(pb.SubmitRequest(request_id="lease", spec=lease), pb.SubmitReply).job_id
    assert [job.job_id for job in ask(host, pb.ListJobsRequest()).jobs] == [own]
    for request in (pb.GetJobRequest(job_id=theirs), pb.CancelRequest(request_id="c", job_id=theirs)):
        with pytest.raises(NotFound):
            ask(host, request)
    with pytest.raises(NotFound):
        ask(host, pb.ResultRequest(job_id=theirs))
    ask(host, pb.CancelRequest(request_id="end", job_id=own))


@pytest.mark.parametrize("kind", ["lease", "script"])
def test_no_customer_takes_the_class_of_inference_for_a_job_of_its_own(house, kind):
    house.port.run_jobs = False
    house.port.seed(NodeUp(node_id="r1", accelerator="H100", devices=8, pool=Pool.RESERVED))
    spec = pb.JobSpec(name="mine", kind=kind, service="inference", devices=1, limit_uhs=CT)
    assert refused(house.client(), pb.SubmitRequest(request_id="mine", spec=spec)) == "service_is_operators"


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_a_key_for_its_own_jobs_sees_and_touches_no_others(house):
    house.port.run_jobs = False
    main = house.client()
    others = submit(main).job_id
    narrow = house.client(house.key("acme", "ci", limit_uhs=5 * CT))
    own = submit(narrow).job_id
    assert [job.job_id for job in ask(narrow, pb.ListJobsRequest()).jobs] == [own]
    updates = narrow.stream(pb.WatchJobsRequest(after_revision=0), pb.JobUpdate)
    next(updates)
    assert next(updates).job.job_id == own
    updates.cancel()
    before = house.port.gate.state.jobs[others].limit_uhs, house.port.gate.state.jobs[others].state
    for request in (
        pb.GetJobRequest(job_id=others),
        pb.CancelRequest(request_id="a", job_id=others),
        pb.PauseRequest(request_id="b", job_id=others),
        pb.ResumeRequest(request_id="c", job_id=others),
        pb.RaiseLimitRequest(request_id="d", job_id=others, limit_uhs=60 * CT),
        pb.ForkRequest(request_id="e", job_id=others),
        pb.LogsRequest(job_id=others),
        pb.ResultRequest(job_id=others),
        pb.UsageRequest(job_id=others),
    ):
        with pytest.raises(NotFound):
            ask(narrow, request)
    assert (house.port.gate.state.jobs[others].limit_uhs, house.port.gate.state.jobs[others].state) == before
    ask(main, pb.CancelRequest(request_id="z", job_id=own))


def test_a_key_that_may_look_may_not_touch(house):
    house.port.run_jobs = False
    job = submit(house.client()).job_id
    reader = house.client(house.key("acme", "reader", scopes=(KeyScope.READ, KeyScope.JOBS_OWN)))
    assert ask(reader, pb.GetJobRequest(job_id=job)).job_id == job
    assert refused(reader, pb.CancelRequest(request_id="a", job_id=job)) == "restricted_key"
    assert refused(reader, pb.RaiseLimitRequest(request_id="b", job_id=job, limit_uhs=60 * CT)) == "restricted_key"


def test_a_limit_covers_what_is_raised_and_resumed(house):
    house.port.run_jobs = False
    others = submit(house.client()).job_id
    ask(house.client(), pb.PauseRequest(request_id="p", job_id=others))
    wide = house.client(house.key("acme", "wide", limit_uhs=5 * CT, scopes=(KeyScope.JOBS_ALL,)))
    for request in (
        pb.RaiseLimitRequest(request_id="a", job_id=others, limit_uhs=60 * CT),
        pb.ResumeRequest(request_id="b", job_id=others),
    ):
        assert refused(wide, request) == "restricted_key"
    own = submit(wide, limit_uhs=4 * CT).job_id
    with pytest.raises(InsufficientTokens) as refusal:
        ask(wide, pb.RaiseLimitRequest(request_id="c", job_id=own, limit_uhs=6 * CT))
    assert refusal.value.code == "key_limit_reached"
    ask(wide, pb.CancelRequest(request_id="d", job_id=others))


def test_a_limited_key_moves_no_money_unless_it_is_for_that(house):
    client = house.client(house.key("acme", "ci", limit_uhs=5 * CT))
    for name in ("TopUp", "BuyBundle", "Subscribe", "Unsubscribe"):
        assert refused(client, NAMES[name]) == "restricted_key"
    buyer = house.client(house.key("acme", "buyer", limit_uhs=5 * CT, scopes=(KeyScope.MONEY,)))
    ask(buyer, NAMES["TopUp"])


# -- making keys -------------------------------------------------------------------------------------------------------


def test_a_key_makes_none_that_may_do_more_than_itself(house):
    end = house.port.clock.now_us() + 60_000_000
    maker = house.client(house.key("acme", "maker", scopes=(KeyScope.KEYS, KeyScope.READ), expires_at_us=end))
    for number, more in enumerate(
        (
            {},
            {"scopes": ["read", "money"], "expires_at_us": end},
            {"scopes": ["read"]},
            {"scopes": ["read"], "expires_at_us": end + 1},
            {"limit_uhs": CT, "expires_at_us": end},
        )
    ):
        with pytest.raises(PermissionDenied) as refusal:
            create(maker, request_id=f"more{number}", **more)
        assert refusal.value.code == "restricted_key"
    made = create(maker, scopes=["read"], expires_at_us=end)
    assert ask(house.client(made), pb.ListJobsRequest()) is not None
    assert refused(maker, pb.RevokeKeyRequest(request_id="r", key_id="k-acme")) == "restricted_key"
    ask(maker, pb.RevokeKeyRequest(request_id="s", key_id=parse_key(made).key_id))


@pytest.mark.parametrize(
    "more",
    [
        {"scopes": ["keys"], "limit_uhs": CT},
        {"scopes": ["holds"], "limit_uhs": CT},
        {"scopes": ["holds"], "expires_at_us": 2**62},
        {"scopes": ["operator"]},
        {"scopes": ["replica"]},
        {"scopes": ["everything"]},
    ],
)
def test_a_key_that_could_not_keep_its_boundary_is_not_made(house, more):
    with pytest.raises(InvalidRequest) as refusal:
        create(house.client(), **more)
    assert refusal.value.code == "invalid_scope"


def test_a_list_of_keys_says_what_each_is_for_and_what_is_left(house):
    house.port.run_jobs = False
    create(house.client(), name="ci", limit_uhs=5 * CT, scopes=["jobs:own"])
    narrow = house.client(house.key("acme", "limited", limit_uhs=5 * CT))
    submit(narrow, limit_uhs=2 * CT)
    keys = {key.key_id: key for key in ask(house.client(), pb.ListKeysRequest()).keys}
    assert set(keys["k-acme"].scopes) == OF_CUSTOMERS
    assert list(keys["k-limited"].scopes) == ["jobs:own", "models"]
    assert (keys["k-limited"].spent_uhs, keys["k-limited"].held_uhs) == (0, 2 * CT)
    assert ["jobs:own"] in [list(key.scopes) for key in keys.values()]


def test_a_raise_by_another_key_counts_against_the_jobs_own(house):
    """Whoever asks for it, what a job spends is its own key's."""
    house.port.run_jobs = False
    narrow = house.client(house.key("acme", "ci", limit_uhs=5 * CT))
    own = submit(narrow, limit_uhs=4 * CT).job_id
    with pytest.raises(FabricError) as refusal:
        ask(house.client(), pb.RaiseLimitRequest(request_id="a", job_id=own, limit_uhs=6 * CT))
    assert refusal.value.code == "key_limit_reached"
    house.port.seed(RaiseLimit(job_id=own, account_id="acme", limit_uhs=5 * CT))
    assert house.port.gate.state.keys["k-ci"].held_uhs == 5 * CT


# -- the operator's processes ------------------------------------------------------------------------------------------


async def test_each_start_makes_keys_of_processes_anew_and_ends_old_ones(tmp_path):
    port, file = StandInPort(tmp_path), tmp_path / "keys" / "replica.key"
    port.seed(Configure(tariffs=TARIFFS, catalogue=CATALOGUE), OpenAccount(account_id="op", name="op", plan="starter"))
    made = []
    for _ in range(3):
        await operator_keys.renew(port, "op", role=KeyScope.REPLICA, file=file)
        made.append(parse_key(file.read_text()).key_id)
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
    keys = port.gate.state.keys
    assert [keys[key_id].revoked for key_id in made] == [True, False, False]
    assert {keys[key_id].scopes for key_id in made} == {(KeyScope.REPLICA,)}


async def test_the_operators_own_key_is_made_once(tmp_path):
    port, file = StandInPort(tmp_path), tmp_path / "operator.key"
    port.seed(Configure(tariffs=TARIFFS, catalogue=CATALOGUE), OpenAccount(account_id="op", name="op", plan="starter"))
    await operator_keys.ensure_root(port, "op", file=file)
    first = file.read_text()
    await operator_keys.ensure_root(port, "op", file=file)
    assert file.read_text() == first
    assert file.stat().st_mode & 0o777 == 0o600
