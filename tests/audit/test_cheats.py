"""An operator that holds the signing key may write what it likes and sign it: each cheat is found, and named."""

import base64
import json

import pytest

from fabric.audit import export, verify
from fabric.audit.checkpoint import Signer, new_private_key
from fabric.audit.merkle import ProofTree, leaf_hash
from fabric.audit.verify import main, size_of, verify_export, verify_receipts
from fabric.cli.audit import tlog_proof
from fabric.gate.events import Grant, Tick
from fabric.gate.questions import ReceiptsOf
from tests.audit.conftest import CT
from tests.audit.test_verify import KEY, ORIGIN, SIGNER, leaves_of, sealed, whole_export

TRUSTED = str(SIGNER.verifier)


def account_export(leaves, account="acme"):
    """The account's entries of a log and the prices, as the auditor would export them."""
    tree = ProofTree(leaf_hash(leaf) for leaf in leaves)
    lines = [export.header_line(origin=ORIGIN, key=TRUSTED, account_id=account)]
    for seq, leaf in enumerate(leaves):
        if b'"beta' in leaf or b"/beta" in leaf:
            continue
        lines.append(export.entry_line(seq, leaf, proof=tree.inclusion(seq, size=len(leaves))))
    return sealed(lines, leaves)


def entries(leaves):
    return [json.loads(leaf) for leaf in leaves]


def packed(parsed):
    return [json.dumps(entry, separators=(",", ":")).encode() for entry in parsed]


def record_of(log):
    return next(record for entry in log for record in entry["records"])


def transfer_of(log, kind, **flags):
    return next(
        one for entry in log for one in entry["transfers"] if one["kind"] == kind and one["account_id"] == "acme"
    )


def dearer(log):
    record_of(log)["charged_uhs"] += 1


def cheaper_said_than_done(log):
    record_of(log)["charged_uhs"] -= 1


def heavier(log):
    record = record_of(log)
    record["weight_ppm"] *= 2
    record["charged_uhs"] *= 2


def busier(log):
    record_of(log)["bands"][0][1] += 10**7


def longer(log):
    record = record_of(log)
    record["metered_us"] += 10**9
    record["estimated_us"] += 10**9
    record["charged_uhs"] += 10**9


def doubled(log):
    entry = next(entry for entry in log if entry["records"])
    entry["records"].append(entry["records"][0])


def refunded_to_nobody(log):
    record = record_of(log)
    record["refunded_uhs"] = -1
    record["charged_uhs"] += 1


def without_a_hold(log):
    transfer_of(log, "capture")["ref"] = "nobody-asked"


def out_of_what_is_free(log):
    capture = transfer_of(log, "capture")
    capture["ref"] = "nobody-asked"
    capture["postings"][0][0] = "cust/acme/available"


def early(log):
    expire = transfer_of(log, "expire")
    expire["at_us"] -= 1


def more_than_it_had(log):
    transfer_of(log, "capture")["lots"][0][1] += 10 * CT


def refund_without_a_hold(log):
    transfer_of(log, "capture")["kind"] = "refund"
    transfer_of(log, "refund")["ref"] = "nobody-asked"


CHEATS = [
    (dearer, "its counters, rate and curve make"),
    (cheaper_said_than_done, "its counters, rate and curve make"),
    (heavier, "has the weight 2000000"),
    (busier, "its counters, rate and curve make"),
    (longer, "is metered for"),
    (doubled, "is a second one"),
    (refunded_to_nobody, "gives back more than it took"),
    (without_a_hold, "a capture without a hold"),
    (out_of_what_is_free, "a capture without a hold"),
    (refund_without_a_hold, "a refund without a hold"),
    (early, "expired 1 µs early"),
    (more_than_it_had, "gives more than it had"),
]


@pytest.fixture
async def honest(log):
    await log.run_job("acme", job_id="job-1")
    await log.write([Grant(account_id="acme", amount_uhs=CT, lifetime_us=86_400_000_000, request_id="grant")])
    log.clock.advance(seconds=40 * 86_400)
    await log.write([Tick()])
    return leaves_of(await log.export())


@pytest.mark.parametrize("whose", [whole_export, account_export])
@pytest.mark.parametrize(("cheat", "problem"), CHEATS, ids=[cheat.__name__ for cheat, _ in CHEATS])
def test_a_cheat_of_whoever_holds_the_key_is_named(honest, cheat, problem, whose):
    assert verify_export(whose(honest), trusted_key=TRUSTED).ok
    log = entries(honest)
    cheat(log)
    report = verify_export(whose(packed(log)), trusted_key=TRUSTED)
    assert problem in report.problem, report


def test_a_granted_lot_that_expires_before_its_time_is_found(honest):
    log = entries(honest)
    grant = next(entry for entry in log if (entry["event"] or {}).get("event") == "grant")
    grant["event"]["lifetime_us"] += 60 * 86_400_000_000
    assert "early" in verify_export(whole_export(packed(log))).problem


def test_one_curve_does_not_excuse_what_another_version_charges(honest):
    log = entries(honest)
    record_of(log)["tariff_version"] = 7
    assert "version 7, which are not in the export" in verify_export(whole_export(packed(log))).problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"seq":0,"seq":0,"at_us":1,"event":null,"outcome":null,"transfers":[],"records":[]}', "a key stands twice"),
        ('{"seq":0,"at_us":1,"event":{"event":"tick","event":"tock"},"outcome":null,"transfers":[],"records":[]}', "twice"),
        ('{"seq":0,"at_us":9223372036854775808,"event":null,"outcome":null,"transfers":[],"records":[]}', "64 bits"),
        ('{"seq":0,"at_us":-9223372036854775809,"event":null,"outcome":null,"transfers":[],"records":[]}', "64 bits"),
        ('{"seq":0,"at_us":1e3,"event":null,"outcome":null,"transfers":[],"records":[]}', "no integer"),
        ('{"seq":0,"at_us":NaN,"event":null,"outcome":null,"transfers":[],"records":[]}', "no integer"),
        (f'{{"seq":0,"at_us":{"9" * 5000},"event":null,"outcome":null,"transfers":[],"records":[]}}', "64 bits"),
    ],
)  # fmt: skip
def test_json_that_two_readers_may_read_differently_is_refused(text, problem):
    assert problem in verify_export(whole_export([text.encode()]), trusted_key=TRUSTED).problem


async def test_a_doubled_key_in_a_line_of_the_export_is_refused(log):
    lines = await log.export("acme")
    for at, line in enumerate(lines):
        name = next(iter(json.loads(line)))
        twice = line.replace("{", '{"%s":null,' % name, 1)  # noqa: UP031
        assert "a key stands twice" in verify_export([*lines[:at], twice, *lines[at + 1 :]]).problem


async def test_an_accounts_export_holds_the_prices_that_its_charges_follow_from(log):
    await log.run_job("acme", job_id="job-1")
    report = verify_export(await log.export("acme"), trusted_key=log.auditor.verifier_key)
    assert report.ok, report
    assert report.counts["charging records"] == 1


@pytest.mark.parametrize("page", [1, 2, 3, 7, 1_000])
async def test_an_export_in_pages_shows_that_the_log_only_grew(log, page):
    witnessed = await log.auditor.checkpoint()
    await log.run_job("acme", job_id="job-1")
    lines, since = [], size_of(witnessed)
    while more := await log.auditor.export_page("acme", since=since, start=len(lines), count=page):
        lines += [line.decode() for line in more]
    report = verify_export(lines, trusted_key=log.auditor.verifier_key, witnessed=witnessed)
    assert report.ok, report


async def test_receipts_are_verified_and_every_change_of_one_is_found(log):
    await log.run_job("acme", job_id="job-1")
    found = await log.receipts(ReceiptsOf(account_id="acme", job_id="job-1"))
    receipts = [{name: getattr(one, name) for name in one.__struct_fields__} for one in found]
    text, key = json.dumps(receipts), log.auditor.verifier_key
    report = verify_receipts(text, trusted_key=key, witnessed=await log.auditor.checkpoint())
    assert report.ok, report
    assert (report.trusted, report.counts["entries"]) == (True, len(receipts))
    assert verify_receipts(json.dumps(receipts[0]), trusted_key=key).ok
    other = base64.b64encode(b'{"seq":1}').decode()
    for changed in (
        {"seq": receipts[0]["seq"] + 1},
        {"leaf": other},
        {"leaf": other, "leaf_hash": leaf_hash(b'{"seq":1}').hex()},
        {"proof": receipts[0]["proof"][:-1]},
        {"tree_size": receipts[0]["tree_size"] + 1},
        {"checkpoint": receipts[0]["checkpoint"].replace("\n", "\n1", 1)},
        {"key": str(Signer(ORIGIN, new_private_key()).verifier)},
    ):
        forged = json.dumps([receipts[0] | changed, *receipts[1:]])
        assert not verify_receipts(forged, trusted_key=key).ok, changed
    for no_receipt in ("", "[]", "{}", "3", "[" * 10_000, '[{"seq": 1}]', text[:-1]):
        assert not verify_receipts(no_receipt, trusted_key=key).ok
    assert not verify_receipts(text, trusted_key=str(Signer(ORIGIN, new_private_key()).verifier)).ok


async def test_a_receipt_is_a_tlog_proof_too_and_every_change_of_a_line_is_found(log):
    (first, *_) = await log.receipts(ReceiptsOf(account_id="acme"))
    receipt, key = {name: getattr(first, name) for name in first.__struct_fields__}, log.auditor.verifier_key
    text = tlog_proof(receipt)
    lines = text.split("\n")
    assert (lines[0], lines[2]) == ("c2sp.org/tlog-proof@v1", f"index {first.seq}")
    report = verify_receipts(text, trusted_key=key)
    assert (report.ok, report.counts["entries"]) == (True, 1), report
    assert verify_receipts(text.rstrip("\n"), trusted_key=key).ok
    assert verify_receipts(text).code == "another_key", "it names none itself"
    assert "concerns others" in verify_receipts(tlog_proof(receipt | {"leaf": ""}), trusted_key=key).problem
    for at, line in enumerate(lines[:-1]):
        for other in ([], [line, line], [line[:-1]], [line[:4] + "A" + line[5:]]):
            forged = [*lines[:at], *other, *lines[at + 1 :]]
            assert forged == lines or not verify_receipts("\n".join(forged), trusted_key=key).ok, (at, other)


async def test_without_a_key_that_is_trusted_the_check_ends_with_3(log, tmp_path, capsys):
    file, receipts = tmp_path / "export.jsonl", tmp_path / "receipts.json"
    file.write_text("".join(await log.export("acme")), encoding="utf-8")
    found = await log.receipts(ReceiptsOf(account_id="acme"))
    receipts.write_text(json.dumps([{n: getattr(r, n) for n in r.__struct_fields__} for r in found]), encoding="utf-8")
    key = log.auditor.verifier_key
    assert main([str(file)]) == 3
    assert "WHOLE, BUT NOT VERIFIED" in capsys.readouterr().out
    assert main([str(file), "--key", key]) == 0
    assert main([str(receipts), "--receipts"]) == 3
    assert main([str(receipts), "--receipts", "--key", key]) == 0
    assert main([str(receipts), "--receipts", "--key", str(Signer(ORIGIN, KEY[::-1]).verifier)]) == 1


@pytest.mark.parametrize("note", ["", "x", "a\nb\nc\n\n— x y\n", "a\n-1\nc\n\n— x\n", f"a\n{'9' * 30}\nc\n\n— x\n"])
def test_what_is_no_checkpoint_has_no_size(note):
    with pytest.raises(verify.Wrong, match="no checkpoint"):
        size_of(note)
