"""What the journal has of requests: a yes once, a refusal without effect not at all; and that it proves all the same."""

from fabric.audit.verify import verify_export
from fabric.gate.events import JobKind, JobSpec, Submit, TopUp
from fabric.gate.instructions import Accepted, Refusal
from fabric.units import UHS_PER_CT as CT


async def test_a_request_id_that_is_used_again_after_32_days_proves_as_well(log):
    paid = {"account_id": "acme", "payment_ref": "p1", "request_id": "same"}
    await log.write([TopUp(amount_uhs=CT, **paid), TopUp(amount_uhs=CT, **paid)])
    size = log.writer.head.size
    log.clock.advance(seconds=32 * 86_400)
    (later,) = await log.write([TopUp(amount_uhs=2 * CT, **paid | {"payment_ref": "p2"})])
    assert isinstance(later, Accepted)
    assert log.writer.head.size > size
    report = verify_export(await log.export(), trusted_key=log.auditor.verifier_key)
    assert report.ok, report


async def test_what_is_refused_without_a_trace_or_asked_again_makes_no_entry(log):
    wanted = JobSpec(name="big", kind=JobKind.FUNCTION, limit_uhs=10**6 * CT, payload="x" * 60_000)
    asked = Submit(job_id="big", account_id="acme", spec=wanted, request_id="big")
    paid = TopUp(account_id="acme", amount_uhs=CT, payment_ref="p", request_id="paid")
    await log.write([paid])
    size = log.writer.head.size
    answers = await log.write([asked, paid, asked, paid])
    assert [type(answer) for answer in answers] == [Refusal, Accepted, Refusal, Accepted]
    assert log.writer.head.size == size
