"""Calls about the policy of placement and its quotas: what is in force, and a change of it while jobs wait and run."""

import json
from typing import Any

import msgspec
from pydantic import ValidationError

from fabric.api.keys import Caller
from fabric.api.messages import accepted, request_id, short
from fabric.api.service import ApiService
from fabric.config.files import mistakes_in
from fabric.config.scheduling import SchedulingSection
from fabric.errors import InvalidRequest
from fabric.gate.questions import PolicyOf, PolicyView
from fabric.gate.share_events import SetQuota
from fabric.placement.quota_terms import Used
from fabric.placement.quotas import Policy
from fabric.units import AccountId
from fabric.wire import fabric_pb2 as pb

_Settings = dict[str, Any]


async def get_policy(door: ApiService, _: Caller, __: pb.GetPolicyRequest) -> pb.Policy:
    found = await _in_force(door)
    policy = found.configure.policy
    assert policy is not None
    return pb.Policy(in_force_json=json.dumps(_said(policy)), filed_json=json.dumps(_said(found.filed)))


async def set_policy(door: ApiService, caller: Caller, request: pb.SetPolicyRequest) -> pb.Policy:
    known_as = request_id(request.request_id)
    found = await _in_force(door)
    before = found.filed if request.as_filed else found.configure.policy
    assert before is not None
    policy = changed(before, _changes(request.changes_json))
    event = msgspec.structs.replace(found.configure, policy=policy, request_id=known_as)
    await door.gate.decide(event)
    return await get_policy(door, caller, pb.GetPolicyRequest())


async def list_quotas(door: ApiService, _: Caller, __: pb.ListQuotasRequest) -> pb.ListQuotasReply:
    found = await _in_force(door)
    return pb.ListQuotasReply(quotas=[_quota(used) for used in found.quotas])


async def set_quota(door: ApiService, _: Caller, request: pb.SetQuotaRequest) -> pb.Accepted:
    event = SetQuota(
        accelerator=short("accelerator", request.accelerator),
        account=AccountId(request.account),
        cohort=request.cohort,
        nominal=request.nominal if request.HasField("nominal") else None,
        borrow_max=request.borrow_max if request.HasField("borrow_max") else None,
        lend_max=request.lend_max if request.HasField("lend_max") else None,
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


def _quota(used: Used) -> pb.Quota:
    quota = used.quota
    return pb.Quota(
        accelerator=quota.accelerator,
        account=quota.account,
        cohort=quota.cohort,
        nominal=quota.nominal,
        borrow_max=quota.borrow_max,
        lend_max=quota.lend_max,
        shared=used.shared,
        borrowed=used.borrowed,
        nominal_in_all=used.nominal,
    )


def changed(policy: Policy, changes: _Settings) -> Policy:
    """The policy with these settings, which are said as in a cluster file.

    Raises:
        InvalidRequest: one of them can't be meant; the message names the setting, what was found and what is allowed.
    """
    said = _merged(_said(policy), changes)
    try:
        return SchedulingSection.model_validate(said).policy
    except ValidationError as error:
        raise InvalidRequest("; ".join(mistakes_in(error, said)), code="invalid_policy") from None


def _said(policy: Policy) -> _Settings:
    return SchedulingSection.of(policy).model_dump()


def _merged(settings: _Settings, changes: _Settings) -> _Settings:
    merged = dict(settings)
    for name, value in changes.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _changes(text: str) -> _Settings:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidRequest("changes_json is a JSON object of settings", code="invalid_policy")
    return found


async def _in_force(door: ApiService) -> PolicyView:
    found = await door.port.ask(PolicyOf())
    assert isinstance(found, PolicyView)
    return found
