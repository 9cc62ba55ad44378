"""An account that its plan's terms park and close: the books verify, and what of it was forfeited is in the costs."""

from msgspec.structs import replace

from fabric.audit.verify import verify_export
from fabric.charging.catalogue import Dunning, Mode, Plan
from fabric.focus.charges import UNUSED
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import ClosePeriod, Configure, Tick, TopUp
from fabric.gate.questions import BookedOf
from fabric.gate.serving_events import Authorize, SettleHold
from tests.audit.conftest import CATALOGUE, CT, USE
from tests.focus.test_charges import charges_of

TERMS = Dunning(due_days=1, stop_days=1, park_days=2, close_days=5)
POST = Plan(
    name="post",
    tier_rank=0,
    price_microcny_per_ct=400_000,
    lifetime_days=180,
    mode=Mode.POSTPAID,
    credit_limit_uhs=20 * CT,
    dunning=TERMS,
)


async def test_an_account_that_was_parked_and_closed_for_its_debt_verifies(log):
    tariffs = log.writer.core._core.tariffs
    catalogue = replace(CATALOGUE, version=2, plans=(*CATALOGUE.plans, POST))
    of = {"account_id": "dan"}
    await log.write(
        [
            Configure(tariffs=tariffs, catalogue=catalogue),
            OpenAccount(name="dan", plan="post", request_id="open", **of),
            Authorize(hold_id="h", amount_uhs=7 * CT, use=USE, ttl_us=60_000_000, **of),
            SettleHold(hold_id="h", seq=1, used_uhs=7 * CT, **of),
            ClosePeriod(period="one"),
            TopUp(amount_uhs=3 * CT, request_id="paid ahead", **of),
        ]
    )
    for days, standing in ((3, "suspended"), (3, "closed")):
        log.clock.advance(seconds=days * 86_400)
        await log.write([Tick()])
        assert log.writer.core.state.accounts["dan"].standing == standing
    for account in (None, "dan"):
        report = verify_export(iter(await log.export(account)))
        assert not report.problem, report
    page = await log.auditor.answer(BookedOf(account_id="dan"))
    charges, reckoned = charges_of(page.entries)
    (lot,) = reckoned.lots.values()
    forfeited = [charge for charge in charges if charge.lot is lot and charge.kind == UNUSED]
    assert (lot.left, lot.left_pico) == (0, 0)
    assert sum(charge.effective_pico for charge in forfeited) == 3 * 400_000 * 10**6, "paid for, and forfeited"
