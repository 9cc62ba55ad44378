"""The ledger as meters, gateways and hosts reach it: the fabric's gRPC door, each with a key of its own role.

`FabricClient` is a `SliceLedger`; besides, it tells who calls, what is offered and who serves it. It repeats nothing by
itself: whoever asks knows with which `seq` to ask again. What the door refuses arrives as the fabric's own error, and
`Unavailable` means that it could not be reached or did not answer: then it may or may not have been carried out.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from fabric.client.failed_calls import error_of_call, read_ca, silent
from fabric.client.profile import Profile
from fabric.errors import NotFound
from fabric.transport import options_for, parse_target, proxy_for, written
from fabric.wire import fabric_pb2 as pb
from fabric.wire import keepalive
from fabric.wire.service import METHODS
from serving.calls import Call, Granted, Package, Wanted

Reply = TypeVar("Reply", bound=Message)

TIMEOUT_S: Final = 5.0
_SERVICE: Final = "inference"
_MESSAGE_BYTES_MAX: Final = 16 * 2**20
_OPTIONS: Final = (("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX), *keepalive.CLIENT)
NOTICE_S: Final = 25.0
"""Some notices of payments have the provider asked before they are booked."""
EXPORT_S: Final = 60.0
"""An export reads all that was booked for its account before it says anything."""
BOARD_S: Final = 5.0
"""The board comes every second: a door that says nothing for so long has fallen silent."""


class FabricClient:
    """A connection of one event loop. Close it when done."""

    def __init__(self, profile: Profile, *, timeout_s: float = TIMEOUT_S) -> None:
        """Connect, lazily.

        Args:
            profile: the door's address, its CA and the key of a replica, a gateway or the host; `account` is not used.
            timeout_s: how long an answer may take.
        """
        self._address = profile.address
        self._timeout_s = timeout_s
        credentials = grpc.ssl_channel_credentials(root_certificates=read_ca(profile.ca))
        target = parse_target(profile.address)
        options = options_for(_OPTIONS, proxy_for(target))
        self._channel = grpc.aio.secure_channel(written(target), credentials, options=options)
        self._key = ("authorization", f"Bearer {profile.api_key}")
        self._callables: dict[str, Any] = {}

    # -- slices ----------------------------------------------------------------------------------------------------------

    async def authorize(
        self,
        *,
        hold_id: str,
        account_id: str,
        key_id: str | None,
        model: str,
        accelerator: str,
        amount_uhs: int,
        minimum_uhs: int,
        ttl_us: int,
        wanted: Wanted | None = None,
    ) -> Granted:
        """As `SliceLedger`; asked again with the same name before anything else is said of it, it answers the same."""
        request = pb.AuthorizeRequest(
            hold_id=hold_id,
            amount_uhs=amount_uhs,
            service=_SERVICE,
            accelerators=[accelerator],
            models=[model],
            ttl_us=ttl_us,
            minimum_uhs=max(1, minimum_uhs),
            key_id=key_id or "",
            wanted=None if wanted is None else pb.Wanted(**wanted._asdict()),
        )
        return _granted(await self._call(request, pb.Accepted, account_id=account_id))

    async def update(
        self,
        *,
        hold_id: str,
        account_id: str,
        seq: int,
        calls: Sequence[Call],
        more_uhs: int,
        minimum_uhs: int,
        ttl_us: int,
        wanted: Wanted | None = None,
    ) -> Granted:
        """As `SliceLedger`."""
        request = pb.UpdateHoldRequest(
            hold_id=hold_id,
            seq=seq,
            more_uhs=more_uhs,
            ttl_us=ttl_us,
            minimum_uhs=max(1, minimum_uhs),
            calls=[_message(call) for call in calls],
            wanted=None if wanted is None else pb.Wanted(**wanted._asdict()),
        )
        return _granted(await self._call(request, pb.Accepted, account_id=account_id))

    async def settle(self, *, hold_id: str, account_id: str, seq: int, calls: Sequence[Call]) -> None:
        """As `SliceLedger`."""
        request = pb.SettleHoldRequest(hold_id=hold_id, seq=seq, calls=[_message(call) for call in calls])
        await self._call(request, pb.Accepted, account_id=account_id)

    async def record(self, *, account_id: str, calls: Sequence[Call]) -> None:
        """Calls that the account's own lease covers: they need no hold. Repeated, they are recorded once."""
        request = pb.RecordCallsRequest(calls=[_message(call) for call in calls])
        await self._call(request, pb.Accepted, account_id=account_id)

    async def keep(self, *, hold_id: str, account_id: str, call: Call, code: str, reason: str) -> None:
        """As `SliceLedger`."""
        request = pb.KeepUsageRequest(hold_id=hold_id, call=_message(call), code=code, reason=reason)
        await self._call(request, pb.Accepted, account_id=account_id)

    # -- who calls, what is offered, who serves --------------------------------------------------------------------------

    async def caller(self, key_id: str) -> pb.CallerOfReply | None:
        """Whose key it is, how far it counts, and what there is for each model; None for an unknown one."""
        try:
            return await self._call(pb.CallerOfRequest(key_id=key_id), pb.CallerOfReply)
        except NotFound:
            return None

    async def notice(self, provider: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """What a provider of payments has sent; what it is answered with, once that is booked."""
        request = pb.PaymentNoticeRequest(provider=provider, headers=headers, body=body)
        reply = await self._call(request, pb.PaymentNoticeReply, timeout_s=NOTICE_S)
        return reply.answer

    async def models(self, *, account_id: str = "") -> list[pb.Model]:
        """What is offered, to an account or ("") to all, with its state and rates."""
        reply = await self._call(pb.ListModelsRequest(), pb.ListModelsReply, account_id=account_id)
        return list(reply.models)

    async def report(self, said: pb.ReportServingRequest) -> None:
        """Say how things stand; it replaces what the same reporter said before, and is forgotten after seconds."""
        await self._call(said, pb.ReportServingReply)

    async def watch(self) -> AsyncIterator[pb.ServingBoard]:
        """The board, whenever it has changed and at least every second; ends with `Unavailable` when the door goes, or says
        nothing any more.
        """
        call = self._callable("WatchServing")(pb.WatchServingRequest(), metadata=(self._key,))
        try:
            while (board := await asyncio.wait_for(call.read(), BOARD_S)) is not grpc.aio.EOF:
                yield board
        except TimeoutError:
            raise silent(self._address, f"has said nothing of its replicas for {BOARD_S:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, address=self._address) from None
        finally:
            call.cancel()

    async def focus(self, request: pb.ExportFocusRequest, *, key: str) -> AsyncIterator[bytes]:
        """A customer's costs, asked for with that customer's own key and nothing of ours."""
        call = self._callable("ExportFocus")(request, metadata=(("authorization", f"Bearer {key}"),))
        try:
            while (chunk := await asyncio.wait_for(call.read(), EXPORT_S)) is not grpc.aio.EOF:
                yield chunk.data
        except TimeoutError:
            raise silent(self._address, f"has sent nothing of an export for {EXPORT_S:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, address=self._address) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close()

    async def _call(
        self, request: Message, reply: type[Reply], *, account_id: str = "", timeout_s: float | None = None
    ) -> Reply:
        name = type(request).__name__.removesuffix("Request")
        assert METHODS[name].reply is reply, f"{name} answers {METHODS[name].reply.__name__}"
        send = self._callable(name)
        metadata = (self._key, ("fabric-account", account_id)) if account_id else (self._key,)
        try:
            return cast("Reply", await send(request, metadata=metadata, timeout=timeout_s or self._timeout_s))
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, address=self._address) from None

    def _callable(self, name: str) -> Any:
        if name not in self._callables:
            method = METHODS[name]
            kind = self._channel.unary_stream if method.server_streams else self._channel.unary_unary
            self._callables[name] = kind(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.reply.FromString,
            )
        return self._callables[name]


def _granted(answer: pb.Accepted) -> Granted:
    free_uhs = answer.free_uhs if answer.HasField("free_uhs") else None
    packages = tuple(Package(each.asset, each.held, each.free) for each in answer.packages)
    return Granted(
        held_uhs=answer.held_uhs,
        final=answer.final,
        free_uhs=free_uhs,
        within_key=answer.within_key,
        packages=packages,
    )


def _message(call: Call) -> pb.Call:
    return pb.Call(
        call_id=call.call_id,
        key_id=call.key_id,
        model=call.model,
        accelerator=call.accelerator,
        prompt_tokens=call.usage.prompt_tokens,
        cached_tokens=call.usage.cached_tokens,
        completion_tokens=call.usage.completion_tokens,
        reasoning_tokens=call.usage.reasoning_tokens,
        started_at_us=call.started_at_us,
        ended_at_us=call.ended_at_us,
        ended=call.ended,
        covered=call.covered,
        rate_version=call.rate_version,
        packages=[pb.PackageLimit(asset=asset, most=most) for asset, most in call.packages],
        tags=call.tags,
    )
