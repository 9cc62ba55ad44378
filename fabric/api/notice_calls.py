"""Calls about notices: where an account is told, and what became of what it was told."""

import msgspec

from fabric.api.keys import Caller
from fabric.api.messages import request_id, short
from fabric.api.service import ApiService
from fabric.errors import InvalidRequest
from fabric.notifications.desk import NoticeDesk
from fabric.notifications.notice import Kind
from fabric.wire import fabric_pb2 as pb


async def add_endpoint(door: ApiService, caller: Caller, request: pb.AddEndpointRequest) -> pb.Document:
    """Shows the endpoint's secret, once."""
    named = request_id(request.request_id)
    try:
        kinds = tuple(dict.fromkeys(Kind(each) for each in request.kinds))
    except ValueError:
        raise InvalidRequest(f"kinds are of {', '.join(Kind)}", code="invalid_kind") from None
    await door.check_customer(caller)
    endpoint, secret = await _desk(door).add(caller.account, request.url, kinds, request_id=named)
    return pb.Document(json=msgspec.json.encode({"endpoint": endpoint, "secret": secret}))


async def list_endpoints(door: ApiService, caller: Caller, _: pb.ListEndpointsRequest) -> pb.Document:
    await door.check_customer(caller)
    return pb.Document(json=msgspec.json.encode(await _desk(door).endpoints(caller.account)))


async def remove_endpoint(door: ApiService, caller: Caller, request: pb.RemoveEndpointRequest) -> pb.Accepted:
    await _desk(door).remove(caller.account, short("endpoint_id", request.endpoint_id))
    return pb.Accepted()


async def rotate_secret(door: ApiService, caller: Caller, request: pb.RotateSecretRequest) -> pb.Document:
    """Shows the new secret, once."""
    endpoint, secret = await _desk(door).rotate(caller.account, short("endpoint_id", request.endpoint_id))
    return pb.Document(json=msgspec.json.encode({"endpoint": endpoint, "secret": secret}))


async def check_endpoint(door: ApiService, caller: Caller, request: pb.TestEndpointRequest) -> pb.Document:
    """Has something sent to an endpoint."""
    named = request_id(request.request_id)
    told = await _desk(door).test(caller.account, short("endpoint_id", request.endpoint_id), request_id=named)
    return pb.Document(json=msgspec.json.encode({"notice_id": told}))


async def list_deliveries(door: ApiService, caller: Caller, request: pb.ListDeliveriesRequest) -> pb.Document:
    """The newest of an endpoint."""
    endpoint_id = short("endpoint_id", request.endpoint_id)
    if request.limit < 0:
        raise InvalidRequest("a limit of rows is 1 or more", code="invalid_limit")
    return pb.Document(
        json=msgspec.json.encode(await _desk(door).deliveries(caller.account, endpoint_id, request.limit))
    )


async def redeliver(door: ApiService, caller: Caller, request: pb.RedeliverRequest) -> pb.Accepted:
    endpoint_id, notice = short("endpoint_id", request.endpoint_id), short("notice_id", request.notice_id)
    await _desk(door).redeliver(caller.account, endpoint_id, notice)
    return pb.Accepted()


def _desk(door: ApiService) -> NoticeDesk:
    if door.notices is None:
        raise InvalidRequest("this door tells nobody anything: ask at the gate's own", code="no_notices")
    return door.notices
