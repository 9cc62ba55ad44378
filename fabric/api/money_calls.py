"""Calls about money: what there is, what is bought, what was charged, and the proof of it."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec.structs import replace

from fabric.api.job_calls import CHUNK_BYTES, chunks
from fabric.api.keys import Caller
from fabric.api.messages import (
    accepted,
    amount,
    at_least,
    facts_json,
    message_of,
    reference,
    request_id,
    several,
    short,
    word,
)
from fabric.api.service import ApiService
from fabric.api.serving_calls import calls_of
from fabric.api.statement_text import StatementText
from fabric.audit.usage import Usage, Used
from fabric.charging.rates import LLM_TOKENS_MAX
from fabric.charging.records import Cdr
from fabric.errors import InvalidRequest, PermissionDenied
from fabric.gate.events import BuyBundle, Subscribe, TopUp, Unsubscribe
from fabric.gate.instructions import Accepted
from fabric.gate.key_scopes import KeyScope
from fabric.gate.payments import OPERATOR, SANDBOX
from fabric.gate.questions import (
    BalanceOf,
    BookedOf,
    CheckpointOf,
    FreeOf,
    JobOf,
    PricesOf,
    ReceiptsOf,
    RecordsOf,
    StatementOf,
)
from fabric.gate.serving_events import Authorize, ReleaseHold, SettleHold, UpdateHold, Wanted
from fabric.gate.views import BalanceView, RoomView
from fabric.ledger.own_holds import OWN
from fabric.ledger.scopes import Service, Use
from fabric.units import AccountId, HoldId, JobId, KeyId
from fabric.wire import fabric_pb2 as pb


async def balance(door: ApiService, caller: Caller, _: pb.BalanceRequest) -> pb.BalanceReply:
    return message_of(await door.balance(caller.account), pb.BalanceReply)


async def top_up(door: ApiService, caller: Caller, request: pb.TopUpRequest) -> pb.Accepted:
    _may_buy(door, caller)
    event = TopUp(
        account_id=caller.account,
        amount_uhs=amount("amount_uhs", request.amount_uhs),
        payment_ref=_payment_ref(door, request.payment_ref),
        channel=_channel(door),
        request_id=request_id(request.request_id),
    )
    return await _bought(door, event.account_id, await door.gate.decide(event))


async def buy_bundle(door: ApiService, caller: Caller, request: pb.BuyBundleRequest) -> pb.Accepted:
    _may_buy(door, caller)
    event = BuyBundle(
        account_id=caller.account,
        bundle=short("bundle", request.bundle),
        payment_ref=_payment_ref(door, request.payment_ref),
        channel=_channel(door),
        request_id=request_id(request.request_id),
    )
    return await _bought(door, event.account_id, await door.gate.decide(event))


async def subscribe(door: ApiService, caller: Caller, request: pb.SubscribeRequest) -> pb.Accepted:
    _may_buy(door, caller)
    event = Subscribe(
        account_id=caller.account,
        subscription=short("subscription", request.subscription),
        payment_ref=_payment_ref(door, request.payment_ref),
        channel=_channel(door),
        request_id=request_id(request.request_id),
    )
    return await _bought(door, event.account_id, await door.gate.decide(event))


async def unsubscribe(door: ApiService, caller: Caller, request: pb.UnsubscribeRequest) -> pb.Accepted:
    event = Unsubscribe(
        account_id=caller.account,
        subscription=short("subscription", request.subscription),
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def usage(door: ApiService, caller: Caller, request: pb.UsageRequest) -> AsyncIterator[pb.Cdr]:
    await door.check_customer(caller)
    if request.job_id:
        await door.job(request.job_id, caller)
    elif not caller.may(KeyScope.READ, KeyScope.MONEY, KeyScope.JOBS_ALL):
        raise PermissionDenied(
            "this key sees the usage of its own jobs only: name the job", code="restricted_key", key_id=caller.key_id
        )
    until_us = request.until_us if request.HasField("until_us") else None
    job_id = JobId(request.job_id) if request.job_id else None
    if caller.scope is not None and (request.from_us or until_us is not None):
        booked = BookedOf(account_id=caller.scope, from_us=request.from_us, until_us=until_us)
        async for used in _used(door, booked, job_id):
            if _is_of(used.record, request.project):
                row = message_of(used.record, pb.Cdr)
                row.booked_uhs = used.booked_uhs
                yield row
        return
    question: RecordsOf | None = RecordsOf(
        account_id=caller.scope, job_id=job_id, from_us=request.from_us, until_us=until_us
    )
    while question is not None:
        page: Any = await door.port.ask(question)
        for record in page.records:
            if _is_of(record, request.project):
                yield message_of(record, pb.Cdr)
        question = page.following


def _is_of(record: Cdr, project: str) -> bool:
    return not project or project == (record.project or record.account_id)


async def _used(door: ApiService, asked: BookedOf, job_id: JobId | None) -> AsyncIterator[Used]:
    """What was booked in the time, whatever runs over its ends: the statement of the same time charges the same."""
    reckoned, question = Usage(asked.account_id, job_id=job_id), asked
    while question is not None:
        page: Any = await door.port.ask(question)
        for entry in page.entries:
            for used in reckoned.add(entry):
                yield used
        question = page.following
    for used in reckoned.rest():
        yield used._replace(record=await _named(door, used.record))


async def _named(door: ApiService, record: Cdr) -> Cdr:
    """What is booked of a job that has no record yet, with what that one will say of whose it is."""
    job: Any = await door.port.ask(JobOf(job_id=JobId(record.job_id))) if record.job_id else None
    if job is None:
        return record
    project = "" if job.project == record.account_id else job.project
    return replace(record, project=project, member=job.member, tags=job.tags)


async def statement(door: ApiService, caller: Caller, request: pb.StatementRequest) -> AsyncIterator[pb.Chunk]:
    """Its JSON as it comes, page by page."""
    await door.check_customer(caller)
    until_us = request.until_us if request.HasField("until_us") else None
    question: StatementOf | None = StatementOf(account_id=caller.account, from_us=request.from_us, until_us=until_us)
    text = StatementText()
    while question is not None:
        page: Any = await door.port.ask(question)
        async for chunk in chunks(text.add(page)):
            yield chunk
        question = page.following


async def prices(door: ApiService, _: Caller, __: pb.PricesRequest) -> AsyncIterator[pb.Chunk]:
    async for chunk in chunks(msgspec.json.encode(await door.port.ask(PricesOf()))):
        yield chunk


async def receipts(door: ApiService, caller: Caller, request: pb.ReceiptsRequest) -> AsyncIterator[pb.Document]:
    await door.check_customer(caller)
    if request.job_id:
        await door.job(request.job_id, caller)
    question: ReceiptsOf | None = ReceiptsOf(
        account_id=caller.account, job_id=JobId(request.job_id) if request.job_id else None
    )
    while question is not None:
        page: Any = await door.port.ask(question)
        for receipt in page.receipts:
            yield pb.Document(json=msgspec.json.encode(receipt))
        question = page.following


async def log_checkpoint(door: ApiService, _: Caller, __: pb.LogCheckpointRequest) -> pb.LogCheckpointReply:
    sealed: Any = await door.port.ask(CheckpointOf())
    return message_of(sealed, pb.LogCheckpointReply)


async def export(door: ApiService, caller: Caller, request: pb.ExportRequest) -> AsyncIterator[pb.Chunk]:
    """Lines are gathered into messages of a sensible size."""
    await door.check_customer(caller)
    since = at_least(0, "since_size", request.since_size) if request.HasField("since_size") else None
    gathered: list[bytes] = []
    size = 0
    async for line in door.port.export(account_id=caller.scope, since=since):
        whole = line if line.endswith(b"\n") else line + b"\n"
        gathered.append(whole)
        size += len(whole)
        if size >= CHUNK_BYTES:
            async for chunk in chunks(b"".join(gathered)):
                yield chunk
            gathered, size = [], 0
    if gathered:
        async for chunk in chunks(b"".join(gathered)):
            yield chunk


async def authorize(door: ApiService, caller: Caller, request: pb.AuthorizeRequest) -> pb.Accepted:
    service = word(Service, "service", request.service or Service.INFERENCE)
    if not caller.may(KeyScope.HOLDS) and service is not Service.INFERENCE:
        raise PermissionDenied(
            f"a replica's key holds for inference only, not for {service}", code="restricted_key", key_id=caller.key_id
        )
    event = Authorize(
        hold_id=_hold_id(caller, request.hold_id),
        account_id=caller.account,
        amount_uhs=amount("amount_uhs", request.amount_uhs),
        use=Use(
            service=service,
            accelerators=several("accelerators", request.accelerators),
            models=several("models", request.models),
            operators=several("operators", request.operators),
        ),
        ttl_us=at_least(1, "ttl_us", request.ttl_us),
        minimum_uhs=amount("minimum_uhs", request.minimum_uhs) if request.HasField("minimum_uhs") else None,
        key_id=_key_id(caller, request.key_id),
        # A gateway repeats itself by the hold's own name: what it asks is too much to be remembered for ever.
        request_id="" if caller.operator and not request.request_id else request_id(request.request_id),
        wanted=_wanted(caller, request),
    )
    return await _held(door, caller, event.hold_id, await door.gate.decide(event))


async def update_hold(door: ApiService, caller: Caller, request: pb.UpdateHoldRequest) -> pb.Accepted:
    event = UpdateHold(
        hold_id=_hold_id(caller, request.hold_id),
        account_id=caller.account,
        seq=at_least(1, "seq", request.seq),
        used_uhs=at_least(0, "used_uhs", request.used_uhs),
        more_uhs=at_least(0, "more_uhs", request.more_uhs),
        ttl_us=at_least(1, "ttl_us", request.ttl_us) if request.HasField("ttl_us") else None,
        minimum_uhs=at_least(1, "minimum_uhs", request.minimum_uhs) if request.HasField("minimum_uhs") else 1,
        calls=calls_of(caller, request.calls),
        wanted=_wanted(caller, request),
    )
    return await _held(door, caller, event.hold_id, await door.gate.decide(event))


async def settle_hold(door: ApiService, caller: Caller, request: pb.SettleHoldRequest) -> pb.Accepted:
    event = SettleHold(
        hold_id=_hold_id(caller, request.hold_id),
        account_id=caller.account,
        seq=at_least(1, "seq", request.seq),
        used_uhs=at_least(0, "used_uhs", request.used_uhs),
        calls=calls_of(caller, request.calls),
    )
    return accepted(await door.gate.decide(event))


async def release_hold(door: ApiService, caller: Caller, request: pb.ReleaseHoldRequest) -> pb.Accepted:
    event = ReleaseHold(
        hold_id=_hold_id(caller, request.hold_id),
        account_id=caller.account,
        seq=at_least(1, "seq", request.seq),
    )
    return accepted(await door.gate.decide(event))


async def _held(door: ApiService, caller: Caller, hold_id: HoldId, outcome: Accepted) -> pb.Accepted:
    """A yes about a hold; a gateway hears what is free beside, and sizes its next request by it. That is read and not
    decided: the journal has nothing of it.
    """
    reply = accepted(outcome)
    if caller.operator:
        found = await door.port.ask(FreeOf(account_id=caller.account, hold_id=hold_id))
        room = found if isinstance(found, RoomView) else RoomView()
        reply.free_uhs, reply.within_key = room.free_uhs, room.within_key
        reply.packages.extend(message_of(each, pb.PackageRoom) for each in room.packages)
    return reply


def _wanted(caller: Caller, request: pb.AuthorizeRequest | pb.UpdateHoldRequest) -> Wanted | None:
    """The LLM tokens that are asked for; what a customer holds by itself is of compute tokens."""
    if not (caller.operator and request.HasField("wanted")):
        return None
    given = request.wanted
    names = ("prompt_tokens", "completion_tokens", "least_prompt_tokens", "least_completion_tokens")
    counts = {name: min(at_least(0, name, getattr(given, name)), LLM_TOKENS_MAX) for name in names}
    return Wanted(**counts, rate_version=at_least(0, "rate_version", given.rate_version))


def _key_id(caller: Caller, given: str) -> KeyId | None:
    if given and not caller.operator:
        raise PermissionDenied("only an operator's gateway holds for a key", code="operator_only")
    return KeyId(given) if given else None


def _hold_id(caller: Caller, given: str) -> HoldId:
    """Names of holds are each account's own; what an operator's gateway holds is out of its customer's reach, and what
    holds a job up is out of everybody's.
    """
    return HoldId(f"{'gateway:' if caller.operator else OWN}{caller.account}:{request_id(given)}")


def _may_buy(door: ApiService, caller: Caller) -> None:
    if not (caller.operator or door.sandbox_payments):
        raise PermissionDenied(
            "nothing is booked here before it is paid: pay the operator, who books it with the payment's reference"
            f" (fabric topup TOKENS --account {caller.account} --payment-ref REF, with an operator key)",
            code="operator_only",
        )


def _channel(door: ApiService) -> str:
    """Who says that it was paid: where not every customer is believed, it is the operator who asks."""
    return SANDBOX if door.sandbox_payments else OPERATOR


def _payment_ref(door: ApiService, given: str) -> str:
    """What a payment is called; the same whatever space stands around it.

    Raises:
        InvalidRequest: there is none, and payments are real here (`payment_ref_missing`).
    """
    ref = reference("payment_ref", given)
    if not (ref or door.sandbox_payments):
        raise InvalidRequest(
            "a payment that is booked needs its reference (--payment-ref): what it is called where it was received",
            code="payment_ref_missing",
        )
    return ref


async def _bought(door: ApiService, account_id: AccountId, outcome: Accepted) -> pb.Accepted:
    """A yes, with what was paid in all, how long the tokens are good, and what there is now."""
    found = await door.port.ask(BalanceOf(account_id=account_id))
    reply = accepted(outcome)
    if isinstance(found, BalanceView):
        reply.facts_json = facts_json({**outcome.facts, "free_uhs": found.free_uhs})
    return reply
