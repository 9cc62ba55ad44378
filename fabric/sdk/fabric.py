"""A connection to a fabric, and what can be done with it."""

import atexit
import datetime as dt
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fabric.client.client import Client, facts_of, new_request_id
from fabric.client.profile import Profile, load_profile
from fabric.errors import InvalidRequest, Unavailable
from fabric.extras import needed
from fabric.sdk.answers import Balance, Purchase, Quote, balance_of, purchase_of, quote_of
from fabric.sdk.feed import Feed
from fabric.sdk.functions import pack_call
from fabric.sdk.job import Job
from fabric.sdk.lease import Lease
from fabric.sdk.limits import LimitCalls
from fabric.sdk.options import Limits, More, Resources, merged
from fabric.sdk.organisation import Organisation
from fabric.sdk.packing import Packed, pack_files, pack_program, script_command
from fabric.sdk.payment import Payment, ask, known
from fabric.sdk.ray_use import needs_own_ray
from fabric.sdk.request import (
    STOP_SIGNAL_VARIABLE,
    Accelerators,
    Seconds,
    Tokens,
    build_spec,
    count,
    stop_signal_of,
    tags_of,
)
from fabric.units import parse_ct
from fabric.wire import INLINE_BYTES_MAX
from fabric.wire import fabric_pb2 as pb

if TYPE_CHECKING:
    from typing_extensions import Unpack

Work = Callable[..., object] | str | os.PathLike[str] | Sequence[str]


class Fabric(LimitCalls):
    """A connection: `quote`, `submit`, `lease`, `job`, `jobs`, `balance`. Threads may share it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.organisation = Organisation(client)
        """Whose account this is: its wallets, projects and members."""
        self._feed = Feed(client)
        self._packed = Packed(None, [])

    def __enter__(self) -> "Fabric":  # noqa: PYI034  # Self is not there before Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def left_out(self) -> tuple[str, ...]:
        """What of the working directory sent last stayed because a `.gitignore` names it."""
        return self._packed.left_out

    @property
    def secrets_left_out(self) -> tuple[str, ...]:
        """Its `.env` files, which stay unless its `.fabricignore` asks for them."""
        return self._packed.secrets

    @property
    def unsent(self) -> tuple[str, ...]:
        """What a command's code names of what lies beside it, and what was not sent for want of a `working_dir`."""
        return self._packed.unsent

    def close(self) -> None:
        """Let go of the connection. Jobs go on running."""
        self._feed.close()
        self.client.close()

    def quote(
        self,
        *,
        tokens: Tokens,
        accelerators: Accelerators = "any",
        service: str = "training",
        hold: Literal["full", "rolling"] = "full",
        time_limit: Seconds | None = None,
        devices_per_node: int | None = None,
        name: str = "quote",
    ) -> Quote:
        """What a job would hold and burn, whether it would be taken now, and what those of its name took. Changes nothing."""
        spec = build_spec(
            name=name,
            kind="function",
            tokens=tokens,
            accelerators=accelerators,
            service=service,
            hold=hold,
            time_limit=time_limit,
            devices_per_node=devices_per_node,
        )
        return quote_of(self.client.call(pb.QuoteRequest(spec=spec), pb.QuoteReply))

    def submit(
        self,
        job: Work,
        *args: object,
        tokens: Tokens,
        accelerators: Accelerators = "any",
        name: str | None = None,
        tags: Sequence[str] = (),
        service: str = "training",
        hold: Literal["full", "rolling"] = "full",
        kwargs: Mapping[str, object] | None = None,
        working_dir: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        resources: Resources | None = None,
        limits: Limits | None = None,
        request_id: str | None = None,
        **more: "Unpack[More]",
    ) -> Job:
        """Hold tokens for a job and queue it.

        Args:
            job: a callable (with its arguments, and the modules and packages of your own that it reaches; `async def` runs to its
                end), the path of a Python script, or a command as a list.
            *args: for the callable, or for the script's command line.
            tokens: the most it may burn. When that is reached it is asked to checkpoint and is parked.
            accelerators: "H100:2", "any", or types to choose from, ["H100:2", "A100:2"]; a gang gets one type (but see `mix`). A range
                ("H100:2-4", "any:1-8") makes it elastic: at every start, and every resume, it takes the best there is.
            name: what people see; the callable's or the script's name if not given.
            tags: up to 16 words to find it by, such as "exp7" or "owner=li".
            service: training or batch. inference is for the models that the operator serves.
            hold: "full" holds the whole limit at the start, "rolling" a part at a time.
            kwargs: keyword arguments for the callable.
            working_dir: sent along as a zip, without what `.gitignore` and `.fabricignore` name: a function's modules are imported from it, and
                files are read below it. Without one, a script or a command takes along the files that it names and the modules
                beside them that they import; data files and folders need one. `.env` files stay.
            env: environment variables. They stay in the job's record, in exports of it and, for programs, on Ray's dashboard:
                no place for secrets.
            runtime_env: in Ray's words: pip or uv (a list of packages), env_vars, config.setup_timeout_seconds. Packages are
                installed on the job's own devices, at its cost, and are there for the account's next job with the same ones.
            resources: what it runs on beyond that: nodes, ranks, a Ray of its own, data.
            limits: how long it may run, its grace, retries, whether it gives way.
            request_id: name the intention yourself, to repeat it after a crash of your own, or where no answer came.
            **more: what `resources` and `limits` hold, each by its own name: `grace=60`.

        Raises:
            InvalidRequest: unpicklable, not the function's arguments, no such script, a count below 1, ...: nothing was sent.
            InvalidAmount: `tokens` is a float, in scientific notation, ...
            InsufficientTokens: the account, or the key's own limit, does not cover it.
        """
        on, within = merged(resources or Resources(), limits or Limits(), more)
        spec = build_spec(
            name=name or _name_of(job),
            kind=_kind_of(job, ray_program=on.ray_program),
            tags=tags,
            tokens=tokens,
            accelerators=accelerators,
            service=service,
            hold=hold,
            preemptible=within.preemptible,
            max_retries=within.max_retries,
            time_limit=within.time_limit,
            grace=within.grace,
            devices_per_node=on.devices_per_node,
            mix=on.mix,
            prefer=on.prefer,
            auto_park=within.auto_park,
            data=on.data,
            estimate=on.estimate,
        )
        payload = self._pack(job, args, kwargs or {}, working_dir)
        payload.env.update(env or {})
        if stop_signal_of(within.stop_signal) != "TERM":
            payload.env[STOP_SIGNAL_VARIABLE] = stop_signal_of(within.stop_signal)
        if on.preload is not None:
            payload.preload = on.preload
        if on.ranks == "device":
            payload.ranks, payload.preload = on.ranks, "torch"
        if runtime_env:
            payload.runtime_env_json = msgspec.json.encode(dict(runtime_env)).decode()
        return self._submit(spec, payload, request_id=request_id)

    def lease(
        self,
        *,
        tokens: Tokens,
        accelerators: Accelerators = "any",
        name: str = "lease",
        hold: Literal["full", "rolling"] = "full",
        devices_per_node: int | None = None,
        timeout: float = 600.0,
        service: str = "training",
        preemptible: bool = True,
    ) -> Lease:
        """Devices for this process' own Ray tasks and actors, as a context manager. Needs Ray: `token-fabric[cluster]`."""
        needed("ray", by="fabric.lease")
        spec = build_spec(
            name=name,
            kind="lease",
            tokens=tokens,
            accelerators=accelerators,
            service=service,
            hold=hold,
            preemptible=preemptible,
            devices_per_node=devices_per_node,
        )
        return Lease(self.client, self._submit(spec, pb.Payload(), request_id=None), timeout_s=timeout)

    def job(self, job_id: str = "", *, request_id: str = "") -> Job:
        """A job that was submitted before, by its id or by the request id that submitted it. `NotFound` if there is none."""
        if (job_id == "") == (request_id == ""):
            raise InvalidRequest("name a job by its id, or by request_id=, and not by both", code="which_job")
        if request_id:
            job_id = self.client.call(pb.ListJobsRequest(of_request=request_id), pb.ListJobsReply).jobs[0].job_id
        return Job(self.client, self._feed, job_id)

    def jobs(
        self,
        *states: str,
        name: str = "",
        tags: Sequence[str] = (),
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        limit: int | None = 100,
    ) -> list[pb.Job]:
        """The account's jobs, newest first: of these states, of a name ("train*" = that begins so), with all of these tags,
        submitted at or after `since` and before `until`. `limit` None = all there are, asked for page by page.
        """
        wanted = pb.ListJobsRequest(
            states=states,
            name=name,
            tags=tags_of(tags),
            from_us=0 if since is None else _us(since),
            until_us=None if until is None else _us(until),
        )
        return self.client.jobs(wanted, most=count("limit", limit, at_least=1))[0]

    def balance(self) -> Balance:
        """What the account owns."""
        return balance_of(self.client.call(pb.BalanceRequest(), pb.BalanceReply))

    def top_up(self, tokens: Tokens, *, payment_ref: str = "") -> Purchase:
        """Buy tokens at the price of the account's plan; what they cost, how long they are good, and what there is now. Where
        payments are taken by a provider, `pay` for them.
        """
        request = pb.TopUpRequest(request_id=new_request_id(), amount_uhs=parse_ct(tokens), payment_ref=payment_ref)
        return purchase_of(request.amount_uhs, facts_of(self.client.call(request, pb.Accepted)))

    def pay(
        self, tokens: Tokens | None = None, *, bundle: str = "", subscription: str = "", request_id: str | None = None
    ) -> Payment:
        """Ask to pay for tokens (at the price of the account's plan), or a bundle, or the next cycle of a subscription, which
        begins with it: one of them. `payment.url` says where. Asked again with the same `request_id`, it is the same payment.
        """
        return ask(self.client, tokens, bundle=bundle, subscription=subscription, request_id=request_id)

    def payment(self, payment_id: str) -> Payment:
        """A payment of the account that was asked for before. `NotFound` if there is none."""
        return known(self.client, payment_id)

    def usage(
        self, *, job_id: str = "", since: dt.datetime | None = None, until: dt.datetime | None = None
    ) -> list[pb.Cdr]:
        """The charging records; of a time what the statement of it charges (`booked_uhs`), what still runs and has none included."""
        request = pb.UsageRequest(job_id=job_id, from_us=0 if since is None else _us(since))
        if until is not None:
            request.until_us = _us(until)
        return self.client.collect(request, pb.Cdr)

    def statement(self, *, since: dt.datetime | None = None, until: dt.datetime | None = None) -> dict[str, Any]:
        """What was booked at or after `since` and before `until`, from the opening to the closing balance; µHs in integers."""
        request = pb.StatementRequest(from_us=0 if since is None else _us(since))
        if until is not None:
            request.until_us = _us(until)
        found: dict[str, Any] = msgspec.json.decode(self.client.fetch(request))
        return found

    def _pack(
        self,
        job: Work,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        working_dir: str | os.PathLike[str] | None,
    ) -> pb.Payload:
        payload = pb.Payload()
        if callable(job):
            sent = pack_files((), working_dir=working_dir) if working_dir is not None else None
            call = pack_call(job, args, kwargs, working_dir=working_dir, sent=sent)
            files, payload.python = call.files, call.python
            payload.python_path.extend(call.python_path)
            if len(call.pickled) <= INLINE_BYTES_MAX:
                payload.function = call.pickled
            else:
                payload.function_sha256 = self.client.put_blob(call.pickled)
        else:
            if kwargs:
                raise InvalidRequest("kwargs= are for functions: give a script its options as arguments")
            self._packed = packed = pack_program(_command_of(job, args), working_dir=working_dir)
            files, payload.preload = packed.files, packed.preload
            payload.command.extend(packed.command)
        if files is not None:
            payload.working_dir_sha256 = self.client.put_blob(files)
        return payload

    def _submit(self, spec: pb.JobSpec, payload: pb.Payload, *, request_id: str | None) -> Job:
        request = pb.SubmitRequest(request_id=request_id or new_request_id(), spec=spec, payload=payload)
        with self._feed.expecting():
            try:
                reply = self.client.call(request, pb.SubmitReply)
            except Unavailable as error:
                raise _unanswered(error, request.request_id) from None
            job = Job(self.client, self._feed, reply.job_id, fresh=request_id is None)
            job.facts = facts_of(reply)
            return job


def _unanswered(error: Unavailable, request_id: str) -> Unavailable:
    """What is said where a submission was sent and may have been taken."""
    return Unavailable(
        f"{error.message}. Whether the job was submitted is not known: submit it again with request_id={request_id!r}"
        " (--request-id), which submits it once however often it is sent; fabric.job(request_id=...) looks whether it is there",
        code=error.code,
        **{**error.facts, "request_id": request_id},
    )


def _us(moment: dt.datetime) -> int:
    """µs since the epoch; a moment without a time zone is this machine's."""
    return round(moment.timestamp() * 1_000_000)


def _kind_of(job: Work, *, ray_program: bool) -> str:
    if ray_program or (callable(job) and needs_own_ray(job)):
        return "program"
    return "function" if callable(job) else "script"


def _name_of(job: Work) -> str:
    """A name that the fabric takes, whatever the command or the function: in one line, of what can be printed."""
    if callable(job):
        whole = str(getattr(job, "__name__", type(job).__name__))
    elif isinstance(job, str | os.PathLike):
        whole = os.path.basename(job)  # noqa: PTH119  # of a path that may be on another machine
    else:
        whole = " ".join(map(str, job))
    seen = "".join(letter if letter.isprintable() else " " for letter in whole)
    return " ".join(seen.split())[:_NAME_CHARS].rstrip() or "job"


def _command_of(job: str | os.PathLike[str] | Sequence[str], args: Sequence[object]) -> list[str]:
    if isinstance(job, str | os.PathLike):
        return script_command(job, args)
    command = [*job, *map(str, args)]
    if not command or not all(isinstance(word, str) and word for word in command):
        raise InvalidRequest('a command is a list of words, such as ["python", "train.py"]', code="invalid_command")
    return command


_NAME_CHARS = 80
_current: Fabric | None = None
_connected: "weakref.WeakSet[Fabric]" = weakref.WeakSet()


def connect(
    address: str | None = None, api_key: str | None = None, ca: str | None = None, *, account: str | None = None
) -> Fabric:
    """Connect, and make this the connection that `fabric.submit` and its like use.

    One that was made before stays as it is, for whoever has it: a program may have several, and closes those that it needs
    no longer. What isn't given comes from the environment, then from the profile file (`fabric.client.profile`). `account` is for
    operators, who act for a customer with it. Nothing is sent yet.

    Raises:
        InvalidConfig: no address or no key is given anywhere, or the CA file can't be read.
    """
    global _current  # noqa: PLW0603  # one default connection for a process, as people expect of `connect`
    given = Profile(address=address or "", api_key=api_key or "", ca=ca or "", account=account or "")
    _current = Fabric(Client(load_profile(given), paced=True))
    _connected.add(_current)
    return _current


def current() -> Fabric:
    """The connection that `connect` made; made from the environment or the profile if it wasn't called."""
    return _current if _current is not None else connect()


@atexit.register
def _close() -> None:
    for fabric in list(_connected):
        fabric.close()
