"""Calls about keys, and those that only an operator may make."""

import re
from typing import Any, Final

from fabric.api.keys import Caller
from fabric.api.limit_calls import terms_of
from fabric.api.messages import (
    accepted,
    amount,
    at_least,
    identifier,
    message_of,
    reference,
    request_id,
    scope_of,
    several,
    short,
    word,
)
from fabric.api.service import ApiService
from fabric.errors import Conflict, InvalidRequest, NotFound, PermissionDenied
from fabric.gate.account_events import CreateKey, OpenAccount, RevokeKey
from fabric.gate.events import ClosePeriod, Grant, NodeDrain, RecordPayment, VoidLot
from fabric.gate.invoice_events import CreditInvoice
from fabric.gate.key_scopes import KeyScope
from fabric.gate.organisation_views import KeyView
from fabric.gate.questions import AccountsOf, KeyOf, KeysOf, LeasesOf, NodesOf, OpenUsageOf, OrganisationOf
from fabric.gate.roles import Role
from fabric.gate.serving_events import SettleUsage, WriteOffUsage
from fabric.gate.share_events import SetCohort, SetShare
from fabric.units import PPM, AccountId, KeyId, NodeId
from fabric.wire import fabric_pb2 as pb
from fabric.wire.keys import key_id_of

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
ORIGINS: Final = ("promotion", "refund")
_NAMED_MAX: Final = 20


async def create_key(door: ApiService, caller: Caller, request: pb.CreateKeyRequest) -> pb.CreateKeyReply:
    if request.operator and not caller.may(KeyScope.OPERATOR):
        raise PermissionDenied("only an operator makes operator keys", code="operator_only")
    if not _SHA256.fullmatch(request.secret_sha256):
        raise InvalidRequest("secret_sha256 is 64 digits of lower-case hex", code="invalid_sha256")
    account, project = await _pays(door, caller, request)
    limits = await terms_of(door, request.limits)
    key_id = KeyId(key_id_of(account, request_id(request.request_id)))
    event = CreateKey(
        key_id=key_id,
        account_id=account,
        secret_sha256=request.secret_sha256,
        name=request.name[:100],
        operator=request.operator,
        limit_uhs=amount("limit_uhs", request.limit_uhs) if request.HasField("limit_uhs") else None,
        expires_at_us=(
            at_least(door.clock.now_us(), "expires_at_us", request.expires_at_us)
            if request.HasField("expires_at_us")
            else None
        ),
        requests_per_min=at_least(0, "requests_per_min", request.requests_per_min),
        tokens_per_min=at_least(0, "tokens_per_min", request.tokens_per_min),
        scopes=tuple(dict.fromkeys(word(KeyScope, "scope", given) for given in several("scopes", request.scopes))),
        limits=limits,
        made_with=KeyId(caller.key_id),
        project=project,
        member=request.member or ("" if caller.role is Role.OWNER else caller.member),
        tags=tuple(request.tags),
        request_id=request.request_id,
    )
    await door.gate.decide(event)
    door.keys.forget(key_id)
    return pb.CreateKeyReply(key_id=key_id)


async def _pays(door: ApiService, caller: Caller, request: pb.CreateKeyRequest) -> tuple[AccountId, str]:
    """The account that pays for what is done with a new key, and its project: "" = that which is called like it."""
    if request.operator:
        return caller.home, ""
    account = caller.account
    project = request.project or (caller.project if account == caller.home and not caller.operator else "")
    if project in ("", account):
        return account, ""
    found: Any = await door.port.ask(OrganisationOf(account_id=account))
    each = next((each for each in found.projects if each.project == project), None) if found is not None else None
    if each is None:
        raise NotFound(f"there is no project {project!r}: `fabric projects ls` shows those there are", project=project)
    return AccountId(each.wallet), "" if each.wallet == project else project


async def list_keys(door: ApiService, caller: Caller, _: pb.ListKeysRequest) -> pb.ListKeysReply:
    keys: Any = await door.port.ask(KeysOf(account_id=caller.scope))
    if not keys:
        await door.check_customer(caller)
    return pb.ListKeysReply(keys=[message_of(key, pb.Key) for key in keys])


async def revoke_key(door: ApiService, caller: Caller, request: pb.RevokeKeyRequest) -> pb.Accepted:
    key = await door.port.ask(KeyOf(key_id=KeyId(request.key_id)))
    if not isinstance(key, KeyView) or (caller.scope is not None and _hidden(key, caller)):
        raise NotFound(f"there is no key {request.key_id!r}", key=request.key_id)
    if key.key_id != caller.key_id and not _at_most_as_strong(key, caller):
        raise PermissionDenied(
            "this key can revoke itself and, with the scope keys, those that may do no more than it: use another one",
            code="restricted_key",
            key_id=caller.key_id,
        )
    event = RevokeKey(
        key_id=KeyId(request.key_id),
        account_id=None if caller.operator else caller.home,
        request_id=request_id(request.request_id),
    )
    answer = accepted(await door.gate.decide(event))
    door.keys.forget(request.key_id)
    return answer


def _at_most_as_strong(key: KeyView, caller: Caller) -> bool:
    if caller.may(KeyScope.OPERATOR):
        return True
    if not caller.may(KeyScope.KEYS) or not caller.scopes.issuperset(KeyScope(scope) for scope in key.scopes):
        return False
    if caller.role is not Role.OWNER and caller.member != key.member:
        return False
    return caller.expires_at_us is None or (key.expires_at_us is not None and key.expires_at_us <= caller.expires_at_us)


def _hidden(key: KeyView, caller: Caller) -> bool:
    return key.account_id != caller.scope or (key.operator and not caller.operator)


async def open_account(door: ApiService, _: Caller, request: pb.OpenAccountRequest) -> pb.Accepted:
    event = OpenAccount(
        account_id=AccountId(identifier("account_id", request.account_id)),
        name=request.name or request.account_id,
        plan=request.plan,
        credit_limit_uhs=(
            at_least(0, "credit_limit_uhs", request.credit_limit_uhs) if request.HasField("credit_limit_uhs") else None
        ),
        weight_ppm=request.weight_ppm if request.HasField("weight_ppm") else PPM,
        cohort=request.cohort,
        organisation=AccountId(request.organisation),
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def set_share(door: ApiService, _: Caller, request: pb.SetShareRequest) -> pb.Accepted:
    event = SetShare(
        account_id=AccountId(short("account_id", request.account_id)),
        weight_ppm=request.weight_ppm if request.HasField("weight_ppm") else None,
        cohort=request.cohort if request.HasField("cohort") else None,
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def set_cohort(door: ApiService, _: Caller, request: pb.SetCohortRequest) -> pb.Accepted:
    event = SetCohort(
        cohort=short("cohort", request.cohort),
        weight_ppm=request.weight_ppm,
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def grant(door: ApiService, _: Caller, request: pb.GrantRequest) -> pb.Accepted:
    origin = request.origin or ORIGINS[0]
    if origin not in ORIGINS:
        raise InvalidRequest(f"origin {origin!r}: choose of {', '.join(ORIGINS)}", code="invalid_origin", given=origin)
    event = Grant(
        account_id=AccountId(request.account_id),
        amount_uhs=amount("amount_uhs", request.amount_uhs),
        origin=origin,
        scope=scope_of(request.scope),
        lifetime_us=at_least(1, "lifetime_us", request.lifetime_us) if request.HasField("lifetime_us") else None,
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def void_lot(door: ApiService, _: Caller, request: pb.VoidLotRequest) -> pb.Accepted:
    event = VoidLot(
        account_id=AccountId(request.account_id),
        lot_id=short("lot_id", request.lot_id),
        amount_uhs=amount("amount_uhs", request.amount_uhs) if request.HasField("amount_uhs") else None,
        reason=short("reason", request.reason),
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def record_payment(door: ApiService, _: Caller, request: pb.RecordPaymentRequest) -> pb.Accepted:
    event = RecordPayment(
        account_id=AccountId(request.account_id),
        amount_microcny=at_least(1, "amount_microcny", request.amount_microcny),
        payment_ref=reference("payment_ref", request.payment_ref),
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def credit_invoice(door: ApiService, caller: Caller, request: pb.CreditInvoiceRequest) -> pb.Accepted:
    event = CreditInvoice(
        account_id=AccountId(request.account_id),
        invoice_id=short("invoice_id", request.invoice_id),
        amount_microcny=at_least(1, "amount_microcny", request.amount_microcny),
        reason=short("reason", request.reason),
        by_key=KeyId(caller.key_id) if caller.key_id else None,
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def list_accounts(door: ApiService, _: Caller, __: pb.ListAccountsRequest) -> pb.ListAccountsReply:
    accounts: Any = await door.port.ask(AccountsOf())
    return pb.ListAccountsReply(accounts=[message_of(account, pb.BalanceReply) for account in accounts])


async def list_nodes(door: ApiService, _: Caller, __: pb.ListNodesRequest) -> pb.ListNodesReply:
    nodes: Any = await door.port.ask(NodesOf())
    return pb.ListNodesReply(nodes=[message_of(node, pb.Node) for node in nodes])


async def list_leases(door: ApiService, _: Caller, __: pb.ListLeasesRequest) -> pb.ListLeasesReply:
    leases: Any = await door.port.ask(LeasesOf())
    return pb.ListLeasesReply(leases=[message_of(lease, pb.Lease) for lease in leases])


async def list_open_usage(door: ApiService, _: Caller, __: pb.ListOpenUsageRequest) -> pb.ListOpenUsageReply:
    usage: Any = await door.port.ask(OpenUsageOf())
    unreported = sum(replica.unreported_calls for replica in door.board.shown().replicas)
    return pb.ListOpenUsageReply(usage=[message_of(each, pb.OpenUsage) for each in usage], unreported_calls=unreported)


async def close_usage(door: ApiService, _: Caller, request: pb.CloseUsageRequest) -> pb.Accepted:
    account_id, call_id = AccountId(short("account_id", request.account_id)), short("call_id", request.call_id)
    known_as, reason = request_id(request.request_id), short("reason", request.reason)
    event: SettleUsage | WriteOffUsage = SettleUsage(account_id=account_id, call_id=call_id, request_id=known_as)
    if request.write_off:
        event = WriteOffUsage(account_id=account_id, call_id=call_id, reason=reason, request_id=known_as)
    return accepted(await door.gate.decide(event))


async def drain_node(door: ApiService, _: Caller, request: pb.DrainNodeRequest) -> pb.Accepted:
    event = NodeDrain(
        node_id=NodeId(request.node_id), grace_us=at_least(0, "grace_us", request.grace_us), undo=request.undo
    )
    await _check_node(door, event.node_id)
    return accepted(await door.gate.decide(event))


async def _check_node(door: ApiService, node_id: NodeId) -> None:
    nodes: Any = await door.port.ask(NodesOf())
    states = {node.node_id: node.state for node in nodes}
    if node_id not in states:
        there = ", ".join(sorted(states)[:_NAMED_MAX]) or "none yet"
        more = f" and {len(states) - _NAMED_MAX} more" if len(states) > _NAMED_MAX else ""
        raise NotFound(f"there is no node {node_id!r}: there are {there}{more}", node=node_id)
    if states[node_id] == "down":
        raise Conflict(f"node {node_id} is down: it takes jobs again when it is back", code="node_down", node=node_id)


async def close_period(door: ApiService, _: Caller, request: pb.ClosePeriodRequest) -> pb.Accepted:
    event = ClosePeriod(period=request.period, request_id=request_id(request.request_id))
    return accepted(await door.gate.decide(event))
