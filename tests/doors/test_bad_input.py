"""What can never succeed as written: one clear error, with the number, the limit and the remedy, and nothing changed."""

import pytest

from fabric.client.client import facts_of, new_request_id
from fabric.errors import (
    FabricError,
    InsufficientTokens,
    Internal,
    InvalidAmount,
    InvalidRequest,
    NotFound,
    PermissionDenied,
)
from fabric.gate.events import Configure
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from fabric.wire.service import METHODS
from tests.doors.conftest import CATALOGUE, TARIFFS

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


def test_amounts_that_are_not_more_than_nothing_are_refused(house):
    for uhs in (0, -1):
        with pytest.raises(InvalidAmount):
            house.client().call(pb.TopUpRequest(request_id="r", amount_uhs=uhs), pb.Accepted)


def test_only_operators_book_payments_where_they_are_real(make_house):
    house = make_house(sandbox_payments=False)
    purchases = {"TopUp": {"amount_uhs": 1}, "BuyBundle": {"bundle": "edge"}, "Subscribe": {"subscription": "monthly"}}
    for name, more in purchases.items():
        kind = getattr(pb, f"{name}Request")
        request = kind(request_id=f"r-{name}", payment_ref=f"INV-{name}", **more)
        with pytest.raises(PermissionDenied, match="pay the operator"):
            house.client().call(request, pb.Accepted)
        operator = house.client(house.root, account="acme")
        with pytest.raises(InvalidRequest, match="--payment-ref"):
            operator.call(kind(request_id=f"without-{name}", payment_ref="  ", **more), pb.Accepted)
        operator.call(request, pb.Accepted)


def test_where_payments_are_real_the_gate_itself_believes_no_customer(make_house):
    """The door is one of several, and each tells who says that it was paid: that nobody has is not enough for the gate."""
    house = make_house(sandbox_payments=True)
    house.port.seed(Configure(tariffs=TARIFFS, catalogue=CATALOGUE, payments="operator"))
    free_uhs = house.fabric().balance().free_uhs
    for request in (
        pb.TopUpRequest(request_id="r1", amount_uhs=1, payment_ref="x"),
        pb.BuyBundleRequest(request_id="r2", bundle="edge", payment_ref="y"),
        pb.SubscribeRequest(request_id="r3", subscription="monthly", payment_ref="z"),
    ):
        with pytest.raises(PermissionDenied, match="pay the operator"):
            house.client().call(request, pb.Accepted)
    assert house.fabric().balance().free_uhs == free_uhs


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
