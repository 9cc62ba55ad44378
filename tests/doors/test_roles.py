"""Who may what: every call against every role, at both doors; members, wallets and projects through the door."""

import itertools
import json

import pytest

from fabric.api import grpc_server
from fabric.api.roles import ROLES
from fabric.errors import FabricError, NotFound, PermissionDenied, Unauthenticated
from fabric.gate.account_events import AddMember, CreateProject, OpenAccount
from fabric.gate.events import TopUp
from fabric.gate.key_scopes import OF_CUSTOMERS
from fabric.gate.roles import OF_MEMBERS, OF_OPERATORS, Role, of_scopes
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from fabric.wire import hash_secret
from fabric.wire.service import METHODS
from serving.gateway import roles as http_roles
from serving.gateway.directory import KeyFacts
from tests.doors.test_key_boundary import Context
from tests.doors.test_rpc import NAMES, ask, submit

LOOK_ONLY = (Role.READ_ONLY, Role.AUDITOR)
ENDS_ITSELF = {"RevokeKey"}
"""Any key may revoke itself."""
SCOPE_OF = {role: scope for scope, role in OF_OPERATORS.items()}


@pytest.fixture
def keys(house):
    """A key of each role: members of acme's, and the operator's."""
    made = {}
    for role in OF_MEMBERS:
        house.port.seed(AddMember(account_id="acme", member=role.value, role=role))
        made[role] = house.key("acme", f"m-{role.value}", member=role.value)
    for role, scope in SCOPE_OF.items():
        made[role] = house.key("op", f"o-{role.value}", operator=True, scopes=(scope,))
    return made


async def refused(door, call, api_key):
    try:
        await grpc_server._caller(door, call, Context(api_key))
    except PermissionDenied as refusal:
        return refusal.code
    return ""


def code_of(client, request):
    try:
        ask(client, request)
    except FabricError as refusal:
        return refusal.code
    return ""


def test_every_call_has_its_row_and_every_row_its_call():
    assert set(ROLES) == set(grpc_server.CALLS) == set(METHODS)
    assert all(grpc_server.CALLS[name].roles == row and row for name, row in ROLES.items())
    assert set(http_roles.ROLES) == {route.path for route in http_roles.WITH_A_KEY}
    assert set(SCOPE_OF) | set(OF_MEMBERS) == set(Role)


def test_a_call_without_a_row_is_for_nobody(house, keys):
    call = grpc_server.CALLS["Balance"]._replace(roles=frozenset())
    for api_key in keys.values():
        with pytest.raises(PermissionDenied):
            house.run(grpc_server._caller(house.door, call, Context(api_key)))


def test_every_call_is_let_in_for_its_roles_and_for_no_others(house, keys):
    for (role, api_key), (name, call) in itertools.product(keys.items(), grpc_server.CALLS.items()):
        code = house.run(refused(house.door, call, api_key))
        assert (code == "") == (role in ROLES[name]), (role, name)
        assert code in ("", "restricted_key", "operator_only")


@pytest.mark.parametrize("role", LOOK_ONLY)
def test_who_may_only_look_changes_nothing_with_any_call(house, keys, role):
    client = house.client(keys[role], account="" if role in OF_MEMBERS else "acme")
    for name in sorted(set(NAMES) - ENDS_ITSELF):
        house.port.batches.clear()
        code = code_of(client, NAMES[name])
        assert role in ROLES[name] or code in ("restricted_key", "operator_only")
        assert house.port.batches == [], name


def test_what_a_role_may_ask_for_its_scopes_are_good_for():
    """Of a customer's roles: a row that no key of that role could use would be a promise nobody keeps."""
    for role, scopes in OF_MEMBERS.items():
        for name, row in ROLES.items():
            assert role not in row or scopes & grpc_server.CALLS[name].scopes, (role, name)


def test_a_key_of_nobodys_may_what_its_scopes_always_allowed():
    """Keys from before there were roles: any set of scopes, any call."""
    new = {"CreateProject", "CloseProject", "AddMember", "SetRole", "RemoveMember", "SetLimit"}
    new |= {
        "AddEndpoint",
        "ListEndpoints",
        "RemoveEndpoint",
        "RotateSecret",
        "TestEndpoint",
        "ListDeliveries",
        "Redeliver",
    }
    for count in range(1, len(OF_CUSTOMERS) + 1):
        for scopes in itertools.combinations(sorted(OF_CUSTOMERS), count):
            role = of_scopes(scopes)
            for name, call in grpc_server.CALLS.items():
                assert name in new or call.scopes.isdisjoint(scopes) or role in ROLES[name], (scopes, name)


def test_every_route_is_let_in_for_its_roles_and_for_no_others():
    for route, role in itertools.product(http_roles.WITH_A_KEY, Role):
        key = KeyFacts(key_id="k", secret_sha256="", account_id="a", role=role.value)
        try:
            http_roles.check(route, key)
            let_in = True
        except PermissionDenied:
            let_in = False
        assert let_in == (role in http_roles.ROLES[route.path])
        assert let_in or role not in (Role.OWNER, Role.DEVELOPER)
        assert not let_in or role in OF_MEMBERS


# -- members, wallets, projects ----------------------------------------------------------------------------------------


def member_key(client, member, number, **more):
    made = pb.CreateKeyRequest(request_id=f"key-{number}", secret_sha256=hash_secret("s"), member=member, **more)
    return ask(client, made).key_id


def organisation(client):
    return json.loads(ask(client, pb.GetOrganisationRequest()).json)


def test_a_member_who_is_removed_is_nobody_at_once(house, keys):
    owner, developer = house.client(keys[Role.OWNER]), house.client(keys[Role.DEVELOPER])
    submit(developer)
    ask(owner, pb.SetRoleRequest(request_id="a", member="developer", role="read-only"))
    with pytest.raises(PermissionDenied):
        submit(developer)
    ask(owner, pb.RemoveMemberRequest(request_id="b", member="developer"))
    with pytest.raises(Unauthenticated) as refusal:
        ask(developer, pb.BalanceRequest())
    assert refusal.value.code == "member_left"


def test_a_developers_keys_are_its_own(house, keys):
    developer = house.client(keys[Role.DEVELOPER])
    made = ask(developer, pb.CreateKeyRequest(request_id="own", secret_sha256=hash_secret("s"))).key_id
    assert {key.key_id: key for key in ask(developer, pb.ListKeysRequest()).keys}[made].member == "developer"
    for request in (
        pb.CreateKeyRequest(request_id="x", secret_sha256=hash_secret("s"), member="owner"),
        pb.RevokeKeyRequest(request_id="y", key_id="k-m-read-only"),
        pb.AddMemberRequest(request_id="z", member="eve", role="read-only"),
    ):
        with pytest.raises(PermissionDenied) as refusal:
            ask(developer, request)
        assert refusal.value.code == "restricted_key"
    ask(developer, pb.RevokeKeyRequest(request_id="w", key_id=made))


def test_another_wallet_is_named_or_it_is_not_touched(house, keys):
    house.port.seed(
        OpenAccount(account_id="acme-2", name="Lab", plan="starter", organisation="acme"),
        TopUp(account_id="acme-2", amount_uhs=50 * UHS_PER_CT),
        CreateProject(account_id="acme", project="lab", wallet="acme-2"),
    )
    owner = house.client(keys[Role.OWNER])
    before = ask(owner, pb.BalanceRequest())
    assert (before.account_id, organisation(owner)["wallets"]) == ("acme", ["acme", "acme-2"])
    other = house.client(keys[Role.OWNER], account="acme-2")
    assert ask(other, pb.BalanceRequest()).account_id == "acme-2"
    # An owner may look there and buy for it; what a key runs, its own project's wallet pays, and no other.
    ask(other, pb.TopUpRequest(request_id="t", amount_uhs=UHS_PER_CT))
    with pytest.raises(PermissionDenied, match="acme pays, and no other wallet"):
        submit(other)
    assert ask(owner, pb.BalanceRequest()) == before
    for account, code in (("acme-2", "restricted_key"), ("globex", "operator_only")):
        with pytest.raises(PermissionDenied) as refusal:
            ask(house.client(keys[Role.DEVELOPER], account=account), pb.BalanceRequest())
        assert refusal.value.code == code
    made = member_key(owner, "developer", 1, project="lab")
    shown = {key.key_id: key for key in ask(other, pb.ListKeysRequest()).keys}[made]
    assert (shown.account_id, shown.project, shown.member) == ("acme-2", "lab", "developer")
    with pytest.raises(NotFound):
        member_key(owner, "", 2, project="nowhere")


def test_another_customers_organisation_is_none_of_ones_business(house, keys):
    house.port.seed(CreateProject(account_id="globex", project="theirs", wallet="globex"))
    owner = house.client(keys[Role.OWNER])
    assert "theirs" not in str(organisation(owner))
    for request in (
        pb.CloseProjectRequest(request_id="a", project="theirs"),
        pb.CreateKeyRequest(request_id="b", secret_sha256=hash_secret("s"), project="theirs"),
        pb.RemoveMemberRequest(request_id="c", member="nobody"),
    ):
        with pytest.raises(NotFound):
            ask(owner, request)


# -- suspended, and closed ---------------------------------------------------------------------------------------------


def test_the_keys_of_a_suspended_account_look_and_pay_and_do_nothing_else(house, keys):
    """All calls: those that are let in are what a reader may ask for, and two by which it is paid."""
    ask(
        house.client(house.root),
        pb.SuspendAccountRequest(request_id="s", account_id="acme", reason="unpaid since August"),
    )
    for role, (name, call) in itertools.product(OF_MEMBERS, grpc_server.CALLS.items()):
        code = house.run(refused(house.door, call, keys[role]))
        if role in ROLES[name]:
            looks = Role.READ_ONLY in ROLES[name] or name in ("AskPayment", "TopUp")
            assert code == ("" if looks else "account_suspended"), (role, name)
    with pytest.raises(PermissionDenied, match="unpaid since August"):
        submit(house.client())
    ask(house.client(), pb.TopUpRequest(request_id="t", amount_uhs=UHS_PER_CT))
    ask(house.client(house.root), pb.ResumeAccountRequest(request_id="r", account_id="acme"))
    submit(house.client())


def test_the_keys_of_a_closed_account_are_dead_and_the_operator_reads_on(house):
    job = submit(house.client()).job_id
    house.client().call(pb.BalanceRequest(), pb.BalanceReply)
    closes = pb.CloseAccountRequest(request_id="c", account_id="acme", reason="asked to", balance="forfeit")
    ask(house.client(house.root), closes)
    with pytest.raises(Unauthenticated) as refusal:
        ask(house.client(), pb.BalanceRequest())
    assert refusal.value.code == "account_closed"
    reader = house.client(house.root, account="acme")
    assert ask(reader, pb.GetJobRequest(job_id=job)).state in ("cancelled", "succeeded", "stopping")
    assert json.loads(house.client(house.root, account="acme").fetch(pb.StatementRequest()))["account_id"] == "acme"
