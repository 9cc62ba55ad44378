"""Packages of LLM tokens: bought, used by calls before compute tokens, and exact to the token."""

import copy
import json

import msgspec
import pytest

from fabric.audit.verify import verify_export
from fabric.charging.catalogue import Bundle, Component, Cycle, Restriction, Subscription
from fabric.charging.packages import Weights, asset_of
from fabric.charging.rates import Rate
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import BuyBundle, Configure, NodeUp, Pool, Subscribe, Tick, TopUp, VoidLot
from fabric.gate.questions import BalanceOf, FreeOf
from fabric.gate.serving_events import (
    Authorize,
    CallUsed,
    ModelSpec,
    OfferModel,
    ReleaseHold,
    SettleHold,
    UpdateHold,
    Wanted,
)
from fabric.journal.encoding import entries_of
from fabric.journal.projection import project, told_by
from fabric.ledger import Service, Use
from tests.audit.test_verify import SIGNER, whole_export
from tests.gate.world import CATALOGUE, DAY, TARIFFS, Clockwork, S

QWEN = asset_of("qwen", Weights(1_000, 100, 4_000, 4_000))
ANY = asset_of("any", Weights(1_000, 1_000, 1_000, 1_000))
T = 1_000
"""A token of weight 1."""
RATE = Rate(
    input_uhs_per_mtok=40 * S, cached_uhs_per_mtok=4 * S, output_uhs_per_mtok=400 * S, reasoning_uhs_per_mtok=400 * S
)
"""40 µHs for a token of the prompt, 4 for a cached one, 400 for one of the answer."""


def of_models(*models):
    return Restriction(services=("inference",), models=models)


def bundle(name, asset, tokens, *, days=30, models=("qwen3",), price=9_900_000):
    part = Component(
        asset=asset, amount=tokens * T, share_microcny=price, lifetime_days=days, restriction=of_models(*models)
    )
    return Bundle(name=name, price_microcny=price, components=(part,))


CATALOG = msgspec.structs.replace(
    CATALOGUE,
    bundles=(
        *CATALOGUE.bundles,
        bundle("small", QWEN, 1_000),
        bundle("short", QWEN, 500, days=1),
        bundle("any", ANY, 1_000, days=60, models=()),
    ),
    subscriptions=(
        *CATALOGUE.subscriptions,
        Subscription(
            name="rolling",
            plan="starter",
            price_microcny=9_900_000,
            amount_uhs=1_000 * T,
            asset=QWEN,
            cycle=Cycle.DAYS,
            cycle_days=30,
            rollover_max_uhs=300 * T,
            restriction=of_models("qwen3"),
        ),
    ),
)


def use(model="qwen3"):
    return Use(service=Service.INFERENCE, accelerators=("H100",), models=(model,))


class Shop(Clockwork):
    """A gate that sells packages, serves two models, and has one customer without a compute token."""

    def __init__(self):
        self.journal = []
        super().__init__()
        self.do(Configure(tariffs=TARIFFS, catalogue=CATALOG))
        self.do(NodeUp(node_id="h1", accelerator="H100", devices=1, pool=Pool.RESERVED))
        for model in ("qwen3", "llama"):
            spec = ModelSpec(name=model, source="/m", accelerators=("H100",), replicas_max=2)
            self.do(OfferModel(spec=spec, rates=(RATE,)))
        self.do(OpenAccount(account_id="ada", name="ada", plan="starter"))

    def do(self, event):
        decision = super().do(event)
        self.journal.append((event, self.now_us, decision))
        return decision

    def entries(self):
        """The journal as it is sealed."""
        found = []
        for event, now, decision in self.journal:
            if decision.kept:
                found += entries_of(len(found), at_us=now, event=event, decision=decision)
        return found

    def leaves(self):
        return [entry.leaf for entry in self.entries()]

    def buys(self, name):
        return self.do(BuyBundle(account_id="ada", bundle=name, channel="sandbox")).outcome

    def opens(self, hold="s1", *, prompt=10, completion=100, model="qwen3", amount=None, least=1, account="ada"):
        whole = prompt * 40 + completion * 400
        wanted = Wanted(
            prompt_tokens=prompt,
            completion_tokens=completion,
            least_prompt_tokens=prompt,
            least_completion_tokens=least,
            rate_version=1,
        )
        event = Authorize(
            hold_id=hold,
            account_id=account,
            amount_uhs=amount or whole,
            use=use(model),
            ttl_us=60 * S,
            minimum_uhs=prompt * 40 + least * 400,
            wanted=wanted,
        )
        return self.do(event).outcome

    def reports(self, *calls, hold="s1", seq=1, more=(0, 0), ttl=60, end=False):
        if end:
            return self.do(SettleHold(hold_id=hold, account_id="ada", seq=seq, calls=calls))
        prompt, completion = more
        wanted = Wanted(prompt_tokens=prompt, completion_tokens=completion, rate_version=1)
        return self.do(
            UpdateHold(
                hold_id=hold,
                account_id="ada",
                seq=seq,
                calls=calls,
                more_uhs=prompt * 40 + completion * 400,
                ttl_us=ttl and ttl * S,
                wanted=wanted,
            )
        )

    def call(
        self, name="c1", prompt=10, cached=0, completion=20, reasoning=0, model="qwen3", packages=((QWEN, 10**9),)
    ):
        return CallUsed(
            call_id=name, model=model, accelerator="H100", prompt_tokens=prompt, cached_tokens=cached,
            completion_tokens=completion, reasoning_tokens=reasoning, started_at_us=self.now_us, ended_at_us=self.now_us,
            ended="stop", packages=packages,
        )  # fmt: skip

    def package(self, asset=QWEN):
        return self.gate.state.book.packages[asset]

    def totals(self, asset=QWEN):
        lots = self.package(asset).lots.values()
        return {
            name: sum(getattr(lot, f"{name}_uhs") for lot in lots)
            for name in ("free", "held", "captured", "expired", "voided")
        }

    def held(self, hold="s1"):
        return {
            each.asset: each.held
            for each in self.gate.ask(FreeOf(account_id="ada", hold_id=hold), self.now_us).packages
        }


@pytest.fixture
def shop():
    """Whatever comes of it, whoever doubts a bill finds nothing wrong, and the journal leads to the same place again."""
    shop = Shop()
    yield shop
    report = verify_export(whole_export(shop.leaves()), trusted_key=str(SIGNER.verifier))
    assert report.ok, report
    rows = project([(entry, told_by(entry)) for entry in shop.entries()])
    left = rows.lines[-1].balances.packages if rows.lines else {}
    packages = shop.gate.state.book.packages
    assert left == {
        asset: (totals["free"], totals["held"])
        for asset in packages
        if any((totals := shop.totals(asset)).values()) and totals["free"] + totals["held"]
    }
    again = Gate()
    for event, now, decision in shop.journal:
        assert again.handle(event, now) == decision
    assert again.snapshot() == shop.gate.snapshot()


def test_a_package_is_a_lot_of_its_own_asset_paid_for_like_any_other(shop):
    outcome = shop.buys("small")
    assert (outcome.granted_uhs, outcome.facts["packages"]) == (0, "1000 tokens of llm:qwen")
    (lot,) = shop.package().lots.values()
    assert (lot.granted_uhs, lot.expires_at_us) == (1_000 * T, shop.now_us + 30 * DAY)
    assert shop.gate.state.book.money_microcny["cash"] == 9_900_000
    assert shop.gate.ask(BalanceOf(account_id="ada"), shop.now_us).free_uhs == 0


def test_who_has_a_package_and_no_compute_token_can_call(shop):
    assert shop.opens().code == "insufficient_tokens"
    shop.buys("small")
    outcome = shop.opens()
    assert (outcome.held_uhs, outcome.final) == (0, False)
    assert shop.held() == {QWEN: 410 * T}, "10 of the prompt, and 100 that take 4 each"


def test_a_call_takes_of_the_package_what_its_tokens_weigh_and_costs_no_compute_tokens(shop):
    shop.buys("small")
    shop.opens()
    (record,) = shop.reports(shop.call(prompt=10, cached=4, completion=20, reasoning=5), end=True).records
    (paid,) = record.packages
    assert paid.units == 6 * 1_000 + 4 * 100 + 20 * 4_000
    assert paid.lots == ((next(iter(shop.package().lots)), paid.units),)
    assert (record.charged_uhs, record.spared_uhs) == (0, 6 * 40 + 4 * 4 + 20 * 400)
    assert shop.totals() == {
        "free": 1_000 * T - paid.units,
        "held": 0,
        "captured": paid.units,
        "expired": 0,
        "voided": 0,
    }


def test_a_call_on_a_model_outside_the_family_never_touches_it(shop):
    shop.buys("small")
    assert shop.opens(model="llama").code == "insufficient_tokens"
    shop.do(TopUp(account_id="ada", amount_uhs=100_000))
    assert shop.opens(model="llama").held_uhs == 10 * 40 + 100 * 400
    (record,) = shop.reports(shop.call(model="llama"), end=True).records
    assert (record.charged_uhs, record.packages) == (10 * 40 + 20 * 400, ())
    assert shop.totals()["free"] == 1_000 * T


def test_a_call_that_exceeds_the_package_goes_over_into_compute_tokens_at_a_whole_token(shop):
    shop.buys("small")
    shop.do(TopUp(account_id="ada", amount_uhs=10_000_000))
    outcome = shop.opens(prompt=10, completion=300)
    # 990 are left after the prompt: 247 tokens of the answer at 4, and 53 of compute tokens
    assert (outcome.held_uhs, shop.held()) == (53 * 400, {QWEN: 998 * T})
    (record,) = shop.reports(shop.call(completion=300, packages=((QWEN, 998 * T),)), end=True).records
    (paid,) = record.packages
    assert (paid.units, paid.tokens.prompt_tokens, paid.tokens.completion_tokens) == (998 * T, 10, 247)
    assert (record.charged_uhs, record.spared_uhs) == (53 * 400, 10 * 40 + 247 * 400)
    assert shop.totals()["free"] == 2 * T, "what is no whole token of the answer is left for one of a prompt"


def test_the_package_that_expires_first_goes_first_and_the_next_one_takes_over_within_a_call(shop):
    for name in ("small", "short", "any"):
        shop.buys(name)
    shop.opens(prompt=0, completion=600)
    assert list(shop.held().items()) == [(QWEN, 1_500 * T), (ANY, 225 * T)]
    call = shop.call(prompt=0, completion=600, packages=((QWEN, 1_500 * T), (ANY, 225 * T)))
    (record,) = shop.reports(call, end=True).records
    assert [(each.asset, each.units, each.tokens.completion_tokens) for each in record.packages] == [
        (QWEN, 1_500 * T, 375),
        (ANY, 225 * T, 225),
    ]
    short, small = (lot.lot_id for lot in sorted(shop.package().lots.values(), key=lambda lot: lot.granted_uhs))
    assert record.packages[0].lots == ((short, 500 * T), (small, 1_000 * T)), "two lots of one package"
    assert record.charged_uhs == 0


def test_no_more_is_taken_than_a_meter_had_promised_the_call(shop):
    shop.buys("small")
    shop.do(TopUp(account_id="ada", amount_uhs=10_000_000))
    shop.opens(completion=100)
    (record,) = shop.reports(shop.call(completion=20, packages=((QWEN, 30 * T),)), end=True).records
    assert (record.packages[0].units, record.charged_uhs) == (30 * T, 15 * 400)
    assert shop.totals()["free"] == 970 * T


def test_several_slices_share_a_package_and_no_token_is_held_twice(shop):
    shop.buys("small")
    for name in ("s1", "s2", "s3"):
        shop.opens(name, prompt=0, completion=100, amount=1)
    assert [shop.held(name).get(QWEN, 0) for name in ("s1", "s2", "s3")] == [400 * T, 400 * T, 200 * T]
    assert shop.opens("s4", prompt=0, completion=100, amount=1).code == "insufficient_tokens"


def test_a_word_said_again_takes_nothing_twice(shop):
    shop.buys("small")
    shop.opens()
    first = shop.reports(shop.call(), more=(0, 50))
    again = shop.reports(shop.call(), more=(0, 50))
    assert (again.outcome, again.records, again.transfers) == (first.outcome, (), ())
    late = shop.reports(shop.call(), seq=2, end=True)
    assert late.records == ()
    assert shop.totals()["captured"] == 90 * T


def test_what_a_slice_that_was_cut_off_held_of_a_package_is_set_aside_for_its_report_and_then_free_again(shop):
    shop.buys("small")
    shop.opens()
    shop.at(3_600).do(Tick())
    assert shop.totals()["held"] == 410 * T
    shop.reports(shop.call(), ttl=None)
    assert shop.totals()["captured"] == 90 * T
    shop.at(2 * 86_400).do(Tick())
    assert shop.totals() == {"free": 910 * T, "held": 0, "captured": 90 * T, "expired": 0, "voided": 0}
    (record,) = shop.reports(shop.call("late"), seq=2, end=True).records
    assert record.packages[0].units == 90 * T, "it is known for weeks: what is free still covers it"


def test_what_nothing_covers_any_more_is_the_operators_loss_and_never_a_debt(shop):
    shop.buys("short")
    shop.opens()
    shop.at(3 * 86_400).do(Tick())
    (record,) = shop.reports(shop.call(), end=True).records
    assert (record.charged_uhs, record.absorbed_uhs, record.packages) == (0, 10 * 40 + 20 * 400, ())
    assert shop.totals()["expired"] == 500 * T
    assert shop.gate.ask(BalanceOf(account_id="ada"), shop.now_us).debt_uhs == 0


def test_a_package_under_an_open_slice_stays_good_until_the_slice_is_renewed_or_ends(shop):
    shop.buys("short")
    shop.opens()
    shop.at(86_390).reports(ttl=60, seq=1)
    shop.at(86_430).reports(shop.call(), ttl=60, seq=2)
    assert shop.totals() == {"free": 0, "held": 320 * T, "captured": 90 * T, "expired": 90 * T, "voided": 0}
    shop.at(86_440).do(ReleaseHold(hold_id="s1", account_id="ada", seq=3))
    assert shop.totals()["expired"] == 410 * T


def test_a_subscription_of_a_package_rolls_over_what_is_left_and_what_is_held_of_it(shop):
    shop.do(Subscribe(account_id="ada", subscription="rolling", channel="sandbox"))
    shop.opens(prompt=0, completion=100)
    shop.reports(shop.call(prompt=0, completion=100), end=True)
    shop.at(30 * 86_400 + 1).do(Tick())
    assert shop.totals() == {"free": 1_300 * T, "held": 0, "captured": 400 * T, "expired": 600 * T, "voided": 0}


def test_a_package_booked_by_mistake_can_be_voided(shop):
    shop.buys("small")
    lot = next(iter(shop.package().lots))
    outcome = shop.do(VoidLot(account_id="ada", lot_id=lot, reason="twice")).outcome
    assert outcome.facts["price_microcny"] == 9_900_000
    assert shop.totals()["voided"] == 1_000 * T
    assert shop.gate.state.book.money_microcny["cash"] == 0


def test_a_gate_that_is_restored_goes_on_with_its_packages(shop):
    shop.buys("small")
    shop.opens()
    again = Gate.restore(shop.gate.snapshot())
    event = SettleHold(hold_id="s1", account_id="ada", seq=1, calls=(shop.call(),))
    assert again.handle(event, shop.now_us) == shop.do(event)
    assert again.snapshot() == shop.gate.snapshot()


def busy(shop):
    """Two packages and compute tokens, a call that uses all three, one that is written off, and some that expire."""
    shop.buys("small")
    shop.buys("short")
    shop.buys("any")
    shop.do(TopUp(account_id="ada", amount_uhs=1_000_000))
    shop.opens(prompt=100, completion=800)
    limits = tuple((each.asset, each.held) for each in room(shop))
    shop.reports(shop.call("c1", prompt=100, cached=30, completion=700, reasoning=200, packages=limits))
    shop.reports(shop.call("c2", prompt=10, completion=10, packages=()), seq=2, end=True)
    shop.opens("s2", completion=3_000)
    shop.reports(shop.call("c3", completion=3_000, packages=((ANY, 10**9),)), hold="s2", end=True)
    shop.at(40 * 86_400).do(Tick())


def room(shop, hold="s1"):
    return shop.gate.ask(FreeOf(account_id="ada", hold_id=hold), shop.now_us).packages


def changes(log):
    """(what, where, other): every figure that says what packages were given, held, and taken for."""
    for at, entry in enumerate(log):
        for number, transfer in enumerate(entry["transfers"]):
            if not any(asset.startswith("llm:") for _, asset, _ in transfer["postings"]):
                continue
            place = at, "transfers", number
            for leg, (_, asset, amount) in enumerate(transfer["postings"]):
                if asset.startswith("llm:"):
                    yield "amount", (*place, "postings", leg, 2), amount + 1
                    yield "asset", (*place, "postings", leg, 1), "llm:other@1/1/1/1"
                    yield "asset", (*place, "postings", leg, 1), "CT"
            for share, (_, amount) in enumerate(transfer["lots"]):
                yield "lot", (*place, "lots", share, 1), amount + 1
        for number, record in enumerate(entry["records"]):
            place = at, "records", number
            yield "charge", (*place, "charged_uhs"), record["charged_uhs"] + 1
            yield "count", (*place, "completion_tokens"), record["completion_tokens"] + 1
            if record.get("packages"):
                yield "spared", (*place, "spared_uhs"), record["spared_uhs"] - 1
                yield "unnamed", (*place, "packages"), record["packages"][1:]
            for use, each in enumerate(record.get("packages", ())):
                mine = (*place, "packages", use)
                yield "units", (*mine, "units"), each["units"] - 1_000
                yield "asset", (*mine, "asset"), "llm:other@1/1/1/1"
                for kind, count in enumerate(each["tokens"]):
                    yield "tokens", (*mine, "tokens", kind), count + 1
                for share, (lot, amount) in enumerate(each["lots"]):
                    yield "share", (*mine, "lots", share, 1), amount + 1
                    yield "lot", (*mine, "lots", share, 0), f"{lot}0"


def test_no_figure_of_a_package_is_changed_without_the_verifier_naming_it(shop):
    busy(shop)
    log, unnamed, tried = [json.loads(leaf) for leaf in shop.leaves()], [], 0
    for what, where, new in changes(log):
        other = copy.deepcopy(log)
        *path, last = where
        place = other
        for step in path:
            place = place[step]
        place[last], tried = new, tried + 1
        leaves = [json.dumps(entry, separators=(",", ":")).encode() for entry in other]
        if verify_export(whole_export(leaves), trusted_key=str(SIGNER.verifier)).ok:
            unnamed.append((what, where, new))
    assert tried > 50
    assert not unnamed
