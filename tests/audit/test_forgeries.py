"""Ways to forge a bill, each with its verdict from files alone: by the operator, who signs whatever it likes, and by others.

An operator changes what its log says and seals it again, with every hash, proof and signature right; or it decides by other
prices than it shows, so that all figures agree with each other. An outsider changes the file. Each is done to a full export
and to a customer's own, and is named in a sentence.
"""

import msgspec
import pytest

from fabric.audit import export
from fabric.audit.merkle import ProofTree, leaf_hash
from fabric.audit.verify import verify_export
from fabric.charging.rates import Rate
from tests.audit import forged
from tests.audit.conftest import ORIGIN, opening
from tests.audit.forged import entry_of, honest, story
from tests.audit.test_cheats import TRUSTED, account_export, entries, packed
from tests.audit.test_verify import sealed, whole_export

BY_THE_OPERATOR = [
    (forged.a_lease_record_doubled_under_another_id, "were taken, and its records charge"),
    (forged.a_lease_of_triple_weight, "has the weight 3000000, and [1000000] were offered"),
    (forged.a_lease_captured_twice, "were taken, and its records charge 602000000"),
    (forged.a_lease_captured_without_a_record, "were taken, and its records charge 0"),
    (
        forged.a_lease_under_tariffs_that_were_never_offered,
        "is charged by tariffs of version 7, which are not in the export",
    ),
    (forged.a_doubled_price_of_a_top_up, "costs 5000000 by the price list, and 10000000"),
    (forged.half_the_tokens_for_the_price, "asked for is 36000000000"),
    (forged.half_the_tokens_asked_and_given_for_the_price, "costs 2500000 by the price list, and 5000000"),
    (forged.a_dearer_bundle, "costs 10000000 by the price list, and 19000000"),
    (forged.a_bundle_with_fewer_tokens, "gives 36000000000 of CT, and 72000000000 were offered"),
    (forged.a_dearer_side_of_a_bundle, "costs 10000000 by the price list, and 12000000"),
    (forged.a_lot_without_its_payment, "costs 5000000 by the price list, and 0"),
    (forged.ten_to_the_forty_cny, "a number is beyond 64 bits"),
    (forged.tokens_for_an_account_that_was_never_opened, "is of account ghost, which was never opened"),
    (forged.tokens_granted_by_nobody, "a tick makes a grant, which nobody asked for"),
    (
        forged.a_call_ten_times_under_a_rate_that_was_never_offered,
        "rates of version 9 of tiny, which are not in the export",
    ),
    (forged.a_call_at_another_rate, "was offered"),
    (forged.a_call_with_more_tokens, "costs"),
    (forged.a_call_captured_without_a_record, "paid 92037 µHs for a use of 71701"),
    (forged.a_doubled_call, "is charged a second time"),
    (forged.a_call_that_was_reported_otherwise, "is not recorded as it was told"),
    (forged.a_capture_without_a_hold, "is a capture without a hold"),
    (forged.a_capture_after_the_hold_ended, "which had ended"),
    (forged.a_capture_beyond_its_hold, "below zero"),
    (forged.a_settlement_of_more_than_was_reported, "gives more than it had"),
    (forged.an_early_expiry, "expired 1 µs early"),
    (forged.a_negative_top_up, "costs 5000000 by the price list, and -5000000"),
    (forged.a_request_booked_twice, "books request pay-acme a second time"),
    (forged.an_entry_dated_back, "time runs backwards"),
    (forged.an_expiry_booked_as_revenue, "books on op/op/redeemed"),
    (forged.an_account_on_a_plan_that_is_not_sold, "which is no plan"),
]


@pytest.mark.parametrize("whose", [whole_export, account_export])
@pytest.mark.parametrize(("cheat", "problem"), BY_THE_OPERATOR, ids=[cheat.__name__ for cheat, _ in BY_THE_OPERATOR])
def test_what_an_operator_writes_into_its_log_is_named(cheat, problem, whose):
    log = honest()
    cheat(log)
    report = verify_export(whose(packed(log)), trusted_key=TRUSTED)
    assert problem in report.problem, report


# -- by an operator that decides by other prices than it shows: every figure agrees with every other -------------------------


def with_terms(**changes):
    """An event as it was really decided: with other tariffs, plans or bundles."""

    def decided(event):
        if type(event).__name__ != "Configure":
            return event
        tariffs, (plan,), (bundle,) = event.tariffs, event.catalogue.plans, event.catalogue.bundles
        tariffs = msgspec.structs.replace(tariffs, **changes.get("tariffs", {}))
        plan = msgspec.structs.replace(plan, **changes.get("plan", {}))
        bundle = msgspec.structs.replace(bundle, **changes.get("bundle", {}))
        return msgspec.structs.replace(
            event, tariffs=tariffs, catalogue=msgspec.structs.replace(event.catalogue, plans=(plan,), bundles=(bundle,))
        )

    return decided


def at_ten_times_the_rates(event):
    if type(event).__name__ != "OfferModel":
        return event
    (rate,) = event.rates
    numbers = {name: 10 * getattr(rate, name) for name in Rate.__struct_fields__ if name.endswith("_per_mtok")}
    return msgspec.structs.replace(event, rates=(msgspec.structs.replace(rate, **numbers),))


def heavier(event):
    (weight,) = opening()[0].tariffs.weights
    return with_terms(tariffs={"weights": (msgspec.structs.replace(weight, ppm=3_000_000),)})(event)


dearer_plan = with_terms(plan={"price_microcny_per_ct": 1_000_000})
shorter_plan = with_terms(plan={"lifetime_days": 10})


def dearer_bundle(event):
    (bundle,) = opening()[0].catalogue.bundles
    parts = tuple(msgspec.structs.replace(part, share_microcny=2 * part.share_microcny) for part in bundle.components)
    return with_terms(bundle={"price_microcny": 20_000_000, "components": parts})(event)


def smaller_bundle(event):
    (bundle,) = opening()[0].catalogue.bundles
    compute, minutes = bundle.components
    parts = (msgspec.structs.replace(compute, amount=compute.amount // 2), minutes)
    return with_terms(bundle={"components": parts})(event)


DECIDED_OTHERWISE = [
    (heavier, "has the weight 3000000, and [1000000] were offered"),
    (dearer_plan, "costs 5000000 by the price list, and 10000000"),
    (shorter_plan, "µs early"),
    (dearer_bundle, "costs 10000000 by the price list, and 20000000"),
    (smaller_bundle, "and 72000000000 were offered"),
    (at_ten_times_the_rates, "was offered"),
]


@pytest.mark.parametrize("whose", [whole_export, account_export])
@pytest.mark.parametrize(("decided", "problem"), DECIDED_OTHERWISE, ids=["heavier", "dearer_plan",
                         "shorter_plan", "dearer_bundle", "smaller_bundle", "at_ten_times_the_rates"])  # fmt: skip
def test_who_decides_by_other_prices_than_it_shows_is_named(decided, problem, whose):
    log, shown = entries(story(decided)), honest()
    assert verify_export(whose(packed(log)), trusted_key=TRUSTED).ok, "by the prices that it was decided by it is sound"
    for entry in log:
        if (entry["event"] or {}).get("event") in ("configure", "offer_model"):
            entry["event"] = entry_of(shown, entry["event"]["event"])["event"]
    report = verify_export(whose(packed(log)), trusted_key=TRUSTED)
    assert problem in report.problem, report


# -- by leaving out, and by others ----------------------------------------------------------------------------------------


def lines_of(leaves, *, leave_out=(), withhold=()):
    """acme's export, without some entries, or with no more than their hashes."""
    tree = ProofTree(leaf_hash(leaf) for leaf in leaves)
    lines = [export.header_line(origin=ORIGIN, key=TRUSTED, account_id="acme")]
    for seq, leaf in enumerate(leaves):
        if b'"beta' in leaf or b"/beta" in leaf or seq in leave_out:
            continue
        proof = tree.inclusion(seq, size=len(leaves))
        lines.append(
            export.withheld_line(seq, leaf_hash(leaf), proof=proof)
            if seq in withhold
            else export.entry_line(seq, leaf, proof=proof)
        )
    return sealed(lines, list(leaves))


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ("configure", "which are not in the export"),
        ("offer_model", "which are not in the export"),
        ("open_account", "which was never opened"),
        ("submit", "are left out"),
        ("top_up", "are left out"),
    ],
)
def test_an_export_without_what_its_charges_follow_from_is_named(event, problem):
    log = honest()
    out = {entry["seq"] for entry in log if (entry["event"] or {}).get("event") == event}
    report = verify_export(lines_of(story(), leave_out=out), trusted_key=TRUSTED)
    assert problem in report.problem, report


def test_no_entry_that_moved_something_is_left_out_or_withheld_unseen():
    """Its transfers have numbers, under the signed root. What was left out at the end is missed by the next export."""
    mine = [entry["seq"] for entry in honest() if any(each["account_id"] == "acme" for each in entry["transfers"])]
    assert len(mine) > 10
    for seq in mine[:-1]:
        for how in ("leave_out", "withhold"):
            report = verify_export(lines_of(story(), **{how: {seq}}), trusted_key=TRUSTED)
            assert "are left out" in report.problem, (seq, how, report)
