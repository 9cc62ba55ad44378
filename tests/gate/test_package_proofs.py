"""What a verifier finds of packages of LLM tokens that were booked otherwise."""

import copy
import json

import pytest

from fabric.audit.verify import verify_export
from fabric.gate.events import Tick, TopUp
from fabric.gate.questions import FreeOf
from tests.audit.test_verify import SIGNER, whole_export
from tests.gate.shop import ANY, Shop


@pytest.fixture
def shop():
    """Whatever comes of it has to be proved at the end."""
    shop = Shop()
    yield shop
    shop.prove()


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
