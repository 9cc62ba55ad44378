"""Bad input: each gets one clear refusal with a stable code, the number, the limit and the remedy, and changes nothing."""

import msgspec
import pytest

from fabric.charging.catalogue import Catalogue
from fabric.gate import Gate
from fabric.gate.account_events import CreateKey, OpenAccount, RevokeKey
from fabric.gate.events import (
    BuyBundle,
    Cancel,
    ClosePeriod,
    Grant,
    NodeDrain,
    NodeUp,
    Pool,
    RaiseLimit,
    Submit,
    Subscribe,
    TopUp,
    Unsubscribe,
    VoidLot,
)
from fabric.gate.instructions import Refusal
from fabric.gate.serving_events import Authorize, SettleHold
from fabric.gate.share_events import SetCohort, SetQuota, SetShare
from fabric.ledger import Service, Use
from fabric.units import AMOUNT_UHS_MAX, INT64_MAX
from tests.gate.conftest import node
from tests.gate.world import CATALOGUE, CONFIGURE, S, spec

USE = Use(service=Service.TRAINING)


def job(limit=100 * S, **more):
    more = (
        {"job_id": "new", "account_id": "ada"}
        | {k: more.pop(k) for k in ("job_id", "account_id") if k in more}
        | {"spec": spec(limit, **more)}
    )
    return Submit(**more)


def hold(amount=10, **more):
    return Authorize(**{"hold_id": "h", "account_id": "ada", "amount_uhs": amount, "use": USE, "ttl_us": S, **more})


# fmt: off
TABLE = [
    (job(types=("TPU",)),                        "unknown_accelerator", ("TPU", "H100", "any")),
    (job(types=("910B",)),                       "unknown_accelerator", ("910B", "H100")),
    (job(devices=0),                             "invalid_devices",     ("1 to 1000000", "not 0")),
    (job(devices=-3),                            "invalid_devices",     ("1 to 1000000", "not -3")),
    (job(devices=10**9),                         "invalid_devices",     ("1 to 1000000", "1000000000")),
    (job(devices=4, devices_per_node=3),         "invalid_devices",     ("4 devices", "into 3", "divisor")),
    (job(devices=4, devices_per_node=0),         "invalid_devices",     ("4 devices", "into 0", "divisor")),
    (job(devices=5),                             "gang_too_large",      ("gang of 5", "4 × H100", "fewer")),
    (job(devices=8, devices_per_node=8),         "gang_too_large",      ("gang of 8", "H100", "fewer")),
    (job(0),                                     "invalid_amount",      ("more than 0", "not 0")),
    (job(-1),                                    "invalid_amount",      ("more than 0", "-0.0001")),
    (job(INT64_MAX + 1),                         "invalid_amount",      ("at most 10000000",)),
    (job(2**70),                                 "invalid_amount",      ("at most 10000000",)),
    (job(name=""),                               "invalid_name",        ("1 to 200", "not 0")),
    (job(name="x" * 201),                        "invalid_name",        ("1 to 200", "not 201")),
    (job(grace_us=-1),                           "invalid_grace",       ("0 to", "not -1")),
    (job(grace_us=2**62),                        "invalid_grace",       ("0 to 86400000000",)),
    (job(max_retries=-1),                        "invalid_retries",     ("0 to 1000", "not -1")),
    (job(time_limit_us=0),                       "invalid_time_limit",  ("more than 0", "not 0")),
    (job(account_id="nobody"),                   "not_found",           ("account", "nobody")),
    (job(job_id="old"),                          "job_exists",          ("old", "new id")),
    (job(job_id=""),                             "invalid_job_id",      ("1 to 200", "not 0")),
    (job(2_000 * S),                             "insufficient_tokens", ("needs 0.5556", "0.25 free", "top up 0.3056",
                                                                         "lower tokens= to 0.25")),
    (TopUp(account_id="nobody", amount_uhs=1),   "not_found",           ("account", "nobody")),
    (TopUp(account_id="ada", amount_uhs=0),      "invalid_amount",      ("more than 0", "not 0")),
    (TopUp(account_id="ada", amount_uhs=-5),     "invalid_amount",      ("more than 0",)),
    (TopUp(account_id="ada", amount_uhs=2**63),  "invalid_amount",      ("at most 10000000",)),
    (TopUp(account_id="ada", amount_uhs=INT64_MAX), "invalid_amount",   ("at most 10000000 tokens",)),
    (TopUp(account_id="ada", amount_uhs=AMOUNT_UHS_MAX + 1), "invalid_amount", ("at most 10000000 tokens",)),
    (TopUp(account_id="ada", amount_uhs=1, payment_ref="x" * 201), "invalid_payment_ref", ("at most 200", "201")),
    (TopUp(account_id="ada", amount_uhs=2**70, request_id="r"), "invalid_amount", ("at most",)),
    (Grant(account_id="nobody", amount_uhs=1),   "not_found",           ("nobody",)),
    (Grant(account_id="ada", amount_uhs=0),      "invalid_amount",      ("0",)),
    (Grant(account_id="ada", amount_uhs=INT64_MAX), "invalid_amount",   ("at most 10000000 tokens",)),
    (VoidLot(account_id="ada", lot_id="none", reason="r"), "not_found", ("lot", "none")),
    (VoidLot(account_id="bob", lot_id="lot-1", reason="r"), "not_found", ("lot", "lot-1")),
    (VoidLot(account_id="ada", lot_id="lot-1", reason=" "), "invalid_reason", ("why", "1 to 200")),
    (VoidLot(account_id="ada", lot_id="lot-1", reason="r", amount_uhs=0), "not_unused", ("0.25 tokens are unused",)),
    (VoidLot(account_id="ada", lot_id="lot-1", reason="r", amount_uhs=901 * S), "not_unused", ("0.25 tokens", "0.0277 held")),
    (Grant(account_id="ada", amount_uhs=1, origin="top_up"), "invalid_origin", ("top_up", "promotion, refund")),
    (Grant(account_id="ada", amount_uhs=1, lifetime_us=0), "invalid_lifetime", ("more than 0", "not 0")),
    (Grant(account_id="ada", amount_uhs=1, lifetime_us=2**63), "invalid_lifetime", ("at most",)),
    (OpenAccount(account_id="new", name="", plan="gold"), "unknown_plan", ("gold", "starter, pro, post")),
    (OpenAccount(account_id="", name="", plan="pro"), "invalid_account_id", ("1 to 64",)),
    (OpenAccount(account_id="a/b", name="", plan="pro"), "invalid_account_id", ("a/b",)),
    (OpenAccount(account_id="ada", name="", plan="pro"), "account_exists", ("ada",)),
    (OpenAccount(account_id="new", name="", plan="pro", credit_limit_uhs=-1), "invalid_amount", ("-1",)),
    (OpenAccount(account_id="new", name="", plan="pro", weight_ppm=0), "invalid_weight", ("0.001 to 1000", "0 ppm")),
    (SetShare(account_id="nobody", weight_ppm=1), "not_found",          ("nobody",)),
    (SetShare(account_id="ada", weight_ppm=2**40), "invalid_weight",    ("0.001 to 1000",)),
    (SetShare(account_id="ada", cohort="x" * 201), "invalid_cohort",    ("up to 200", "201")),
    (SetCohort(cohort="", weight_ppm=10**6),     "invalid_cohort",      ("a name",)),
    (SetCohort(cohort="c", weight_ppm=-1),       "invalid_weight",      ("0.001 to 1000", "-1 ppm")),
    (SetQuota(accelerator="H100", nominal=1),    "invalid_quota",       ("an account or of a cohort",)),
    (SetQuota(accelerator="H100", nominal=1, account="nobody"), "not_found", ("nobody",)),
    (SetQuota(accelerator="TPU", nominal=1, account="ada"), "unknown_accelerator", ("TPU", "H100")),
    (SetQuota(accelerator="H100", nominal=-1, account="ada"), "invalid_quota", ("0 to 1000000", "-1")),
    (SetQuota(accelerator="H100", nominal=1, account="ada", lend_max=2), "invalid_quota", ("no more is lent than",)),
    (SetQuota(accelerator="H100", nominal=None, account="ada"), "not_found", ("quota", "ada H100")),
    (SetQuota(accelerator="H100", nominal=1, cohort="x" * 201), "invalid_cohort", ("up to 200",)),
    (BuyBundle(account_id="ada", bundle="gold"), "unknown_bundle",      ("gold", "edge")),
    (BuyBundle(account_id="nobody", bundle="edge"), "not_found",        ("nobody",)),
    (Subscribe(account_id="ada", subscription="gold"), "unknown_subscription", ("gold", "monthly, weekly, daily")),
    (Subscribe(account_id="nobody", subscription="daily"), "not_found", ("nobody",)),
    (Unsubscribe(account_id="ada", subscription="daily"), "not_found",  ("daily",)),
    (CreateKey(key_id="", account_id="ada", secret_sha256=""), "invalid_key_id", ("name one",)),
    (CreateKey(key_id="k", account_id="ada", secret_sha256="", limit_uhs=0), "invalid_amount", ("more than 0", "not 0")),
    (CreateKey(key_id="k", account_id="ada", secret_sha256="", limit_uhs=2**62), "invalid_amount", ("at most 10000000",)),
    (CreateKey(key_id="k", account_id="nobody", secret_sha256=""), "not_found", ("nobody",)),
    (RevokeKey(key_id="k"),                      "not_found",           ("key", "k")),
    (ClosePeriod(period=""),                     "invalid_period",      ("2026-08",)),
    (hold(0),                                    "invalid_amount",      ("more than 0", "not 0")),
    (hold(INT64_MAX + 1),                        "invalid_amount",      ("at most 10000000",)),
    (hold(ttl_us=0),                             "invalid_ttl",         ("more than 0", "not 0")),
    (hold(ttl_us=2 * 86_400 * S),                "invalid_ttl",         ("at most 86400000000",)),
    (hold(hold_id=""),                           "invalid_hold_id",     ("without '#'",)),
    (hold(account_id="nobody"),                  "not_found",           ("nobody",)),
    (SettleHold(hold_id="h", account_id="ada", seq=1), "not_found",     ("hold", "h")),
    (Cancel(job_id="none", account_id="ada"),    "not_found",           ("job", "none")),
    (Cancel(job_id="old", account_id="bob"),     "not_found",           ("job", "old")),
    (RaiseLimit(job_id="old", account_id="ada", limit_uhs=100 * S), "invalid_amount", ("0.0277 tokens already",)),
    (RaiseLimit(job_id="old", account_id="ada", limit_uhs=2**63), "invalid_amount", ("at most 10000000",)),
    (node("h9", devices=0),                      "invalid_devices",     ("h9", "1 to 1024", "has 0")),
    (node("h9", kind="TPU"),                     "unknown_accelerator", ("TPU", "H100")),
    (NodeDrain(node_id="h1", grace_us=-1),       "invalid_grace",       ("not -1",)),
    (msgspec.structs.replace(CONFIGURE, catalogue=Catalogue(version=2, plans=CATALOGUE.plans[1:])),
                                                 "invalid_config",      ("catalogue", "starter")),
]
# fmt: on


@pytest.mark.parametrize(("event", "code", "words"), TABLE, ids=lambda value: value if isinstance(value, str) else None)
def test_bad_input_is_refused_in_so_many_words_and_changes_nothing(story, event, code, words):
    story.must(job(job_id="old"))
    before = story.gate.snapshot()
    decision = story.do(event)
    assert isinstance(decision.outcome, Refusal)
    assert decision.outcome.code == code, decision.outcome
    for word in words:
        assert word in decision.outcome.message
    assert decision.transfers == decision.instructions == decision.records == ()
    after = msgspec.msgpack.decode(story.gate.snapshot())
    after["answered"] = {}
    assert after == msgspec.msgpack.decode(before) | {"answered": {}}


@pytest.mark.parametrize(
    "event",
    [
        OpenAccount(account_id="ada", name="", plan="starter"),
        NodeUp(node_id="n", accelerator="H100", devices=1, pool=Pool.SPOT),
    ],
    ids=lambda event: type(event).__name__,
)
def test_before_there_are_prices_the_gate_says_so(event):
    assert Gate().handle(event, 0).outcome.code == "not_configured"


@pytest.mark.parametrize("event", [event for event, *_ in TABLE], ids=lambda event: type(event).__name__)
def test_no_event_whatever_raises_in_an_empty_gate(event):
    Gate().handle(event, 0)
