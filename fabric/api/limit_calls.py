"""Calls about limits that reset."""

from collections.abc import Sequence
from typing import Any, Final

from fabric.api.keys import Caller
from fabric.api.messages import accepted, amount, message_of, request_id, short, word
from fabric.api.service import ApiService
from fabric.api.zones import make_known
from fabric.errors import InvalidRequest, PermissionDenied
from fabric.gate.key_scopes import KeyScope
from fabric.gate.limit_events import LimitTerms, SetLimit, Unit, Whose
from fabric.gate.limit_setting import EACH_MAX
from fabric.gate.periods import UTC, Period
from fabric.gate.questions import LimitsOf
from fabric.units import KeyId
from fabric.wire import fabric_pb2 as pb

_SEES_ALL: Final = (KeyScope.READ, KeyScope.KEYS)


async def set_limit(door: ApiService, caller: Caller, request: pb.SetLimitRequest) -> pb.Accepted:
    """Set a limit of a key, a project, a member or the account, or take one away."""
    (terms,) = await terms_of(door, [request.terms], remove=request.remove)
    named = {
        Whose.KEY: short("key_id", request.key_id),
        Whose.PROJECT: short("project", request.project),
        Whose.MEMBER: short("member", request.member),
    }
    given = [whose for whose, name in named.items() if name] or [Whose.ACCOUNT]
    if len(given) > 1:
        raise InvalidRequest("a limit is of a key, a project or a member: name one of them", code="invalid_limit")
    event = SetLimit(
        account_id=caller.account,
        whose=given[0],
        name=named.get(given[0], ""),
        terms=terms,
        remove=request.remove,
        by_operator=caller.operator,
        made_with=KeyId(caller.key_id),
        request_id=request_id(request.request_id),
    )
    answer = accepted(await door.gate.decide(event))
    door.keys.forget(request.key_id)
    return answer


async def list_limits(door: ApiService, caller: Caller, request: pb.ListLimitsRequest) -> pb.ListLimitsReply:
    """All of the account's for a key that may look at everything; its own and the account's for any other."""
    key_id = short("key_id", request.key_id)
    if not caller.may(*_SEES_ALL):
        if key_id not in ("", caller.key_id):
            raise PermissionDenied(
                "this key sees its own limits and the account's alone: leave the key out, or use one with the scope read",
                code="restricted_key",
                key_id=caller.key_id,
            )
        key_id = caller.key_id
    await door.check_customer(caller)
    asked = LimitsOf(account_id=caller.account, key_id=KeyId(key_id) if key_id else None)
    found: Any = await door.port.ask(asked)
    return pb.ListLimitsReply(limits=[message_of(each, pb.Limit) for each in found or ()])


async def terms_of(door: ApiService, given: Sequence[pb.LimitTerms], *, remove: bool = False) -> tuple[LimitTerms, ...]:
    """Limits as the gate takes them; it is told of time zones that it doesn't know.

    Raises:
        InvalidRequest: an unknown word, no amount, too many, a zone that there isn't.
    """
    if len(given) > EACH_MAX:
        raise InvalidRequest(
            f"a key has up to {EACH_MAX} limits, not {len(given)}: leave some out", code="too_many_limits"
        )
    found = tuple(
        LimitTerms(
            period=word(Period, "period", each.period),
            unit=word(Unit, "unit", each.unit or Unit.CT),
            amount=each.amount if remove else amount("amount", each.amount),
            hard=not each.warning,
            zone=each.zone or UTC,
            starts_on=each.starts_on or 1,
        )
        for each in given
    )
    for zone in dict.fromkeys(each.zone for each in found if not remove):
        await make_known(door.port, zone)
    return found
