"""A gate whose prices have dates: restored before every event, and proved in the end to whoever doubts a bill."""

import json

from msgspec.structs import replace

from fabric.audit.verify import verify_export
from fabric.gate import Gate, derived
from fabric.journal.encoding import entries_of
from tests.audit.test_verify import SIGNER, whole_export
from tests.gate.conftest import Story, node, top_up
from tests.gate.world import CATALOGUE, CONFIGURE, T0, TARIFFS, S


def at(seconds):
    return T0 + round(seconds * S)


def dearer(seconds=None, *, ppm=2_000_000, version=2, **more):
    """An H100 weighs so much, from that second on, or at once."""
    first = replace(TARIFFS.weights[0], ppm=ppm)
    since = 0 if seconds is None else at(seconds)
    return replace(TARIFFS, version=version, weights=(first, *TARIFFS.weights[1:]), effective_from_us=since, **more)


def catalogue(seconds=None, *, prices=(), offers=(), without=()):
    """Plans at other prices, subscriptions on other terms, or without them; from that second on, or at once."""
    prices, offers = dict(prices), dict(offers)
    return replace(
        CATALOGUE,
        version=2,
        effective_from_us=0 if seconds is None else at(seconds),
        plans=tuple(
            replace(each, price_microcny_per_ct=prices.get(each.name, each.price_microcny_per_ct))
            for each in CATALOGUE.plans
        ),
        subscriptions=tuple(
            replace(each, **offers.get(each.name, {})) for each in CATALOGUE.subscriptions if each.name not in without
        ),
    )


def priced(**more):
    return replace(CONFIGURE, **more)


class Dated(Story):
    """Ada has 1000 device-seconds, and there is one node of four H100."""

    def __init__(self):
        self.journal = []
        super().__init__("ada", "bob")
        self.must(top_up(1_000))
        self.must(node())

    def do(self, event):
        restored = Gate.restore(self.gate.snapshot())
        decision = super().do(event)
        assert restored.handle(event, self.now_us) == decision, "a restored gate decides otherwise"
        derived.assert_same(self.gate._core, restored._core)
        self.journal.append((event, self.now_us, decision))
        return decision

    def leaves(self):
        found = []
        for event, now, decision in self.journal:
            if decision.kept:
                found += entries_of(len(found), at_us=now, event=event, decision=decision)
        return [entry.leaf for entry in found]

    def report(self, change=lambda entry: None):
        """What whoever doubts a bill finds, in what the operator made of the journal."""
        leaves = []
        for leaf in self.leaves():
            entry = json.loads(leaf)
            change(entry)
            leaves.append(json.dumps(entry, separators=(",", ":")).encode())
        return verify_export(whole_export(leaves), trusted_key=str(SIGNER.verifier))

    def records(self):
        return [record for _, _, decision in self.journal for record in decision.records]

    def notices(self, account="ada"):
        return [(each.what, each.text) for each in self.gate.state.till.notices.get(account, ())]


def moved(seconds):
    """As if what was announced had another date."""

    def change(entry):
        event = entry["event"] or {}
        for name in ("tariffs", "catalogue") if event.get("event") == "configure" else ():
            if event[name]["effective_from_us"]:
                event[name]["effective_from_us"] += seconds * S

    return change
