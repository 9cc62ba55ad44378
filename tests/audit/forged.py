"""A story that a gate really told, and what an operator who signs whatever it likes may make of it."""

import asyncio
import copy
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

from fabric.clock import VirtualClock
from fabric.gate.events import Grant, Tick
from fabric.gate.gate import Gate
from fabric.journal.auditor import Auditor
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.writer import Writer
from tests.audit.conftest import CT, KEY, ORIGIN, Log, calls, holds, opening
from tests.audit.test_cheats import entries, transfer_of
from tests.audit.test_verify import leaves_of

DAY_US = 86_400_000_000


@cache
def story(decide_by=lambda event: event):
    """Top-ups, a bundle, a grant that expires, holds, calls and a job, of two accounts; some events decided as others."""

    async def carry_out(_):
        pass

    async def told():
        with tempfile.TemporaryDirectory() as folder:
            clock, journal = VirtualClock(1_700_000_000_000_000), SqliteJournal(Path(folder) / "journal.sqlite")
            writer = Writer(journal, restore=Gate.restore, clock=clock, carry_out=carry_out)
            await writer.start()
            log = Log(writer, clock, Auditor(journal, origin=ORIGIN, signing_key=KEY), [])
            events = [*opening("acme", "beta"), *holds("acme"), *holds("beta"), Tick(), *calls("acme")]
            await log.write([decide_by(event) for event in events])
            await log.run_job("acme", job_id="job-1")
            await log.write([Grant(account_id="acme", amount_uhs=CT, lifetime_us=DAY_US, request_id="grant")])
            clock.advance(seconds=40 * 86_400)
            await log.write([Tick()])
            leaves = leaves_of(await log.export())
            await writer.close()
            return tuple(leaves)

    return asyncio.run(told())


def honest():
    return entries(story())


def entry_of(log, event, account="acme"):
    return next(
        entry
        for entry in log
        if (entry["event"] or {}).get("event") == event and entry["event"].get("account_id", account) == account
    )


def lease_entry(log):
    return next(entry for entry in log if any(not r.get("model") for r in entry["records"]))


def lease_record(log):
    return lease_entry(log)["records"][0]


def calls_entry(log):
    return next(entry for entry in log if any(r.get("model") and r["charged_uhs"] for r in entry["records"]))


def call_of(log):
    return next(r for r in calls_entry(log)["records"] if r["charged_uhs"])


def renumbered(log):
    """As an operator would who knows what is looked at."""
    number, numbers = 0, Counter()
    for seq, entry in enumerate(log):
        entry["seq"] = seq
        for transfer in entry["transfers"]:
            number += 1
            numbers[transfer["account_id"]] += 1
            transfer["transfer_id"], transfer["number"] = number, numbers[transfer["account_id"]]


def scaled(transfer, factor):
    for leg in transfer["postings"]:
        leg[2] *= factor
    for share in transfer["lots"]:
        share[1] *= factor


# -- by the operator ---------------------------------------------------------------------------------------------------


def a_lease_record_doubled_under_another_id(log):
    entry = lease_entry(log)
    again = copy.deepcopy(entry["records"][0])
    again["cdr_id"] = again["lease_id"] = "job-1.2"
    entry["records"].append(again)


def a_lease_of_triple_weight(log):
    record = lease_record(log)
    record["weight_ppm"] *= 3
    record["charged_uhs"] *= 3


def a_lease_captured_twice(log):
    """Its record is right, and twice as much leaves the account."""
    capture = next(t for e in log for t in e["transfers"] if t["kind"] == "capture" and t["ref"].startswith("job-1#"))
    scaled(capture, 2)
    release = next(t for e in log for t in e["transfers"] if t["kind"] == "release" and t["ref"].startswith("job-1#"))
    less = capture["lots"][0][1] // 2
    release["postings"][0][2] += less
    release["postings"][1][2] -= less
    release["lots"][0][1] -= less


def a_lease_captured_without_a_record(log):
    lease_entry(log)["records"] = []


def a_lease_under_tariffs_that_were_never_offered(log):
    record = lease_record(log)
    record["tariff_version"] = 7
    record["weight_ppm"] *= 10
    record["charged_uhs"] *= 10


def a_doubled_price_of_a_top_up(log):
    for leg in entry_of(log, "top_up")["transfers"][0]["postings"]:
        if leg[1] == "CNY":
            leg[2] *= 2


def half_the_tokens_for_the_price(log):
    transfer = entry_of(log, "top_up")["transfers"][0]
    for leg in transfer["postings"]:
        if leg[1] == "CT":
            leg[2] //= 2
    transfer["lots"][0][1] //= 2


def half_the_tokens_asked_and_given_for_the_price(log):
    half_the_tokens_for_the_price(log)
    entry_of(log, "top_up")["event"]["amount_uhs"] //= 2


def a_dearer_bundle(log):
    for leg in entry_of(log, "buy_bundle")["transfers"][0]["postings"]:
        if leg[1] == "CNY":
            leg[2] *= 2


def a_bundle_with_fewer_tokens(log):
    transfer = entry_of(log, "buy_bundle")["transfers"][0]
    for leg in transfer["postings"]:
        if leg[1] == "CT":
            leg[2] //= 2
    transfer["lots"][0][1] //= 2


def a_dearer_side_of_a_bundle(log):
    for leg in entry_of(log, "buy_bundle")["transfers"][1]["postings"]:
        leg[2] *= 3


def a_lot_without_its_payment(log):
    transfer = entry_of(log, "top_up")["transfers"][0]
    transfer["postings"] = [leg for leg in transfer["postings"] if leg[1] == "CT"]


def ten_to_the_forty_cny(log):
    for leg in entry_of(log, "top_up")["transfers"][0]["postings"]:
        if leg[1] == "CNY":
            leg[2] *= 10**34


def tokens_for_an_account_that_was_never_opened(log):
    entry = copy.deepcopy(entry_of(log, "grant"))
    entry["event"] |= {"account_id": "ghost", "request_id": "ghost"}
    for transfer in entry["transfers"]:
        transfer["account_id"] = "ghost"
        transfer["ref"] = transfer["lots"][0][0] = "lot-ghost"
        transfer["postings"][1][0] = "cust/ghost/available"
        transfer["at_us"] = entry["at_us"] = log[-1]["at_us"]
    log.append(entry)
    renumbered(log)


def tokens_granted_by_nobody(log):
    entry_of(log, "grant")["event"] = {"event": "tick"}


def a_call_ten_times_under_a_rate_that_was_never_offered(log):
    call = call_of(log)
    call["rate_version"] = 9
    call["rate_uhs_per_mtok"] = [10 * rate for rate in call["rate_uhs_per_mtok"]]
    call["charged_uhs"] *= 10


def a_call_at_another_rate(log):
    call = call_of(log)
    call["rate_uhs_per_mtok"] = [10 * rate for rate in call["rate_uhs_per_mtok"]]


def a_call_with_more_tokens(log):
    call_of(log)["completion_tokens"] = call_of(log).get("completion_tokens", 0) + 1_000


def a_call_captured_without_a_record(log):
    entry = calls_entry(log)
    entry["records"] = []


def a_doubled_call(log):
    entry = calls_entry(log)
    entry["records"].append(copy.deepcopy(entry["records"][0]))


def a_call_that_was_reported_otherwise(log):
    """The record says more than what the slice told."""
    entry = calls_entry(log)
    call = call_of(log)
    told = next(one for one in entry["event"]["calls"] if one["call_id"] == call["cdr_id"])
    told["prompt_tokens"] -= 50


def a_capture_without_a_hold(log):
    transfer_of(log, "capture")["ref"] = "nobody-asked"


def a_capture_after_the_hold_ended(log):
    entry = copy.deepcopy(
        next(e for e in log if any(t["ref"] == "acme-1" and t["kind"] == "capture" for t in e["transfers"]))
    )
    capture = next(t for t in entry["transfers"] if t["kind"] == "capture")
    again = {
        "event": {"event": "tick"},
        "outcome": None,
        "records": [],
        "transfers": [capture],
        "at_us": log[-1]["at_us"],
    }
    log.append({"seq": 0} | again)
    capture["at_us"] = log[-1]["at_us"]
    renumbered(log)


def a_capture_beyond_its_hold(log):
    scaled(transfer_of(log, "capture"), 4)


def a_settlement_of_more_than_was_reported(log):
    entry = next(
        e for e in log if (e["event"] or {}).get("event") == "settle_hold" and e["event"]["hold_id"] == "acme-1"
    )
    capture, release = entry["transfers"]
    for leg, share in ((0, -1), (1, 1)):
        capture["postings"][leg][2] += share * CT // 4
        release["postings"][leg][2] -= share * CT // 4
    capture["lots"][0][1] += CT // 4
    release["lots"][0][1] -= CT // 4


def an_early_expiry(log):
    transfer_of(log, "expire")["at_us"] -= 1


def a_negative_top_up(log):
    scaled(entry_of(log, "top_up")["transfers"][0], -1)


def a_request_booked_twice(log):
    entry = copy.deepcopy(entry_of(log, "top_up"))
    entry["at_us"] = entry["transfers"][0]["at_us"] = log[5]["at_us"]
    log.insert(6, entry)
    renumbered(log)


def an_entry_dated_back(log):
    entry_of(log, "grant")["at_us"] -= DAY_US


def tokens_moved_to_a_neighbour(log):
    for leg in transfer_of(log, "release")["postings"]:
        leg[0] = leg[0].replace("acme/available", "beta/available")


def an_expiry_booked_as_revenue(log):
    for leg in transfer_of(log, "expire")["postings"]:
        leg[0] = leg[0].replace("breakage", "redeemed")


def an_account_on_a_plan_that_is_not_sold(log):
    entry_of(log, "open_account")["event"]["plan"] = "enterprise"
