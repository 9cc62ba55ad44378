"""What every call has in common, and what each may see: over TLS, with real keys, against the real gate."""

import json
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from fabric.api.grpc_server import CALLS
from fabric.api.job_calls import blob_key
from fabric.api.tls import ensure_certificate
from fabric.charging.records import Cdr
from fabric.client.client import Client, new_request_id
from fabric.client.profile import Profile
from fabric.errors import (
    FabricError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from fabric.gate import views
from fabric.gate.organisation_views import KeyView
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
    pb.WhyRequest(job_id="JOB"),
    pb.ListJobsRequest(),
    pb.WatchJobsRequest(job_id="JOB"),
    pb.CancelRequest(request_id="r", job_id="JOB"),
    pb.PauseRequest(request_id="r", job_id="JOB"),
    pb.ResumeRequest(request_id="r", job_id="JOB"),
    pb.ListCheckpointsRequest(job_id="JOB"),
    pb.ListShardsRequest(job_id="JOB"),
    pb.FetchCheckpointRequest(job_id="JOB", draft="d"),
    pb.RollBackRequest(request_id="r", job_id="JOB", step=3),
    pb.DeleteCheckpointsRequest(request_id="r", job_id="JOB", keep=1),
    pb.ForkRequest(request_id="r", job_id="JOB"),
    pb.SaveNowRequest(request_id="r", job_id="JOB"),
    pb.RaiseLimitRequest(request_id="r", job_id="JOB", limit_uhs=2 * UHS_PER_CT),
    pb.LogsRequest(job_id="JOB"),
    pb.ArtifactRequest(job_id="JOB", name="model"),
    pb.ResultRequest(job_id="JOB"),
    pb.BalanceRequest(),
    pb.TopUpRequest(request_id="r", amount_uhs=1),
    pb.AskPaymentRequest(request_id="r", amount_uhs=UHS_PER_CT, provider="operator"),
    pb.GetPaymentRequest(payment_id="PAYMENT"),
    pb.ListPaymentsRequest(),
    pb.SetAutoTopUpRequest(request_id="r", on=False),
    pb.BuyBundleRequest(request_id="r", bundle="edge"),
    pb.SubscribeRequest(request_id="r", subscription="monthly"),
    pb.UnsubscribeRequest(request_id="r", subscription="monthly"),
    pb.UsageRequest(job_id="JOB"),
    pb.StatementRequest(),
    pb.PricesRequest(),
    pb.ReceiptsRequest(job_id="JOB"),
    pb.ExportRequest(),
    pb.ExportFocusRequest(),
    pb.LogCheckpointRequest(),
    pb.AuthorizeRequest(request_id="r", hold_id="h", amount_uhs=1, ttl_us=1_000_000),
    pb.UpdateHoldRequest(hold_id="HOLD", seq=1, used_uhs=1),
    pb.SettleHoldRequest(hold_id="HOLD", seq=1, used_uhs=1),
    pb.ReleaseHoldRequest(hold_id="HOLD", seq=1),
    pb.RecordCallsRequest(calls=[pb.Call(call_id="c", model="m", accelerator="H100", covered=True)]),
    pb.KeepUsageRequest(hold_id="h", call=pb.Call(call_id="c")),
    pb.ListModelsRequest(),
    pb.OfferModelRequest(request_id="r", spec=pb.ModelSpec(name="m", source="/m"), rates=[pb.Rate()]),
    pb.ScaleModelRequest(request_id="r", model="m", replicas_max=1),
    pb.WithdrawModelRequest(request_id="r", model="m"),
    pb.ReportServingRequest(reporter="host"),
    pb.WatchServingRequest(),
    pb.CallerOfRequest(key_id="k-acme"),
    pb.CreateKeyRequest(request_id="r", secret_sha256="0" * 64),
    pb.ListKeysRequest(),
    pb.RevokeKeyRequest(request_id="r", key_id="KEY"),
    pb.SetLimitRequest(request_id="r", key_id="KEY", terms=pb.LimitTerms(period="day", amount=1, warning=True)),
    pb.ListLimitsRequest(),
    pb.GetOrganisationRequest(),
    pb.CreateProjectRequest(request_id="r", project="dev", wallet="acme"),
    pb.CloseProjectRequest(request_id="r", project="dev"),
    pb.AddMemberRequest(request_id="r", member="eve", role="read-only"),
    pb.SetRoleRequest(request_id="r", member="eve", role="billing"),
    pb.RemoveMemberRequest(request_id="r", member="eve"),
    pb.OpenAccountRequest(request_id="r", account_id="new", plan="starter"),
    pb.SuspendAccountRequest(request_id="r", account_id="globex", reason="a test"),
    pb.ResumeAccountRequest(request_id="r", account_id="globex"),
    pb.CloseAccountRequest(request_id="r", account_id="globex", reason="a test", balance="refund"),
    pb.SetShareRequest(request_id="r", account_id="acme", weight_ppm=1_000_000),
    pb.SetCohortRequest(request_id="r", cohort="one", weight_ppm=1_000_000),
    pb.GetPolicyRequest(),
    pb.SetPolicyRequest(request_id="r", changes_json="{}"),
    pb.ListQuotasRequest(),
    pb.SetQuotaRequest(request_id="r", accelerator="H100", cohort="one", nominal=1),
    pb.GrantRequest(request_id="r", account_id="acme", amount_uhs=1),
    pb.VoidLotRequest(request_id="r", account_id="acme", lot_id="lot-1", reason="a mistake"),
    pb.CreditInvoiceRequest(
        request_id="r", account_id="acme", invoice_id="none", amount_microcny=10_000, reason="mistake"
    ),
    pb.RecordPaymentRequest(request_id="r", account_id="acme", amount_microcny=1, payment_ref="p"),
    pb.BookPaymentRequest(payment_id="PAYMENT", payment_ref="p", amount_microcny=1),
    pb.RefundPaymentRequest(request_id="r", payment_id="PAYMENT", reason="a mistake"),
    pb.PaymentNoticeRequest(provider="stripe"),
    pb.ReconcilePaymentsRequest(until_us=1),
    pb.ListSuspenseRequest(),
    pb.SettleSuspenseRequest(request_id="r", suspense_id="s", how="kept", reason="a mistake"),
    pb.ListAccountsRequest(),
    pb.ListNodesRequest(),
    pb.ListLeasesRequest(),
    pb.DrainNodeRequest(node_id="h0"),
    pb.ClosePeriodRequest(request_id="r", period="2027-01"),
    pb.ListOpenUsageRequest(),
    pb.CloseUsageRequest(request_id="r", account_id="acme", call_id="c", write_off=True),
    pb.AddEndpointRequest(request_id="r", url="https://hooks.example/"),
    pb.ListEndpointsRequest(),
    pb.RemoveEndpointRequest(endpoint_id="ENDPOINT"),
    pb.RotateSecretRequest(endpoint_id="ENDPOINT"),
    pb.TestEndpointRequest(request_id="r", endpoint_id="ENDPOINT"),
    pb.ListDeliveriesRequest(endpoint_id="ENDPOINT"),
    pb.RedeliverRequest(endpoint_id="ENDPOINT", notice_id="n"),
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


@pytest.mark.parametrize(
    "request_", [
        request
        for request in EVERY_REQUEST
        if "request_id" in type(request).DESCRIPTOR.fields_by_name and not isinstance(request, pb.AuthorizeRequest)
    ],
    ids=lambda request: type(request).__name__,
)  # fmt: skip
def test_a_call_that_changes_something_needs_a_request_id(house, request_):
    job = submit(house.client()).job_id
    request = _with(request_, {"JOB": job, "KEY": "k-acme", "PAYMENT": _payment(house), "r": ""})
    house.port.batches.clear()
    with pytest.raises(InvalidRequest) as refusal:
        ask(house.client(house.root, account="acme"), request)
    assert refusal.value.code == "invalid_request_id"
    assert house.port.batches == []


THINGS_OF_ANOTHER = ("JOB", "HOLD", "KEY", "PAYMENT", "ENDPOINT")
NAMING = sorted(
    name
    for name, request in NAMES.items()
    if any(thing in str(request) for thing in THINGS_OF_ANOTHER) and not CALLS[name].operators_only
)


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
    payment = _payment(house)
    endpoint = json.loads(ask(acme, NAMES["AddEndpoint"]).json)["endpoint"]["endpoint_id"]
    before = _money(house)
    answers = []
    for names in (
        {"JOB": job, "HOLD": "slice", "KEY": "k-acme", "PAYMENT": payment, "ENDPOINT": endpoint},
        {
            "JOB": "job-nowhere",
            "HOLD": "nowhere",
            "KEY": "k-nowhere",
            "PAYMENT": "nowhere",
            "ENDPOINT": "nowhere",
        },
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


def _payment(house):
    asked = pb.AskPaymentRequest(request_id="p", amount_uhs=UHS_PER_CT, provider="operator")
    return json.loads(ask(house.client(), asked).json)["payment"]["payment_id"]


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
    assert as_acme.replace("  shown_to_operator: true\n", "") == own


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
    monkeypatch.setattr("fabric.client.client._ATTEMPTS", 1)
    monkeypatch.setattr("fabric.client.client._ATTEMPTS_ONCE_KNOWN", 1)
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
        (views.LeaseView, pb.Lease, {"sampled"}),
        (views.LogChunk, pb.LogChunk, set()),
        (KeyView, pb.Key, {"secret_sha256"}),
        (Cdr, pb.Cdr, set()),
    ]
    for view, message, hidden in pairs:
        told = {field.name for field in message.DESCRIPTOR.fields} - {
            "shown_to_operator",
            "booked_uhs",
        }  # which the door knows alone
        assert set(view.__struct_fields__) - hidden == told, view


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
