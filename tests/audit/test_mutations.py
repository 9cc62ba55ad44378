"""Every figure of an honest export that says what somebody owns or pays is changed and sealed again: each change is named."""

import copy

import pytest

from fabric.audit.verify import verify_export
from fabric.gate.events import Grant, Tick
from tests.audit.conftest import CT, calls
from tests.audit.test_cheats import TRUSTED, account_export, entries, packed
from tests.audit.test_verify import leaves_of, whole_export


@pytest.fixture
async def leaves(log):
    await log.write(calls("acme"))
    await log.run_job("acme", job_id="job-1")
    await log.write([Grant(account_id="acme", amount_uhs=CT, lifetime_us=86_400_000_000, request_id="grant")])
    log.clock.advance(seconds=40 * 86_400)
    await log.write([Tick()])
    return leaves_of(await log.export())


def changes(log):
    """(what, where): how to change it, for acme's transfers and the events that ask for tokens."""
    for at, entry in enumerate(log):
        for number, transfer in enumerate(entry["transfers"]):
            if transfer["account_id"] != "acme":
                continue
            place = at, "transfers", number
            yield "kind", (*place, "kind"), "gift"
            if transfer["kind"] == "capture":
                yield "disguise", (*place, "kind"), "void"
            for leg, (account, _, amount) in enumerate(transfer["postings"]):
                if not account.startswith("cash/"):  # of those there are as many as ways to pay
                    yield "account", (*place, "postings", leg, 0), f"{account}x"
                yield "root", (*place, "postings", leg, 0), f"x{account}"
                yield "owner", (*place, "postings", leg, 0), account.replace("acme", "gamma")
                yield "posting", (*place, "postings", leg, 2), amount + 1
                yield "posting", (*place, "postings", leg, 2), amount - 1
            for share, (_, amount) in enumerate(transfer["lots"]):
                yield "lot", (*place, "lots", share, 1), amount + 1
                yield "share below zero", (*place, "lots", share, 1), -amount
                yield "lots twice", (*place, "lots"), [*transfer["lots"], transfer["lots"][share]]
            if transfer["kind"] in ("top_up", "bundle", "grant"):
                yield "lots gone", (*place, "lots"), []
        event = entry["event"] or {}
        booked = any(transfer["kind"] == event.get("event") for transfer in entry["transfers"])
        if event.get("event") in ("top_up", "grant") and event["account_id"] == "acme" and booked:
            yield "asked", (at, "event", "amount_uhs"), event["amount_uhs"] + 1
            yield "asked by another", (at, "event", "account_id"), "gamma"


def changed(log, where, new):
    log = copy.deepcopy(log)
    *path, last = where
    place = log
    for step in path:
        place = place[step]
    if place[last] == new:
        return None
    place[last] = new
    return log


@pytest.mark.parametrize("whose", [whole_export, account_export])
def test_no_figure_of_what_somebody_owns_or_pays_is_changed_unnamed(leaves, whose):
    assert verify_export(whose(leaves), trusted_key=TRUSTED).ok
    log, unnamed, tried = entries(leaves), [], 0
    for what, where, new in changes(log):
        other = changed(log, where, new)
        if other is not None:
            tried += 1
            if verify_export(whose(packed(other)), trusted_key=TRUSTED).ok:
                unnamed.append((what, where, new))
    assert tried > 200
    assert not unnamed, f"{len(unnamed)}: {sorted(set(map(str, unnamed)))}"


@pytest.mark.parametrize("value", [0, -1, None, "x", [], {}, 2**62, [[0, 0]]])
def test_an_export_of_nonsense_is_refused_in_a_sentence(leaves, value):
    """Whatever stands in the place of a price, a weight or a curve: nothing is raised, and nothing is believed."""
    log = entries(leaves)
    points = log[1]["event"]["tariffs"]["curve"]["points"]
    for where in (
        (1, "event", "tariffs", "curve", "points"),
        (1, "event", "tariffs", "curve", "points", 1),
        (1, "event", "tariffs", "curve", "points", len(points) - 1, 0),
        (1, "event", "tariffs", "weights"),
        (1, "event", "catalogue", "plans"),
    ):
        other = changed(log, where, value)
        if other is not None:
            verify_export(whole_export(packed(other)), trusted_key=TRUSTED)
