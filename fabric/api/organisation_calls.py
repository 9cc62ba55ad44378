"""Calls about organisations: their wallets, projects and members. Whose is meant is said by the key, never by the request."""

from typing import Any

import msgspec

from fabric.api.keys import Caller
from fabric.api.messages import accepted, request_id, short, word
from fabric.api.service import ApiService
from fabric.gate.account_events import (
    AddMember,
    CloseAccount,
    CloseProject,
    CreateProject,
    RemoveMember,
    ResumeAccount,
    SetRole,
    SuspendAccount,
)
from fabric.gate.events import AnyEvent
from fabric.gate.questions import OrganisationOf
from fabric.gate.roles import Role
from fabric.units import AccountId, KeyId
from fabric.wire import fabric_pb2 as pb


async def get_organisation(door: ApiService, caller: Caller, _: pb.GetOrganisationRequest) -> pb.Document:
    found: Any = await door.port.ask(OrganisationOf(account_id=caller.account))
    if found is None:
        await door.check_customer(caller)
    return pb.Document(json=msgspec.json.encode(found))


async def create_project(door: ApiService, caller: Caller, request: pb.CreateProjectRequest) -> pb.Accepted:
    event = CreateProject(
        account_id=caller.account,
        project=short("project", request.project),
        wallet=AccountId(short("wallet", request.wallet)),
        name=request.name,
        tags=tuple(request.tags),
        by_key=KeyId(caller.key_id),
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def close_project(door: ApiService, caller: Caller, request: pb.CloseProjectRequest) -> pb.Accepted:
    event = CloseProject(
        account_id=caller.account,
        project=short("project", request.project),
        by_key=KeyId(caller.key_id),
        request_id=request_id(request.request_id),
    )
    return await _of_keys(door, event)


async def add_member(door: ApiService, caller: Caller, request: pb.AddMemberRequest) -> pb.Accepted:
    event = AddMember(
        account_id=caller.account,
        member=short("member", request.member),
        role=word(Role, "role", request.role),
        name=request.name,
        by_key=KeyId(caller.key_id),
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def set_role(door: ApiService, caller: Caller, request: pb.SetRoleRequest) -> pb.Accepted:
    event = SetRole(
        account_id=caller.account,
        member=short("member", request.member),
        role=word(Role, "role", request.role),
        by_key=KeyId(caller.key_id),
        request_id=request_id(request.request_id),
    )
    return await _of_keys(door, event)


async def remove_member(door: ApiService, caller: Caller, request: pb.RemoveMemberRequest) -> pb.Accepted:
    """Its keys are dead at this door before it is answered, and elsewhere within two seconds."""
    event = RemoveMember(
        account_id=caller.account,
        member=short("member", request.member),
        by_key=KeyId(caller.key_id),
        request_id=request_id(request.request_id),
    )
    return await _of_keys(door, event)


async def suspend_account(door: ApiService, _: Caller, request: pb.SuspendAccountRequest) -> pb.Accepted:
    event = SuspendAccount(
        account_id=AccountId(short("account_id", request.account_id)),
        reason=short("reason", request.reason),
        organisation=request.organisation,
        request_id=request_id(request.request_id),
    )
    return await _of_keys(door, event)


async def resume_account(door: ApiService, _: Caller, request: pb.ResumeAccountRequest) -> pb.Accepted:
    event = ResumeAccount(
        account_id=AccountId(short("account_id", request.account_id)),
        organisation=request.organisation,
        request_id=request_id(request.request_id),
    )
    return await _of_keys(door, event)


async def close_account(door: ApiService, _: Caller, request: pb.CloseAccountRequest) -> pb.Accepted:
    event = CloseAccount(
        account_id=AccountId(short("account_id", request.account_id)),
        reason=short("reason", request.reason),
        balance=short("balance", request.balance),
        organisation=request.organisation,
        request_id=request_id(request.request_id),
    )
    return await _of_keys(door, event)


async def _of_keys(door: ApiService, event: AnyEvent) -> pb.Accepted:
    """Decide what changes what keys are worth: this door asks the gate about each of them anew before it answers."""
    answer = accepted(await door.gate.decide(event))
    door.keys.forget_all()
    return answer
