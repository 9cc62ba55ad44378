"""Where an account is told: who may say so, what is shown of it, and that no secret is shown twice."""

import json

import pytest
from structlog.testing import capture_logs

from fabric.cli.app import app
from fabric.errors import Conflict, InvalidRequest, NotFound, PermissionDenied
from fabric.gate.account_events import AddMember
from fabric.gate.roles import Role
from fabric.notifications.store import ENDPOINTS_MAX
from fabric.wire import fabric_pb2 as pb

URL = "https://hooks.example/fabric"


def said(client, request):
    return json.loads(client.call(request, pb.Document).json)


def added(client, number=0, **more):
    return said(client, pb.AddEndpointRequest(request_id=f"r{number}", url=URL, **more))


def test_a_secret_is_shown_when_it_is_made_and_in_no_other_answer_journal_or_log(house):
    with capture_logs() as logs:
        client = house.client()
        first = added(client, kinds=["job.ended"])
        name = first["endpoint"]["endpoint_id"]
        again = added(client, kinds=["job.ended"])
        second = said(client, pb.RotateSecretRequest(endpoint_id=name))
        shown = [said(client, pb.ListEndpointsRequest()), said(client, pb.ListDeliveriesRequest(endpoint_id=name))]
    assert again == first, "asked again with the same request id it is the same endpoint"
    assert first["secret"].startswith("whsec_")
    assert first["secret"] != second["secret"]
    (endpoint,) = shown[0]
    assert (endpoint["url"], endpoint["kinds"], endpoint["secrets"]) == (URL, ["job.ended"], 2)
    for secret in (first["secret"], second["secret"]):
        assert secret not in json.dumps(shown)
        assert secret not in str(logs)
        assert secret not in str(house.port.batches)


def test_what_is_no_webhook_or_no_kind_is_refused_and_so_is_one_too_many(house):
    client = house.client()
    for request, code in (
        (pb.AddEndpointRequest(request_id="a", url="ftp://x/"), "invalid_url"),
        (pb.AddEndpointRequest(request_id="a", url=URL, kinds=["weather"]), "invalid_kind"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            said(client, request)
        assert refused.value.code == code
    for number in range(ENDPOINTS_MAX):
        added(client, number)
    with pytest.raises(Conflict) as full:
        added(client, ENDPOINTS_MAX)
    assert full.value.code == "too_many_endpoints"
    with pytest.raises(Conflict) as other:
        said(client, pb.AddEndpointRequest(request_id="r0", url=URL + "/else"))
    assert other.value.code == "idempotency_conflict"


@pytest.mark.parametrize(
    ("role", "may"), [("owner", True), ("developer", True), ("billing", False), ("read-only", False)]
)
def test_owners_and_developers_say_where_they_are_told_and_others_do_not(house, role, may):
    house.port.seed(AddMember(account_id="acme", member="eve", role=Role(role)))
    client = house.client(house.key("acme", "eves", member="eve"))
    if may:
        added(client)
        return
    with pytest.raises(PermissionDenied):
        added(client)


def test_a_test_is_sent_once_however_often_it_is_asked_with_the_same_id(house):
    client = house.client()
    name = added(client, kinds=["balance.runway"])["endpoint"]["endpoint_id"]
    first = said(client, pb.TestEndpointRequest(request_id="t", endpoint_id=name))
    assert said(client, pb.TestEndpointRequest(request_id="t", endpoint_id=name)) == first
    (delivery,) = said(client, pb.ListDeliveriesRequest(endpoint_id=name))
    assert (delivery["notice_id"], delivery["kind"], delivery["state"]) == (first["notice_id"], "test", "due")
    client.call(pb.RedeliverRequest(endpoint_id=name, notice_id=first["notice_id"]), pb.Accepted)
    client.call(pb.RemoveEndpointRequest(endpoint_id=name), pb.Accepted)
    with pytest.raises(NotFound):
        client.call(pb.RemoveEndpointRequest(endpoint_id=name), pb.Accepted)


def test_the_commands_add_list_test_rotate_redeliver_and_remove(house, monkeypatch):
    from typer.testing import CliRunner

    profile = house.profile(house.acme)
    for name, value in (("ADDRESS", profile.address), ("API_KEY", profile.api_key), ("CA", profile.ca)):
        monkeypatch.setenv(f"FABRIC_{name}", value)

    def run(*words):
        found = CliRunner().invoke(app, ["notices", *words, "--json"])
        assert found.exit_code == 0, found.output
        return json.loads(found.stdout)

    made = run("add", URL, "--of", "job.ended, job.parked")
    name = made["endpoint_id"]
    assert made["kinds"] == ["job.ended", "job.parked"]
    assert run("rotate", name)["secret"] != made["secret"]
    notice = run("test", name)["notice_id"]
    assert [each["notice_id"] for each in run("deliveries", name)] == [notice]
    assert run("redeliver", name, notice)["notice_id"] == notice
    assert [each["secrets"] for each in run("ls")] == [2]
    for words in (["ls"], ["deliveries", name]):
        assert CliRunner().invoke(app, ["notices", *words]).exit_code == 0
    assert run("rm", name)["removed"]
    assert run("ls") == []
