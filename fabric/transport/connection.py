"""One HTTP/2 connection with the calls on it. Lives on the loop's thread."""

import asyncio
import contextlib
import time
from typing import Any, Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from fabric.transport.exchange import Exchange, Headers
from fabric.transport.failure import CallFailed, Status
from fabric.wire import keepalive

_STREAM_WINDOW: Final = 2 * 2**20
_WINDOW: Final = 16 * 2**20
_HEADER_BYTES_MAX: Final = 256 * 1024
_PING_ANSWER_S: Final = keepalive.PONG_MS / 1_000
_OF_RESET: Final = {
    h2.errors.ErrorCodes.REFUSED_STREAM: Status.UNAVAILABLE,
    h2.errors.ErrorCodes.CANCEL: Status.CANCELLED,
    h2.errors.ErrorCodes.ENHANCE_YOUR_CALM: Status.RESOURCE_EXHAUSTED,
    h2.errors.ErrorCodes.INADEQUATE_SECURITY: Status.PERMISSION_DENIED,
}


class Connection(asyncio.Protocol):
    """Made by `loop.create_connection`; `perform` begins a call."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, keepalive_s: float) -> None:
        self.is_good = True
        """Whether new calls may use it."""
        self._loop = loop
        self._keepalive_s = keepalive_s
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, Exchange] = {}
        self._may_write = asyncio.Event()
        self._room = asyncio.Event()
        """Set whenever the other side may have more room for data, or for calls."""
        self._heard_at = time.monotonic()
        self._pinged_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def perform(self, call: Exchange, headers: Headers) -> None:
        """Send all of a call. Its answer comes as it comes."""
        while self.is_good and self._h2.open_outbound_streams >= self._h2.remote_settings.max_concurrent_streams:
            await self._more_room()
        if not self.is_good:
            raise CallFailed(Status.UNAVAILABLE, "the connection was lost")
        stream_id = call.stream_id = self._h2.get_next_available_stream_id()
        self._calls[stream_id] = call
        self._h2.send_headers(stream_id, headers)
        try:
            for piece in call.framed():
                await self._send(call, stream_id, piece)
            self._h2.end_stream(stream_id)
        except h2.exceptions.ProtocolError:
            pass  # it was ended meanwhile, with or without an answer, and whoever called is told
        self._flush()

    def give_up(self, call: Exchange) -> None:
        """Nobody waits for a call any more."""
        if call.stream_id is not None and self._calls.pop(call.stream_id, None) is not None:
            self._reset(call.stream_id)
            self._flush()

    def was_read(self, call: Exchange, length: int) -> None:
        """So much of an answer was read: there is room for more."""
        call.was_read(length)
        self._acknowledge(call)
        self._flush()

    def lose(self, details: str, status: Status = Status.UNAVAILABLE) -> None:
        """It is of no more use."""
        self.is_good = False
        if self._timer is not None:
            self._timer.cancel()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.end(CallFailed(status, details))
        self._room.set()
        self._may_write.set()
        if self._transport is not None:
            self._transport.close()

    # -- what asyncio tells --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._may_write.set()
        self._h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: _HEADER_BYTES_MAX,
            },
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW)
        self._flush()
        self._timer = self._loop.call_later(self._keepalive_s / 3, self._keep)

    def data_received(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self._flush()
            self.lose(f"the other side doesn't speak HTTP/2 as it should: {type(error).__name__}")
            return
        for event in events:
            self._hear(event)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.lose(f"the connection was lost: {error}" if error else "the connection was closed by the other side")

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    # ------------------------------------------------------------------------------------------------------------------

    def _hear(self, event: h2.events.Event) -> None:
        stream_id = getattr(event, "stream_id", None)
        call = self._calls.get(stream_id) if stream_id else None
        if isinstance(event, h2.events.DataReceived):
            self._data(event, call)
        elif isinstance(event, h2.events.ConnectionTerminated):
            said = (event.additional_data or b"").decode(errors="replace")
            self.lose(f"the other side ends the connection: {said or event.error_code}")
        elif isinstance(event, h2.events.PingAckReceived):
            self._pinged_at = None
        elif isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            self._room.set()
        elif call is None:
            return
        elif isinstance(event, h2.events.ResponseReceived):
            call.head(_plain(event.headers))
        elif isinstance(event, h2.events.TrailersReceived):
            call.trailers(_plain(event.headers))
        elif isinstance(event, h2.events.StreamEnded):
            self._forget(event.stream_id)
            call.finished()
        elif isinstance(event, h2.events.StreamReset):
            self._forget(event.stream_id)
            code = event.error_code
            call.end(CallFailed(_OF_RESET.get(code, Status.INTERNAL), f"the call was reset by the other side ({code})"))

    def _data(self, event: h2.events.DataReceived, call: Exchange | None) -> None:
        if call is None:
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return
        call.due_bytes += event.flow_controlled_length
        try:
            call.received(event.data)
        except CallFailed as failure:
            self.give_up(call)
            call.end(failure)
        self._acknowledge(call)

    def _acknowledge(self, call: Exchange) -> None:
        if call.due_bytes and call.stream_id is not None and not (call.is_full and not call.ended):
            due, call.due_bytes = call.due_bytes, 0
            if self.is_good:
                self._h2.acknowledge_received_data(due, call.stream_id)

    async def _send(self, call: Exchange, stream_id: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            room = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size, len(rest))
            if room <= 0:
                await self._more_room()
            else:
                self._h2.send_data(stream_id, bytes(rest[:room]))
                rest = rest[room:]
                self._flush()
                await self._may_write.wait()
            if call.ended or not self.is_good:
                return

    async def _more_room(self) -> None:
        self._room.clear()
        await self._room.wait()

    def _forget(self, stream_id: int) -> None:
        """A call has ended on the other side; where more of it was to be sent, that is not any more."""
        self._calls.pop(stream_id, None)
        self._reset(stream_id, h2.errors.ErrorCodes.NO_ERROR)
        self._room.set()

    def _reset(self, stream_id: int, code: h2.errors.ErrorCodes = h2.errors.ErrorCodes.CANCEL) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):  # it was closed on both sides already
            self._h2.reset_stream(stream_id, code)

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _keep(self) -> None:
        """Now and then, where a call waits: whether the other side is still there."""
        now = time.monotonic()
        if self._pinged_at is not None and now - self._pinged_at > _PING_ANSWER_S:
            self.lose("keepalive: the other side does not answer any more")
            return
        if self._calls and self._pinged_at is None and now - self._heard_at >= self._keepalive_s:
            self._pinged_at = now
            self._h2.ping(b"alive...")
            self._flush()
        self._timer = self._loop.call_later(self._keepalive_s / 3, self._keep)


def _plain(headers: Any) -> Headers:
    return [(bytes(name), bytes(value)) for name, value in headers]
