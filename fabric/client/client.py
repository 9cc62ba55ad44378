"""A thin synchronous client of the gRPC door: one channel, typed messages, typed errors, retries.

It knows the wire and nothing behind it. A call is named by its request's type. Calls are repeated when the door can't
be reached or the gate is away, which is safe because everything that changes something carries a request id.
"""

import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, TypeVar, cast

from google.protobuf.message import Message

from fabric.client.failed_calls import GATE_SILENT, check_sendable, closed, error_of_call, read_ca
from fabric.client.profile import Profile
from fabric.errors import FabricError, InvalidRequest, RateLimited, Unavailable
from fabric.transport import Trust, channel_to, failures
from fabric.wire import fabric_pb2 as pb
from fabric.wire.service import METHODS, Method

Reply = TypeVar("Reply", bound=Message)
Answer = TypeVar("Answer")

CHUNK_BYTES: Final = 1024 * 1024
CALL_TIMEOUT_S: Final = 30.0
_ASKED_FIRST_BYTES: Final = 256 * 1024
"""Of what is larger it is asked first whether it is there."""
_ATTEMPTS: Final = 6
_ATTEMPTS_ONCE_KNOWN: Final = 20
"""Half a minute."""
_FOLLOWS_AWAY_S: Final = 600.0
"""How long whoever follows a job waits for a fabric that is away."""
_PACED_S: Final = 60.0
"""How long a client that asks too fast waits for its turn, each time."""
_PAGE: Final = 1_000
_PAUSE_S: Final = 0.1
_PAUSE_MAX_S: Final = 2.0
_SILENT_S: Final = 5.0
"""How long a call goes on trying where nobody answers."""


def new_request_id() -> str:
    """An id for one intention: keep it when the call is repeated."""
    return uuid.uuid4().hex


class Client:
    """A connection. Threads may share it; close it when done."""

    def __init__(self, profile: Profile, *, paced: bool = False) -> None:
        """Nothing is connected yet.

        Args:
            profile: where to, and with which key.
            paced: wait where the door says that it is asked too fast, and ask again: it has done nothing then.
        """
        check_sendable(profile)
        self.profile = profile
        self._paced = paced
        self._channel = channel_to(profile.address, Trust(read_ca(profile.ca)))
        self.failures = failures()
        """What a call raises that fails."""
        metadata = [("authorization", f"Bearer {profile.api_key}")]
        self._metadata = (*metadata, ("fabric-account", profile.account)) if profile.account else tuple(metadata)
        self._callables: dict[str, Any] = {}
        self._has_answered = False
        self._is_silent = False
        """Whether the last that was heard is that nobody answers."""
        self._closed = False
        self.on_sent: Callable[[int, int], None] = lambda _sent, _of: None

    def call(self, request: Message, reply: type[Reply], *, timeout_s: float = CALL_TIMEOUT_S) -> Reply:
        """One request, one answer, repeated while the fabric is away.

        Raises:
            FabricError: what the door answered, as its own class; `Unavailable` if it didn't.
        """
        send = self._callable(_method_of(request, reply))

        def once() -> Reply:
            try:
                return cast("Reply", send(request, metadata=self._metadata, timeout=timeout_s))
            except self.failures as error:
                raise self._error(error) from None

        return self._repeated(once, timeout_s=timeout_s)

    def stream(self, request: Message, reply: type[Reply]) -> "Stream[Reply]":
        """One request, many answers, as they come. Not repeated: what to resume from is the caller's to know."""
        method = _method_of(request, reply)
        return Stream(self, self._callable(method)(request, metadata=self._metadata))

    def fetch(self, request: Message) -> bytes:
        """All that a call streams in chunks, as one."""
        return self._repeated(lambda: b"".join(chunk.data for chunk in self.stream(request, pb.Chunk)))

    def fetch_into(self, request: Message, file: IO[bytes]) -> None:
        """The same, written to a file a chunk at a time: whole on return. Where the fabric went away meanwhile, the file
        is written anew.
        """

        def once() -> None:
            file.seek(0)
            file.truncate()
            for chunk in self.stream(request, pb.Chunk):
                file.write(chunk.data)

        self._repeated(once)

    def collect(self, request: Message, reply: type[Reply]) -> list[Reply]:
        """All that a call streams, repeated while the fabric is away."""
        return self._repeated(lambda: list(self.stream(request, reply)))

    def jobs(self, wanted: pb.ListJobsRequest, *, most: int | None) -> tuple[list[pb.Job], str]:
        """Jobs page by page, so many at most (None = all there are), and after which one there are more ("" = none)."""
        found: list[pb.Job] = []
        asked = pb.ListJobsRequest()
        asked.CopyFrom(wanted)
        while True:
            asked.limit = _PAGE if most is None else min(_PAGE, most - len(found))
            reply = self.call(asked, pb.ListJobsReply)
            found += reply.jobs
            if not reply.next or reply.next == asked.after or (most is not None and len(found) >= most):
                return found, reply.next
            asked.after = reply.next

    def logs(
        self, job_id: str, *, follow: bool = False, on_away: Callable[[Unavailable], None] | None = None
    ) -> Iterator[pb.LogChunk]:
        """A job's logs as they come; where the fabric was away meanwhile, it goes on from what has come.

        With `follow` it ends when the job has ended or is parked, and then with all that was written. A fabric that is away is
        waited for, and `on_away` told once each time.
        """
        have: dict[str, int] = {}
        away_since: float | None = None
        failures = 0
        while True:
            try:
                for chunk in self.stream(pb.LogsRequest(job_id=job_id, offsets=have, follow=follow), pb.LogChunk):
                    have[f"{chunk.attempt}/{chunk.rank}"] = chunk.offset + len(chunk.data)
                    failures, away_since = 0, None
                    yield chunk
                if not follow or self._is_over(job_id):
                    return
                away_since, failures = None, 1  # the stream has ended, and the job has not
            except Unavailable as error:
                now, failures = time.monotonic(), failures + 1
                if away_since is None:
                    away_since = now
                    if on_away is not None:
                        on_away(error)
                if self._closed or (now - away_since >= _FOLLOWS_AWAY_S if follow else failures >= self._attempts()):
                    raise
            time.sleep(min(_PAUSE_MAX_S, _PAUSE_S * 2**failures))

    def _is_over(self, job_id: str) -> bool:
        """Whether nothing more will be written: the job has ended for good, or is parked."""
        job = self.call(pb.GetJobRequest(job_id=job_id), pb.Job)
        return job.settled or (job.state == "parked" and not job.HasField("lease_id"))

    def put_blob(self, data: bytes) -> str:
        """Keep bytes in the fabric's archive, under the account; answers their sha256, by which to name them. What is there
        already isn't sent again; `on_sent` is told how far it is: (bytes sent, of how many).
        """
        sha256 = hashlib.sha256(data).hexdigest()
        send = self._callable(METHODS["PutBlob"])

        def once(chunks: Callable[[], Iterator[pb.Chunk]]) -> None:
            try:
                send(chunks(), metadata=self._metadata)
            except self.failures as error:
                raise self._error(error) from None

        if len(data) > _ASKED_FIRST_BYTES:
            try:
                self._repeated(lambda: once(lambda: iter([pb.Chunk(sha256=sha256)])))
            except InvalidRequest as error:
                if error.code != "blob_corrupt":  # it has another one: none at all
                    raise
            else:
                return sha256
        self._repeated(lambda: once(lambda: _chunks(data, sha256=sha256, told=self.on_sent)))
        return sha256

    def close(self) -> None:
        self._closed = True
        self._channel.close()

    def _repeated(self, once: Callable[[], Answer], *, timeout_s: float | None = None) -> Answer:
        """What it answers, tried again while the fabric is away: for longer where it has answered before, because a gate
        that was killed is back in seconds; and not for long where it is there and doesn't answer. What comes out in the end,
        an answer or a refusal, looks as if tried once.
        """
        began = time.monotonic()
        was_silent = self._is_silent

        def helps(error: Unavailable) -> bool:
            self._is_silent = error.code == GATE_SILENT
            return not (self._is_silent and (was_silent or time.monotonic() - began >= _SILENT_S))

        try:
            answer = self._in_turn(once)
        except Unavailable as error:
            if not helps(error):
                raise
        else:
            self._has_answered, self._is_silent = True, False
            return answer
        attempts = self._attempts()
        until = None if timeout_s is None else time.monotonic() + timeout_s
        for attempt in range(attempts):
            pause_s = min(_PAUSE_MAX_S, _PAUSE_S * 2**attempt) * random.uniform(0.5, 1)  # noqa: S311  # so that many don't come at once
            try:
                answer = self._in_turn(once)
            except Unavailable as error:
                late = attempt + 1 == attempts or (until is not None and time.monotonic() + pause_s > until)
                if late or not helps(error):
                    raise error.with_traceback(None) from None
            except FabricError as error:
                raise error.with_traceback(None) from None
            else:
                self._is_silent = False
                return answer
            time.sleep(pause_s)
        raise AssertionError("the last attempt either returns or raises")

    def _attempts(self) -> int:
        """How often it is tried: more where it is known that there is a fabric, which comes back."""
        return _ATTEMPTS_ONCE_KNOWN if self._has_answered else _ATTEMPTS

    def _in_turn(self, once: Callable[[], Answer]) -> Answer:
        """What it answers, once the door has time for it."""
        until = time.monotonic() + _PACED_S
        while True:
            try:
                return once()
            except RateLimited as error:
                wait_s = error.facts.get("retry_after_s")
                if not self._paced or not isinstance(wait_s, int) or time.monotonic() + wait_s > until:
                    raise
            time.sleep(wait_s)

    def _callable(self, method: Method) -> Any:
        if self._closed:
            raise closed(self.profile.address)
        if method.name not in self._callables:
            kind = {
                (False, False): self._channel.unary_unary,
                (False, True): self._channel.unary_stream,
                (True, False): self._channel.stream_unary,
            }[method.client_streams, method.server_streams]
            self._callables[method.name] = kind(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.reply.FromString,
            )
        return self._callables[method.name]

    def _error(self, error: Exception) -> FabricError:
        return error_of_call(error, address=self.profile.address)


class Stream(Iterator[Reply]):
    """Answers as they come. `cancel` may be called from another thread."""

    def __init__(self, client: Client, call: Any) -> None:
        self._client = client
        self._call = call

    def __next__(self) -> Reply:
        try:
            return cast("Reply", next(self._call))
        except self._client.failures as error:
            raise self._client._error(error) from None  # noqa: SLF001  # the two are one thing in two classes

    def cancel(self) -> None:
        self._call.cancel()


def facts_of(accepted: pb.Accepted | pb.SubmitReply) -> dict[str, str | int | bool | None]:
    """What else a yes has to say."""
    facts: dict[str, str | int | bool | None] = json.loads(accepted.facts_json or "{}")
    return facts


def _method_of(request: Message, reply: type[Message]) -> Method:
    method = METHODS[type(request).__name__.removesuffix("Request")]
    assert method.reply is reply, f"{method.name} answers {method.reply.__name__}"
    return method


def _chunks(data: bytes, *, sha256: str, told: Callable[[int, int], None]) -> Iterator[pb.Chunk]:
    yield pb.Chunk(data=data[:CHUNK_BYTES], sha256=sha256)
    for start in range(CHUNK_BYTES, len(data), CHUNK_BYTES):
        told(start, len(data))
        yield pb.Chunk(data=data[start : start + CHUNK_BYTES])
    told(len(data), len(data))
