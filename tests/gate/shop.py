"""A gate that sells packages of LLM tokens, and serves two models from them."""

import msgspec

from fabric.audit.verify import verify_export
from fabric.charging.catalogue import Bundle, Component, Cycle, Overflow, Restriction, Subscription
from fabric.charging.packages import Weights, asset_of
from fabric.charging.rates import Rate
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import BuyBundle, Configure, NodeUp, Pool
from fabric.gate.questions import FreeOf
from fabric.gate.serving_events import (
    Authorize,
    CallUsed,
    ModelSpec,
    OfferModel,
    SettleHold,
    UpdateHold,
    Wanted,
)
from fabric.journal.encoding import entries_of
from fabric.journal.projection import project, told_by
from fabric.ledger import Service, Use
from tests.audit.test_verify import SIGNER, whole_export
from tests.gate.world import CATALOGUE, TARIFFS, Clockwork, S

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
        Subscription(
            name="closed",
            plan="starter",
            price_microcny=9_900_000,
            amount_uhs=100 * T,
            asset=QWEN,
            overflow=Overflow.BLOCK,
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

    def opens(
        self, hold="s1", *, prompt=10, completion=100, model="qwen3", amount=None, least=1, account="ada", key=None
    ):
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
            key_id=key,
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

    def prove(self):
        """Whoever doubts a bill finds nothing wrong, a statement shows what is left, and the journal leads to the same place."""
        report = verify_export(whole_export(self.leaves()), trusted_key=str(SIGNER.verifier))
        assert report.ok, report
        rows = project([(entry, told_by(entry)) for entry in self.entries()])
        left = {asset: totals for asset in self.gate.state.book.packages if any(totals := self.left(asset))}
        assert (rows.lines[-1].balances.packages if rows.lines else {}) == left
        again = Gate()
        for event, now, decision in self.journal:
            assert again.handle(event, now) == decision
        assert again.snapshot() == self.gate.snapshot()

    def left(self, asset):
        totals = self.totals(asset)
        return totals["free"], totals["held"]
