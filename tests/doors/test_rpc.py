"""What every call has in common, and what each may see: over TLS, with real keys, against the real gate."""

import asyncio
import json
from pathlib import Path
from typing import ClassVar

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from fabric.api.batcher import Batcher
from fabric.api.job_calls import blob_key, job_id_of
from fabric.api.rpc import CALLS
from fabric.api.tls import ensure_certificate
from fabric.charging.records import Cdr
from fabric.client import Client, facts_of, new_request_id
from fabric.errors import (
    Conflict,
    FabricError,
    InsufficientTokens,
    Internal,
    InvalidAmount,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from fabric.gate import views
from fabric.gate.events import Cancel
from fabric.gate.instructions import Accepted
from fabric.profile import Profile
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from fabric.wire.service import METHODS, SERVICE_NAME

SPEC = pb.JobSpec(name="noop", kind="script", devices=1, limit_uhs=UHS_PER_CT)
COMMAND = pb.Payload(command=["true"])


def submit(client, *, request_id=None, payload=COMMAND, **spec):
    made = pb.JobSpec(name="noop", kind="script", devices=1, limit_uhs=UHS_PER_CT)
    made.MergeFrom(pb.JobSpec(**spec))
    request = pb.SubmitRequest(request_id=request_id or new_request_id(), spec=made, payload=payload)
    return client.call(request, pb.SubmitReply)


def ask(client, request):
    """Any call: its answer, or the list of what it streams."""
    method = METHODS[type(request).__name__.removesuffix("Request")]
    return list(client.stream(request, method.reply)) if method.server_streams else client.call(request, method.reply)


def test_the_door_answers_every_call_of_the_schema_and_no_other():
    assert set(CALLS) == set(METHODS)


# -- who may ---------------------------------------------------------------------------------------------------------

EVERY_REQUEST = [
    pb.SubmitRequest(request_id="r", spec=SPEC, payload=COMMAND),
    pb.QuoteRequest(spec=SPEC),
    pb.GetJobRequest(job_id="JOB"),
    pb.ListJobsRequest(),
    pb.WatchJobsRequest(job_id="JOB"),
    pb.CancelRequest(request_id="r", job_id="JOB"),
    pb.PauseRequest(request_id="r", job_id="JOB"),
    pb.ResumeRequest(request_id="r", job_id="JOB"),
    pb.RaiseLimitRequest(request_id="r", job_id="JOB", limit_uhs=2 * UHS_PER_CT),
    pb.LogsRequest(job_id="JOB"),
    pb.ResultRequest(job_id="JOB"),
    pb.BalanceRequest(),
    pb.TopUpRequest(request_id="r", amount_uhs=1),
    pb.BuyBundleRequest(request_id="r", bundle="edge"),
    pb.SubscribeRequest(request_id="r", subscription="monthly"),
    pb.UnsubscribeRequest(request_id="r", subscription="monthly"),
    pb.UsageRequest(job_id="JOB"),
    pb.StatementRequest(),
    pb.PricesRequest(),
    pb.ReceiptsRequest(job_id="JOB"),
    pb.ExportRequest(),
    pb.AuthorizeRequest(request_id="r", hold_id="h", amount_uhs=1, ttl_us=1_000_000),
    pb.UpdateHoldRequest(hold_id="HOLD", seq=1, used_uhs=1),
    pb.SettleHoldRequest(hold_id="HOLD", seq=1, used_uhs=1),
    pb.ReleaseHoldRequest(hold_id="HOLD", seq=1),
    pb.CreateKeyRequest(request_id="r", secret_sha256="0" * 64),
    pb.ListKeysRequest(),
    pb.RevokeKeyRequest(request_id="r", key_id="KEY"),
    pb.OpenAccountRequest(request_id="r", account_id="new", plan="starter"),
    pb.GrantRequest(request_id="r", account_id="acme", amount_uhs=1),
    pb.ListAccountsRequest(),
    pb.ListNodesRequest(),
    pb.ListLeasesRequest(),
    pb.DrainNodeRequest(node_id="h0"),
    pb.ClosePeriodRequest(request_id="r", period="2027-01"),
]
NAMES = {type(request).__name__.removesuffix("Request"): request for request in EVERY_REQUEST}


def test_every_call_is_in_the_tables_below():
    assert set(NAMES) | {"PutBlob"} == set(METHODS)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_call_is_answered_without_a_key(house, name):
    stranger = house.client("fab_nobody_" + "0" * 64)
    with pytest.raises(Unauthenticated) as refusal:
        ask(stranger, NAMES[name])
    assert refusal.value.code == "key_unknown"
    assert house.port.batches == []


@pytest.mark.parametrize("name", sorted(name for name, call in CALLS.items() if call.operators_only))
def test_an_operators_call_is_refused_to_a_customer(house, name):
    with pytest.raises(PermissionDenied) as refusal:
        ask(house.client(), NAMES[name])
    assert refusal.value.code == "operator_only"
    assert house.port.batches == []


THINGS_OF_ANOTHER = ("JOB", "HOLD", "KEY")
NAMING = sorted(name for name, request in NAMES.items() if any(thing in str(request) for thing in THINGS_OF_ANOTHER))


@pytest.mark.parametrize("name", NAMING)
def test_what_belongs_to_another_is_answered_like_what_does_not_exist(house, name):
    house.port.run_jobs = False
    acme, globex = house.client(), house.client(house.globex)
    job = submit(acme).job_id
    acme.call(
        pb.AuthorizeRequest(request_id="a", hold_id="slice", amount_uhs=UHS_PER_CT, ttl_us=60_000_000), pb.Accepted
    )
    house.client(house.root, account="acme").call(
        pb.AuthorizeRequest(request_id="b", hold_id="slice", amount_uhs=UHS_PER_CT, ttl_us=60_000_000), pb.Accepted
    )
    before = _money(house)
    answers = []
    for names in (
        {"JOB": job, "HOLD": "slice", "KEY": "k-acme"},
        {"JOB": "job-nowhere", "HOLD": "nowhere", "KEY": "k-nowhere"},
    ):
        request = _with(NAMES[name], names)
        with pytest.raises(NotFound) as refusal:
            ask(globex, request)
        text = refusal.value.message
        for shown in sorted(names.values(), key=len, reverse=True):
            text = text.replace(shown, "IT")
        answers.append((refusal.value.code, text))
    assert answers[0] == answers[1]
    assert _money(house) == before


def _with(request, names):
    made = type(request)()
    made.CopyFrom(request)
    for field, value in request.ListFields():
        if isinstance(value, str) and value in names:
            setattr(made, field.name, names[value])
    return made


def _money(house):
    state = house.port.gate.state
    return {
        name: house.client(house.root, account=name).call(pb.BalanceRequest(), pb.BalanceReply)
        for name in state.accounts
    }


@pytest.mark.parametrize("name", ["ListJobs", "Usage", "ListKeys", "Export"])
def test_a_list_shows_ones_own_and_an_operator_sees_all(house, name):
    for key in (house.acme, house.globex):
        house.fabric(key).submit(lambda: None, tokens=1).wait(timeout=20)
    request = {"Usage": pb.UsageRequest()}.get(name, NAMES[name])
    own, other = str(ask(house.client(), request)), str(ask(house.client(house.globex), request))
    assert own != other
    everything = str(ask(house.client(house.root), request))
    assert len(everything) > max(len(own), len(other))
    as_acme = str(ask(house.client(house.root, account="acme"), request))
    assert as_acme == own


def test_a_customer_cannot_act_for_another(house):
    with pytest.raises(PermissionDenied) as refusal:
        house.client(account="globex").call(pb.BalanceRequest(), pb.BalanceReply)
    assert refusal.value.code == "operator_only"


def test_an_operator_says_for_whom(house):
    with pytest.raises(InvalidRequest) as refusal:
        house.client(house.root).call(pb.BalanceRequest(), pb.BalanceReply)
    assert refusal.value.code == "account_required"
    assert house.client(house.root, account="acme").call(pb.BalanceRequest(), pb.BalanceReply).account_id == "acme"


def test_a_payload_can_only_name_the_callers_own_blobs(house):
    data = b"of globex"
    sha256 = house.client(house.globex).put_blob(data)
    submit(house.client(), payload=pb.Payload(command=["true"], working_dir_sha256=sha256))
    [[event]] = house.port.batches
    assert blob_key("acme", sha256) in event.spec.payload
    assert blob_key("globex", sha256) not in event.spec.payload


def test_a_job_cannot_touch_the_hold_that_holds_it_up(house):
    house.port.run_jobs = False
    job_id = submit(house.client()).job_id
    hold_id = house.port.gate.state.jobs[job_id].hold_id
    with pytest.raises(NotFound):
        house.client().call(pb.SettleHoldRequest(hold_id=hold_id, seq=1), pb.Accepted)


# -- repeated, together, large ---------------------------------------------------------------------------------------


def test_a_repeated_request_gets_the_first_answer_and_other_content_is_a_conflict(house):
    client = house.client()
    first = submit(client, request_id="once")
    assert submit(client, request_id="once") == first
    assert len(client.call(pb.ListJobsRequest(), pb.ListJobsReply).jobs) == 1
    with pytest.raises(Conflict):
        submit(client, request_id="once", name="other")
    assert submit(house.client(house.globex), request_id="once").job_id != first.job_id
    assert first.job_id == job_id_of("acme", "once")


def test_an_answer_that_got_lost_is_asked_for_again_and_nothing_happens_twice(house):
    house.port.lose_answers = 2
    request = pb.TopUpRequest(request_id="pay", amount_uhs=5 * UHS_PER_CT)
    house.client().call(request, pb.Accepted)
    assert len(house.port.batches) == 3
    assert house.client().call(pb.BalanceRequest(), pb.BalanceReply).free_uhs == 105 * UHS_PER_CT


def test_a_fabric_that_is_away_is_unavailable_after_some_tries(house, monkeypatch):
    monkeypatch.setattr("fabric.client._ATTEMPTS", 2)
    house.port.away = True
    with pytest.raises(Unavailable, match="try again"):
        house.client().call(pb.ListNodesRequest(), pb.ListNodesReply)


async def test_what_arrives_while_the_gate_is_busy_goes_in_one_call():
    class SlowPort:
        calls: ClassVar = []

        async def decide(self, events):
            self.calls.append([event.job_id for event in events])
            await asyncio.sleep(0.01)
            return [Accepted() for _ in events]

    batcher = Batcher(SlowPort())
    await asyncio.gather(*(batcher.decide(Cancel(job_id=str(n), account_id="a")) for n in range(50)))
    assert SlowPort.calls[0] == ["0"] or len(SlowPort.calls[0]) == 50
    assert len(SlowPort.calls) <= 2
    assert [job for call in SlowPort.calls for job in call] == [str(n) for n in range(50)]


def test_a_blob_is_kept_under_its_hash_and_what_is_too_large_is_refused(make_house, limits):
    house = make_house(limits=limits(blob_bytes=3_000_000))
    client = house.client()
    sha256 = client.put_blob(b"x" * 3_000_000)
    assert len(house.port.blobs[blob_key("acme", sha256)]) == 3_000_000
    with pytest.raises(InvalidRequest, match="3000000") as refusal:
        client.put_blob(b"x" * 3_000_001)
    assert refusal.value.code == "blob_too_large"


def test_a_message_beyond_the_limit_is_refused(make_house, limits):
    house = make_house(limits=limits(request_bytes=100_000))
    with pytest.raises(InvalidRequest) as refusal:
        submit(house.client(), payload=pb.Payload(command=["x" * 200_000]))
    assert refusal.value.code == "too_large"


def test_too_many_requests_are_told_when_to_come_back(make_house, limits):
    house = make_house(limits=limits(requests_per_s=5))
    client = house.client()

    def ask_on():
        for _ in range(50):
            client.call(pb.BalanceRequest(), pb.BalanceReply)

    with pytest.raises(RateLimited) as refusal:
        ask_on()
    assert refusal.value.facts["retry_after_s"] == 1
    house.client(house.globex).call(pb.BalanceRequest(), pb.BalanceReply)


# -- watching --------------------------------------------------------------------------------------------------------


def test_a_watcher_hears_of_its_own_jobs_from_where_it_left_off(house):
    house.port.run_jobs = False
    acme, globex = house.client(), house.client(house.globex)
    stream = acme.stream(pb.WatchJobsRequest(), pb.JobUpdate)
    hello = next(stream)
    assert not hello.HasField("job")
    submit(globex)
    first = submit(acme).job_id
    seen = next(stream)
    assert (seen.job.job_id, seen.job.account_id) == (first, "acme")
    stream.cancel()
    second = submit(acme).job_id
    resumed = acme.stream(pb.WatchJobsRequest(after_revision=seen.revision), pb.JobUpdate)
    next(resumed)
    assert next(resumed).job.job_id == second
    resumed.cancel()


def test_watching_one_job_begins_with_its_state_and_ends_with_it(house):
    job = house.fabric().submit(lambda: "small", tokens=1)
    job.wait(timeout=20)
    updates = list(house.client().stream(pb.WatchJobsRequest(job_id=job.id, results=True), pb.JobUpdate))
    assert [update.HasField("job") for update in updates] == [False, True]
    assert b"small" in updates[-1].result


def test_the_result_of_a_job_that_has_not_ended_is_a_conflict(house):
    house.port.run_jobs = False
    with pytest.raises(Conflict) as refusal:
        house.client().fetch(pb.ResultRequest(job_id=submit(house.client()).job_id))
    assert refusal.value.code == "not_ended"


# -- bad input -------------------------------------------------------------------------------------------------------

BAD = [
    ({"accelerators": ["B9000"]}, "unknown_accelerator", "B9000"),
    ({"devices": -3}, "invalid_count", "devices"),
    ({"limit_uhs": -UHS_PER_CT - 5}, "invalid_amount", "limit_uhs"),
    ({"kind": "magic"}, "invalid_kind", "function, script, program, lease"),
    ({"service": "mining"}, "invalid_service", "training, batch, inference"),
    ({"hold": "half"}, "invalid_hold", "full, rolling"),
    ({"name": "x" * 201}, "invalid_name", "201"),
    ({"grace_us": -1}, "invalid_count", "grace_us"),
    ({"time_limit_us": 0}, "invalid_count", "time_limit_us"),
    ({"max_retries": -1}, "invalid_count", "max_retries"),
    ({"devices_per_node": 0}, "invalid_count", "devices_per_node"),
    ({"limit_uhs": 10**15}, "insufficient_tokens", "top up"),
    ({"devices": 10_000}, None, "10000"),
]


@pytest.mark.parametrize(("spec", "code", "says"), BAD)
def test_a_spec_that_makes_no_sense_gets_one_clear_error(house, spec, code, says):
    with pytest.raises(FabricError) as refusal:
        submit(house.client(), **spec)
    assert refusal.value.http_status in {400, 402}
    assert code is None or refusal.value.code == code
    assert (
        says.replace(" ", "") in refusal.value.message.replace(" ", "").replace(",", "")
        or says in refusal.value.message
    )
    assert not house.port.gate.state.jobs


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (pb.Payload(), "invalid_payload"),
        (pb.Payload(command=["true"], function=b"x"), "invalid_payload"),
        (pb.Payload(function=b"x" * 65_537), "payload_too_large"),
        (pb.Payload(function_sha256="../../globex"), "invalid_sha256"),
        (pb.Payload(command=["true"], working_dir_sha256="A" * 64), "invalid_sha256"),
        (pb.Payload(command=["true"], runtime_env_json="[]"), "invalid_runtime_env"),
        (pb.Payload(command=["true"], runtime_env_json="{"), "invalid_runtime_env"),
        (pb.Payload(command=["true"], runtime_env_json='{"working_dir": "/etc"}'), "invalid_runtime_env"),
        (pb.Payload(command=["true"], runtime_env_json='{"image_uri": "evil"}'), "invalid_runtime_env"),
    ],
)
def test_a_payload_that_makes_no_sense_is_refused(house, payload, code):
    with pytest.raises(InvalidRequest) as refusal:
        submit(house.client(), payload=payload)
    assert refusal.value.code == code
    assert house.port.batches == []


@pytest.mark.parametrize(
    "request_", [request for request in EVERY_REQUEST if "request_id" in type(request).DESCRIPTOR.fields_by_name],
    ids=lambda request: type(request).__name__,
)  # fmt: skip
def test_a_call_that_changes_something_needs_a_request_id(house, request_):
    job = submit(house.client()).job_id
    request = _with(request_, {"JOB": job, "KEY": "k-acme", "r": ""})
    house.port.batches.clear()
    with pytest.raises(InvalidRequest) as refusal:
        ask(house.client(house.root, account="acme"), request)
    assert refusal.value.code == "invalid_request_id"
    assert house.port.batches == []


def test_amounts_that_are_not_more_than_nothing_are_refused(house):
    for uhs in (0, -1):
        with pytest.raises(InvalidAmount):
            house.client().call(pb.TopUpRequest(request_id="r", amount_uhs=uhs), pb.Accepted)


def test_only_operators_book_payments_where_they_are_real(make_house):
    house = make_house(sandbox_payments=False)
    for request in (
        pb.TopUpRequest(request_id="r1", amount_uhs=1),
        pb.BuyBundleRequest(request_id="r2", bundle="edge"),
        pb.SubscribeRequest(request_id="r3", subscription="monthly"),
    ):
        with pytest.raises(PermissionDenied):
            house.client().call(request, pb.Accepted)
        house.client(house.root, account="acme").call(request, pb.Accepted)


def test_a_refusal_keeps_its_number_its_limit_and_its_remedy(house):
    with pytest.raises(InsufficientTokens) as refusal:
        submit(house.client(), limit_uhs=400 * UHS_PER_CT)
    assert "free" in refusal.value.message
    assert "top up" in refusal.value.message
    assert refusal.value.facts["free_uhs"] == 100 * UHS_PER_CT


def test_what_is_our_own_mistake_is_told_by_a_number_and_nothing_else(house, capsys):
    house.port.explode = RuntimeError("password=hunter2")
    with pytest.raises(Internal) as failure:
        house.client().call(pb.GetJobRequest(job_id="x"), pb.Job)
    assert "hunter2" not in str(failure.value)
    logged = capsys.readouterr().out + capsys.readouterr().err
    assert str(failure.value.facts.get("error_id", "?")) in failure.value.message
    assert house.acme.rsplit("_", 1)[1] not in logged


def test_a_hold_is_taken_used_and_settled(house):
    client = house.client(house.root, account="acme")
    authorize = pb.AuthorizeRequest(request_id="a", hold_id="slice-1", amount_uhs=UHS_PER_CT, ttl_us=60_000_000)
    assert client.call(authorize, pb.Accepted).granted_uhs == UHS_PER_CT
    client.call(pb.UpdateHoldRequest(hold_id="slice-1", seq=1, used_uhs=100, more_uhs=0), pb.Accepted)
    settled = client.call(pb.SettleHoldRequest(hold_id="slice-1", seq=2, used_uhs=50), pb.Accepted)
    assert facts_of(settled) is not None
    balance = client.call(pb.BalanceRequest(), pb.BalanceReply)
    assert (balance.held_uhs, balance.free_uhs) == (0, 100 * UHS_PER_CT - 150)
    with pytest.raises(NotFound):
        house.client().call(pb.ReleaseHoldRequest(hold_id="slice-1", seq=3), pb.Accepted)


# -- TLS and retries -------------------------------------------------------------------------------------------------


def test_plaintext_is_not_answered(house):
    method = METHODS["Balance"]
    with grpc.insecure_channel(house.address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE_NAME}/Balance",
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.reply.FromString,
        )
        with pytest.raises(grpc.RpcError) as failure:
            call(pb.BalanceRequest(), metadata=(("authorization", f"Bearer {house.acme}"),), timeout=5)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


def test_an_authority_that_is_not_trusted_is_named_with_the_remedy(house, tmp_path, monkeypatch):
    monkeypatch.setattr("fabric.client._ATTEMPTS", 1)
    other = ensure_certificate(tmp_path / "other")
    client = Client(Profile(address=house.address, api_key=house.acme, ca=str(other.ca)))
    with pytest.raises(FabricError) as failure:
        client.call(pb.BalanceRequest(), pb.BalanceReply)
    client.close()
    assert "FABRIC_CA" in failure.value.message or isinstance(failure.value, Unavailable)


def test_every_view_of_the_gate_is_shown_whole():
    pairs = [
        (views.JobView, pb.Job, set()),
        (views.BalanceView, pb.BalanceReply, set()),
        (views.LotView, pb.Lot, set()),
        (views.QuoteView, pb.QuoteReply, set()),
        (views.NodeView, pb.Node, set()),
        (views.LeaseView, pb.Lease, set()),
        (views.LogChunk, pb.LogChunk, set()),
        (views.KeyView, pb.Key, {"secret_sha256"}),
        (Cdr, pb.Cdr, set()),
    ]
    for view, message, hidden in pairs:
        assert set(view.__struct_fields__) - hidden == {field.name for field in message.DESCRIPTOR.fields}, view


def test_the_generated_code_is_that_of_the_schema(tmp_path):
    root = Path(__file__).parents[2]
    out = tmp_path / "schema.pb"
    assert protoc.main(["", f"-I{root}", f"--descriptor_set_out={out}", str(root / "fabric/wire/fabric.proto")]) == 0
    [fresh] = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    committed = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(committed)
    for message in fresh.message_type:
        for field in [*message.field, *(each for nested in message.nested_type for each in nested.field)]:
            field.ClearField("json_name")
    assert committed == fresh


def test_export_is_lines_of_json(house):
    for _ in range(3):
        submit(house.client())
    text = house.client().fetch(pb.ExportRequest())
    assert len([json.loads(line) for line in text.splitlines()]) == 3
