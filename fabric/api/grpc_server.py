"""The gRPC door: TLS always, a key with every call, typed errors, nothing of ours in an answer that fails unexpectedly.

A call is a function `(door, caller, request)`. Here is what all of them have in common: who calls, whether they may, how
often, and how what goes wrong is told.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from fabric.api import (
    checkpoint_calls,
    checkpoint_files,
    focus_calls,
    job_calls,
    limit_calls,
    money_calls,
    notice_calls,
    operator_calls,
    organisation_calls,
    payment_calls,
    policy_calls,
    serving_calls,
)
from fabric.api.admission import check
from fabric.api.connections import Connections, address_of, network_of
from fabric.api.keys import REMEMBER_S, Caller
from fabric.api.roles import ROLES, WHEN_SUSPENDED
from fabric.api.service import ApiService
from fabric.api.tls import TlsPems
from fabric.api.told_errors import refuse
from fabric.errors import InvalidRequest, Unauthenticated, Unavailable
from fabric.gate.key_scopes import OF_CUSTOMERS, KeyScope
from fabric.gate.roles import Role
from fabric.wire import keepalive
from fabric.wire.service import METHODS, SERVICE_NAME, Method

log = structlog.get_logger()

Messages: TypeAlias = AsyncIterator[bytes]
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

WINDOW_BYTES: Final = 65_536
"""What of a message is taken in before anybody asks for it: nobody does before the key is looked at."""
HANDSHAKE_MS: Final = 10_000
CONNECTIONS_MAX: Final = 2_048
"""At once: what comes beyond is closed as it is taken, and the oldest without a key make room (`connections`)."""
STREAMS_MAX: Final = 256
"""On one connection: a client lets the next ones wait."""
MESSAGE_S: Final = 15.0
"""How long a message may take to arrive whole."""
OPTIONS: Final = (
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", STREAMS_MAX),
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    ("grpc.so_reuseport", 0),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
    *keepalive.SERVER,
)
LOOKS_THROUGH: Final = 10
_STOP_GRACE_S: Final = 2.0


class Call(NamedTuple):
    """What answers one rpc, and with which keys it may be asked for."""

    run: Callable[[ApiService, Caller, Any], Any]
    scopes: frozenset[KeyScope]
    """Any of them will do. What is not in a key's scopes can't be done with it; the operator's own has all."""
    gateways: bool = False
    """What an operator's gateways say all the time: each stands for many callers, whose limits don't hold for it."""
    weight: int = 1
    """As how many requests it counts: some look through all that a customer has."""
    roles: frozenset[Role] = frozenset()
    """Who may ask for it at all: its row in `roles.ROLES`."""
    suspended: bool = False
    """Whether a key of a suspended account may."""

    @property
    def operators_only(self) -> bool:
        return self.scopes.isdisjoint(OF_CUSTOMERS)


def _for(*scopes: KeyScope) -> frozenset[KeyScope]:
    return frozenset((*scopes, KeyScope.OPERATOR))


_ANY: Final = _for(*OF_CUSTOMERS)
_JOBS: Final = _for(KeyScope.JOBS_OWN, KeyScope.JOBS_ALL)
_SEE_JOBS: Final = _JOBS | {KeyScope.READ}
_HOST: Final = frozenset((KeyScope.HOST,))
_BOOKS: Final = _for(KeyScope.READ, KeyScope.MONEY)
_MONEY: Final = _for(KeyScope.MONEY)
_HOLDS: Final = _for(KeyScope.HOLDS, KeyScope.REPLICA)
_BOARD: Final = _for(KeyScope.GATEWAY, KeyScope.HOST)
_OPERATOR: Final = _for()

CALLS: Final[dict[str, Call]] = {
    "Submit": Call(job_calls.submit, _JOBS | _HOST),
    "Quote": Call(job_calls.quote, _SEE_JOBS),
    "GetJob": Call(job_calls.get_job, _SEE_JOBS | _HOST),
    "ListJobs": Call(job_calls.list_jobs, _SEE_JOBS | _HOST, weight=LOOKS_THROUGH),
    "Why": Call(job_calls.why, _SEE_JOBS, weight=LOOKS_THROUGH),
    "WatchJobs": Call(job_calls.watch_jobs, _SEE_JOBS | _HOST),
    "Cancel": Call(job_calls.cancel, _JOBS | _HOST),
    "Pause": Call(job_calls.pause, _JOBS),
    "Resume": Call(job_calls.resume, _JOBS),
    "SaveNow": Call(job_calls.save_now, _JOBS),
    "ListCheckpoints": Call(checkpoint_calls.list_checkpoints, _SEE_JOBS, weight=LOOKS_THROUGH),
    "ListShards": Call(checkpoint_files.list_shards, _SEE_JOBS, weight=LOOKS_THROUGH),
    "FetchCheckpoint": Call(checkpoint_files.fetch, _SEE_JOBS),
    "RollBack": Call(checkpoint_calls.roll_back, _JOBS),
    "DeleteCheckpoints": Call(checkpoint_calls.delete, _JOBS, weight=LOOKS_THROUGH),
    "Fork": Call(checkpoint_calls.fork, _JOBS),
    "RaiseLimit": Call(job_calls.raise_limit, _JOBS),
    "Logs": Call(job_calls.logs, _SEE_JOBS),
    "Result": Call(job_calls.result, _SEE_JOBS | _HOST),
    "Artifact": Call(job_calls.artifact, _SEE_JOBS),
    "PutBlob": Call(job_calls.put_blob, _JOBS),
    "Balance": Call(money_calls.balance, _ANY),
    "TopUp": Call(money_calls.top_up, _MONEY),
    "BuyBundle": Call(money_calls.buy_bundle, _MONEY),
    "Subscribe": Call(money_calls.subscribe, _MONEY),
    "Unsubscribe": Call(money_calls.unsubscribe, _MONEY),
    "Usage": Call(money_calls.usage, _SEE_JOBS | _MONEY, weight=LOOKS_THROUGH),
    "Statement": Call(money_calls.statement, _BOOKS, weight=LOOKS_THROUGH),
    "Prices": Call(money_calls.prices, _ANY),
    "Receipts": Call(money_calls.receipts, _BOOKS, weight=LOOKS_THROUGH),
    "Export": Call(money_calls.export, _BOOKS, weight=LOOKS_THROUGH),
    "ExportFocus": Call(focus_calls.export, _BOOKS, weight=LOOKS_THROUGH),
    "LogCheckpoint": Call(money_calls.log_checkpoint, _BOOKS),
    "Authorize": Call(money_calls.authorize, _HOLDS, gateways=True),
    "UpdateHold": Call(money_calls.update_hold, _HOLDS, gateways=True),
    "SettleHold": Call(money_calls.settle_hold, _HOLDS, gateways=True),
    "ReleaseHold": Call(money_calls.release_hold, _HOLDS, gateways=True),
    "RecordCalls": Call(serving_calls.record_calls, _for(KeyScope.REPLICA), gateways=True),
    "KeepUsage": Call(serving_calls.keep_usage, _for(KeyScope.REPLICA), gateways=True),
    "ListModels": Call(serving_calls.list_models, _ANY | _BOARD),
    "OfferModel": Call(serving_calls.offer_model, _OPERATOR),
    "ScaleModel": Call(serving_calls.scale_model, _OPERATOR),
    "WithdrawModel": Call(serving_calls.withdraw_model, _OPERATOR),
    "ReportServing": Call(serving_calls.report_serving, _BOARD, gateways=True),
    "WatchServing": Call(serving_calls.watch_serving, _BOARD, gateways=True),
    "CallerOf": Call(serving_calls.caller_of, _for(KeyScope.GATEWAY), gateways=True),
    "CreateKey": Call(operator_calls.create_key, _for(KeyScope.KEYS)),
    "ListKeys": Call(operator_calls.list_keys, _for(KeyScope.KEYS, KeyScope.READ), weight=LOOKS_THROUGH),
    "RevokeKey": Call(operator_calls.revoke_key, _ANY),
    "SetLimit": Call(limit_calls.set_limit, _for(KeyScope.KEYS)),
    "ListLimits": Call(limit_calls.list_limits, _ANY, weight=LOOKS_THROUGH),
    "GetOrganisation": Call(organisation_calls.get_organisation, _ANY),
    "CreateProject": Call(organisation_calls.create_project, _for(KeyScope.KEYS)),
    "CloseProject": Call(organisation_calls.close_project, _for(KeyScope.KEYS)),
    "AddMember": Call(organisation_calls.add_member, _for(KeyScope.KEYS)),
    "SetRole": Call(organisation_calls.set_role, _for(KeyScope.KEYS)),
    "RemoveMember": Call(organisation_calls.remove_member, _for(KeyScope.KEYS)),
    "OpenAccount": Call(operator_calls.open_account, _OPERATOR),
    "SuspendAccount": Call(organisation_calls.suspend_account, _OPERATOR),
    "ResumeAccount": Call(organisation_calls.resume_account, _OPERATOR),
    "CloseAccount": Call(organisation_calls.close_account, _OPERATOR),
    "SetShare": Call(operator_calls.set_share, _OPERATOR),
    "SetCohort": Call(operator_calls.set_cohort, _OPERATOR),
    "GetPolicy": Call(policy_calls.get_policy, _OPERATOR),
    "SetPolicy": Call(policy_calls.set_policy, _OPERATOR),
    "ListQuotas": Call(policy_calls.list_quotas, _OPERATOR),
    "SetQuota": Call(policy_calls.set_quota, _OPERATOR),
    "Grant": Call(operator_calls.grant, _OPERATOR),
    "VoidLot": Call(operator_calls.void_lot, _OPERATOR),
    "RecordPayment": Call(operator_calls.record_payment, _OPERATOR),
    "CreditInvoice": Call(operator_calls.credit_invoice, _OPERATOR),
    "ListAccounts": Call(operator_calls.list_accounts, _OPERATOR),
    "ListNodes": Call(operator_calls.list_nodes, _OPERATOR),
    "ListLeases": Call(operator_calls.list_leases, _OPERATOR),
    "DrainNode": Call(operator_calls.drain_node, _OPERATOR),
    "ClosePeriod": Call(operator_calls.close_period, _OPERATOR),
    "ListOpenUsage": Call(operator_calls.list_open_usage, _OPERATOR),
    "CloseUsage": Call(operator_calls.close_usage, _OPERATOR),
    "AskPayment": Call(payment_calls.ask_payment, _MONEY, weight=LOOKS_THROUGH),
    "GetPayment": Call(payment_calls.get_payment, _BOOKS, weight=LOOKS_THROUGH),
    "ListPayments": Call(payment_calls.list_payments, _BOOKS, weight=LOOKS_THROUGH),
    "SetAutoTopUp": Call(payment_calls.set_auto_top_up, _MONEY),
    "BookPayment": Call(payment_calls.book_payment, _OPERATOR),
    "RefundPayment": Call(payment_calls.refund_payment, _OPERATOR),
    "ListSuspense": Call(payment_calls.list_suspense, _OPERATOR),
    "SettleSuspense": Call(payment_calls.settle_suspense, _OPERATOR),
    "ReconcilePayments": Call(payment_calls.reconcile_payments, _OPERATOR),
    "PaymentNotice": Call(payment_calls.payment_notice, frozenset((KeyScope.GATEWAY,)), gateways=True),
    "AddEndpoint": Call(notice_calls.add_endpoint, _for(KeyScope.KEYS)),
    "ListEndpoints": Call(notice_calls.list_endpoints, _for(KeyScope.KEYS, KeyScope.READ)),
    "RemoveEndpoint": Call(notice_calls.remove_endpoint, _for(KeyScope.KEYS)),
    "RotateSecret": Call(notice_calls.rotate_secret, _for(KeyScope.KEYS)),
    "TestEndpoint": Call(notice_calls.check_endpoint, _for(KeyScope.KEYS), weight=LOOKS_THROUGH),
    "ListDeliveries": Call(notice_calls.list_deliveries, _for(KeyScope.KEYS, KeyScope.READ), weight=LOOKS_THROUGH),
    "Redeliver": Call(notice_calls.redeliver, _for(KeyScope.KEYS), weight=LOOKS_THROUGH),
}
"""Every call, what answers it, and which keys may ask for it. Which roles may is in `roles.ROLES`."""
CALLS.update(
    {
        name: call._replace(roles=ROLES.get(name, frozenset()), suspended=name in WHEN_SUSPENDED)
        for name, call in CALLS.items()
    }
)


class RpcServer:
    """A door that stands open."""

    def __init__(self, server: grpc.aio.Server, door: ApiService, *, host: str, port: int) -> None:
        self._server = server
        self._door = door
        self._watching = asyncio.create_task(door.connections.watch()) if door.connections is not None else None
        self._paying = asyncio.create_task(door.desk.run())
        self.host = host
        self.port = port

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def stop(self) -> None:
        """Let calls under way end, briefly, then close."""
        self._paying.cancel()
        if self._watching is not None:
            self._watching.cancel()
        await self._server.stop(_STOP_GRACE_S)
        await self._door.close()


async def serve(door: ApiService, *, tls: TlsPems, host: str = "127.0.0.1", port: int = 0) -> RpcServer:
    """Open the door at an address; port 0 takes a free one.

    Raises:
        Unavailable: the address is taken.
    """
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", door.limits.request_bytes), *OPTIONS))
    handlers = {name: _handler(door, METHODS[name], call) for name, call in CALLS.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
    shown = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_secure_port(f"{shown}:{port}", tls.credentials())
    except RuntimeError:
        bound = 0
    if not bound:
        raise Unavailable(f"can't listen at {shown}:{port}: is it taken? Choose another port", code="address_taken")
    limits = door.limits
    door.connections = Connections(bound, per_address=limits.connections, per_account=limits.connections_per_account)
    await server.start()
    return RpcServer(server, door, host=host, port=bound)


def _handler(door: ApiService, method: Method, call: Call) -> "grpc.RpcMethodHandler[Any, Any]":
    """Every call as one whose client streams: gRPC hands those over before it takes in any message, and whole messages only
    when they are asked for. On the wire it is the same.
    """
    encode: Callable[[Any], bytes] = method.reply.SerializeToString
    if method.server_streams:
        return grpc.stream_stream_rpc_method_handler(_streaming(door, method, call), None, encode)
    return grpc.stream_unary_rpc_method_handler(_answering(door, method, call), None, encode)


def _answering(door: ApiService, method: Method, call: Call) -> Callable[[Messages, Any], Awaitable[Any]]:
    async def answer(messages: Messages, context: Context) -> Any:
        try:
            caller = await _admit(door, call, context)
            counted_as = _counted_as(call, caller, context)
            with door.calls.one_more(counted_as):
                if method.client_streams:
                    with door.streams.one_more(caller.counted_as):
                        return await call.run(door, caller, _decoded(method, messages))
                request = await _request(door, method, call, caller, messages=messages, counted_as=counted_as)
                return await call.run(door, caller, request)
        except Exception as error:  # noqa: BLE001  # whatever it is, the client gets an answer and we get a log
            await refuse(context, method, error)

    return answer


def _streaming(door: ApiService, method: Method, call: Call) -> Callable[[Messages, Any], AsyncIterator[Any]]:
    async def answers(messages: Messages, context: Context) -> AsyncIterator[Any]:
        try:
            caller = await _admit(door, call, context)
            checked_at, counted_as = time.monotonic(), _counted_as(call, caller, context)
            with door.calls.one_more(counted_as), _counted(door, call, caller):
                request = await _request(door, method, call, caller, messages=messages, counted_as=counted_as)
                async with contextlib.aclosing(call.run(door, caller, request)) as found:
                    async for answer in found:
                        if time.monotonic() - checked_at > REMEMBER_S:
                            # A stream may outlive its key.
                            await _caller(door, call, context)
                            checked_at = time.monotonic()
                        yield answer
        except Exception as error:  # noqa: BLE001  # as above
            await refuse(context, method, error)

    return answers


async def _request(
    door: ApiService, method: Method, call: Call, caller: Caller, *, messages: Messages, counted_as: str
) -> Any:
    """The one message of a call, when it is the caller's turn and if it isn't long in coming.

    Raises:
        InvalidRequest: there is none, it is too large, or it is no such message.
        Unavailable: it didn't arrive in time (`message_stalled`).
    """
    try:
        async with door.reading.turn(counted_as), asyncio.timeout(MESSAGE_S):
            raw = await anext(messages)
    except StopAsyncIteration:
        raise InvalidRequest("a call has one message, this one has none", code="no_message") from None
    except TimeoutError:
        raise Unavailable(
            f"the message did not arrive within {MESSAGE_S:g} s: send it again", code="message_stalled"
        ) from None
    _check_size(door, call, caller, len(raw))
    return _message(method, raw)


async def _decoded(method: Method, messages: Messages) -> AsyncIterator[Any]:
    async for raw in messages:
        yield _message(method, raw)


def _message(method: Method, raw: bytes) -> Any:
    try:
        return method.request.FromString(raw)
    except DecodeError:
        raise InvalidRequest(f"this is no {method.request.__name__}", code="bad_message") from None


@contextlib.contextmanager
def _counted(door: ApiService, call: Call, caller: Caller) -> Iterator[None]:
    """One stream more, for as long as it is open; of those that look through much, a few at once."""
    if _is_gateway(call, caller):
        yield
        return
    with door.streams.one_more(caller.counted_as):
        if call.weight == 1:
            yield
        else:
            with door.histories.one_more(caller.counted_as):
                yield


async def _admit(door: ApiService, call: Call, context: Context) -> Caller:
    caller = await _caller(door, call, context)
    if not _is_gateway(call, caller):
        door.rate.spend(caller.counted_as, as_many=call.weight)
    return caller


def _counted_as(call: Call, caller: Caller, context: Context) -> str:
    """Whose calls in hand are counted together: of processes that share a key, each connection's."""
    return f"{caller.counted_as}@{context.peer()}" if _is_gateway(call, caller) else caller.counted_as


def _is_gateway(call: Call, caller: Caller) -> bool:
    """Whether it stands for many callers, so that the limits of one don't hold."""
    return call.gateways and caller.operator


def _check_size(door: ApiService, call: Call, caller: Caller, size: int) -> None:
    most = door.limits.request_bytes if _is_gateway(call, caller) else door.limits.call_bytes
    if size > most:
        raise InvalidRequest(
            f"a request may have {most} bytes, this one has {size}: what is large goes with PutBlob, or lies in storage",
            code="too_large",
            limit_bytes=most,
        )


async def _caller(door: ApiService, call: Call, context: Context) -> Caller:
    metadata: Any = context.invocation_metadata() or ()
    headers = {key: value for key, value in metadata if isinstance(value, str)}
    host, port = address_of(context.peer())
    authorization, acts_for = headers.get("authorization", ""), headers.get("fabric-account", "")
    if not door.keys.remembers(authorization):
        door.guesses.check(network_of(host))
    try:
        caller = await door.keys.caller(authorization, acts_for=acts_for)
    except Unauthenticated:
        door.guesses.spend(network_of(host))
        raise
    if door.connections is not None:
        door.connections.showed_key(host, port, whose=caller.counted_as)
    check(caller, roles=call.roles, scopes=call.scopes, suspended=call.suspended)
    return caller
