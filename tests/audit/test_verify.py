"""The independent verifier: what is whole is verified, and whatever is done to it is found."""

import base64
import hashlib
import json
import sys

import pytest

from fabric.audit import export
from fabric.audit.checkpoint import Signer, new_private_key
from fabric.audit.merkle import ProofTree, leaf_hash
from fabric.audit.verify import main, verify_export
from fabric.gate.serving_events import Authorize, SettleHold
from tests.audit.conftest import CT, USE

KEY = bytes(range(32))
ORIGIN = "fabric.example/test"
SIGNER = Signer(ORIGIN, KEY)


def sealed(lines: list[bytes], leaves: list[bytes], *, signer: Signer = SIGNER, root: bytes | None = None) -> list[str]:
    """An export as the operator would sign it, of whatever it is given: what a dishonest operator could do."""
    root = ProofTree(leaf_hash(leaf) for leaf in leaves).root() if root is None else root
    digest, account = hashlib.sha256(b"".join(lines)).hexdigest(), json.loads(lines[0])["account"]
    note = signer.checkpoint(size=len(leaves), root=root)
    seal = signer.sign(export.seal_text(digest, account_id=account, checkpoint=note))
    return [line.decode() for line in [*lines, export.checkpoint_line(note, seal)]]


def whole_export(leaves: list[bytes], *, signer: Signer = SIGNER, **options) -> list[str]:
    header = export.header_line(origin=ORIGIN, key=str(signer.verifier), account_id=None)
    return sealed(
        [header, *(export.entry_line(seq, leaf) for seq, leaf in enumerate(leaves))], leaves, signer=signer, **options
    )


def leaves_of(lines: list[str]) -> list[bytes]:
    return [base64.b64decode(json.loads(line)["leaf"]) for line in lines[1:-1]]


def changed(leaves: list[bytes], at: int, /, **changes) -> list[bytes]:
    entry = json.loads(leaves[at]) | changes
    return [*leaves[:at], json.dumps(entry, separators=(",", ":")).encode(), *leaves[at + 1 :]]


def first(leaves: list[bytes], kind: str) -> tuple[int, dict]:
    """The first entry with a transfer of a kind."""
    found = ((seq, json.loads(leaf)) for seq, leaf in enumerate(leaves))
    return next((seq, entry) for seq, entry in found if any(one["kind"] == kind for one in entry["transfers"]))


async def test_what_the_auditor_exports_is_verified(log):
    await log.run_job("acme", job_id="job-1")
    report = verify_export(await log.export(), trusted_key=log.auditor.verifier_key)
    assert report.ok, report
    assert report.trusted
    assert (report.size, report.counts["entries"]) == (log.writer.head.size,) * 2
    assert report.counts["refusals"] == 0 < report.counts["charging records"], "what changed nothing is not journaled"
    assert str(report).startswith("VERIFIED fabric.example/test")


@pytest.mark.parametrize("account", [None, "acme"])
async def test_every_single_bit_is_guarded(log, account):
    """Flips each bit of each byte of a small export."""
    text = "".join(await log.export(account)).encode()
    assert verify_export(text.decode().removesuffix("\n").split("\n")).ok
    step = len(text) // 2_500 + 1
    survivors = []
    for at in range(0, len(text), step):
        damaged = bytearray(text)
        damaged[at] ^= 1 << (at // step % 8)
        try:
            lines = damaged.decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            continue
        if verify_export(lines, trusted_key=log.auditor.verifier_key).ok:
            survivors.append((at, text[at : at + 20]))
    assert survivors == []


def test_every_byte_of_the_smallest_log_is_guarded_against_every_flip():
    leaf = b'{"seq":0,"at_us":1,"event":{"event":"tick"},"outcome":{"outcome":"accepted"},"transfers":[],"records":[]}'
    text = "".join(whole_export([leaf])).encode()
    survivors = []
    for at in range(len(text)):
        for bit in range(8):
            damaged = bytearray(text)
            damaged[at] ^= 1 << bit
            lines = damaged.decode(errors="replace").removesuffix("\n").split("\n")
            if verify_export(lines, trusted_key=str(SIGNER.verifier)).ok:
                survivors.append((at, bit, text[at : at + 10]))
    assert survivors == []
    sys.stdout.write(f"{len(text) * 8} flips, all found\n")


@pytest.mark.parametrize("account", [None, "acme"])
async def test_a_line_that_is_missing_doubled_or_moved_is_found(log, account):
    lines = await log.export(account)
    key = log.auditor.verifier_key
    for at in range(len(lines)):
        assert not verify_export([*lines[:at], *lines[at + 1 :]], trusted_key=key).ok, f"without line {at}"
        assert not verify_export([*lines[: at + 1], *lines[at:]], trusted_key=key).ok, f"line {at} twice"
        swapped = [*lines]
        swapped[at - 1], swapped[at] = lines[at], lines[at - 1]
        assert not verify_export(swapped, trusted_key=key).ok, f"lines {at - 1} and {at} swapped"
    for size in range(len(lines)):
        assert not verify_export(lines[:size], trusted_key=key).ok, f"cut after {size} lines"


async def test_an_export_signed_with_another_key_is_found_by_whoever_knows_the_key(log):
    forger = Signer(ORIGIN, new_private_key())
    forged = whole_export(leaves_of(await log.export()), signer=forger)
    assert verify_export(forged).ok, "without a trusted key only wholeness can be shown"
    assert "not the trusted one" in verify_export(forged, trusted_key=log.auditor.verifier_key).problem


async def test_a_root_that_is_not_that_of_the_entries_is_found_though_it_is_signed(log):
    leaves = leaves_of(await log.export())
    assert "do not hash to the signed root" in verify_export(whole_export(leaves, root=bytes(32))).problem


@pytest.mark.parametrize("account", [None, "acme"])
async def test_an_operator_that_rewrites_or_cuts_history_is_caught_by_an_older_checkpoint(log, account):
    witnessed, size = await log.auditor.checkpoint(), log.writer.head.size
    await log.run_job("acme", job_id="job-1")
    honest = await log.export(account, since=size)
    assert verify_export(honest, witnessed=witnessed).ok
    leaves = leaves_of(await log.export())
    rewritten = changed(leaves, 3, at_us=json.loads(leaves[3])["at_us"] + 1)
    for forged in (rewritten, leaves[: size - 1]):
        lines = whole_export(forged)
        if account is not None:
            tree = ProofTree(leaf_hash(leaf) for leaf in forged)
            body = [export.header_line(origin=ORIGIN, key=str(SIGNER.verifier), account_id=account)]
            body += [export.consistency_line(size, proof=tree.consistency(size))] if len(forged) > size else []
            lines = sealed(body, forged)
        assert verify_export(lines).ok, "signed as it is, nothing is wrong with it"
        assert not verify_export(lines, witnessed=witnessed).ok


async def test_an_account_export_must_show_consistency_when_an_older_checkpoint_is_given(log):
    witnessed = await log.auditor.checkpoint()
    assert verify_export(await log.export("acme"), witnessed=witnessed).ok, "the same size needs no proof"
    await log.run_job("acme", job_id="job-1")
    assert (
        "ask for an export that is consistent" in verify_export(await log.export("acme"), witnessed=witnessed).problem
    )


async def test_an_account_export_shows_no_other_account_and_proves_each_entry(log):
    await log.run_job("acme", job_id="job-1")
    lines = await log.export("acme")
    shown = [base64.b64decode(json.loads(line)["leaf"]) for line in lines[1:-1] if "leaf" in json.loads(line)]
    assert not any(b"beta" in leaf for leaf in shown)
    assert len(shown) > 10
    wrong = [json.loads(line) for line in lines]
    wrong[2]["proof"][0] = "00" * 32
    body = [(json.dumps(line, separators=(",", ":")) + "\n").encode() for line in wrong[:-1]]
    leaves = leaves_of(await log.export())
    assert "proof of entry" in verify_export(sealed(body, leaves)).problem


COOKED = [
    ("hold", lambda one: one["postings"][0].__setitem__(2, one["postings"][0][2] - 1), "do not sum to zero"),
    ("hold", lambda one: [leg.__setitem__(2, leg[2] * 10**6) for leg in one["postings"]], "below zero"),
    ("hold", lambda one: one.__setitem__("transfer_id", one["transfer_id"] + 1), "follows"),
    ("hold", lambda one: one["postings"][0].__setitem__(2, float(one["postings"][0][2])), "no integer"),
    ("release", lambda one: [leg.__setitem__(2, leg[2] * 2) for leg in one["postings"]], "below zero"),
]


@pytest.mark.parametrize(("kind", "cook", "problem"), COOKED)
async def test_cooked_books_are_found_though_they_are_signed(log, kind, cook, problem):
    leaves = leaves_of(await log.export())
    seq, entry = first(leaves, kind)
    cook(next(one for one in entry["transfers"] if one["kind"] == kind))
    report = verify_export(whole_export(changed(leaves, seq, transfers=entry["transfers"])))
    assert problem in report.problem, report


async def test_a_hold_that_ends_twice_is_found(log):
    leaves = leaves_of(await log.export())
    _, entry = first(leaves, "release")
    last, count = (
        json.loads(leaves[-1]),
        max(one["transfer_id"] for leaf in leaves for one in json.loads(leaf)["transfers"]),
    )
    held = next(leg for one in entry["transfers"] for leg in one["postings"] if leg[0].endswith("/held"))
    again = {**entry["transfers"][-1], "transfer_id": count + 1}
    mine = [one for leaf in leaves for one in json.loads(leaf)["transfers"] if one["account_id"] == again["account_id"]]
    again["number"] = mine[-1]["number"] + 1
    again["postings"] = [[held[0], "CT", 1], [held[0].replace("held", "available"), "CT", -1]]
    forged = [
        *leaves[:-1],
        json.dumps({**last, "transfers": [*last["transfers"], again]}, separators=(",", ":")).encode(),
    ]
    assert "which had ended" in verify_export(whole_export(forged)).problem


async def test_a_hold_that_lapses_with_anothers_just_before_it_is_settled_is_no_fault(log):
    """One decision, several entries: its own ends the hold, and the next ones give back and capture what it held."""
    for account in ("beta", "acme"):
        await log.write(
            [Authorize(hold_id=f"{account}-late", account_id=account, amount_uhs=CT, use=USE, ttl_us=60_000_000)]
        )
    log.clock.advance(seconds=3_600)
    await log.write([SettleHold(hold_id="acme-late", account_id="acme", seq=1, used_uhs=CT // 2)])
    for account in (None, "acme", "beta"):
        report = verify_export(await log.export(account), trusted_key=log.auditor.verifier_key)
        assert report.ok, report


async def test_a_request_that_is_booked_twice_or_answered_otherwise_is_found(log):
    leaves = leaves_of(await log.export())
    known, seq = {}, len(leaves)
    for number, leaf in enumerate(leaves):
        event = json.loads(leaf)["event"] or {}
        name = (event.get("account_id"), event.get("request_id"))
        if name[1] and json.loads(leaf)["transfers"]:
            known[name] = number
            break
    again = {**json.loads(leaves[known[name]]), "seq": seq, "at_us": json.loads(leaves[-1])["at_us"], "transfers": []}
    other = {**again, "outcome": {**again["outcome"], "granted_uhs": 1}}
    honest = json.dumps(again, separators=(",", ":")).encode()
    cooked = json.dumps(other, separators=(",", ":")).encode()
    assert verify_export(whole_export([*leaves[:seq], honest])).ok
    assert "otherwise than before" in verify_export(whole_export([*leaves[:seq], cooked])).problem
    twice = json.loads(leaves[known[name]])["transfers"]
    for number, one in enumerate(
        twice, max(t["transfer_id"] for x in leaves[:seq] for t in json.loads(x)["transfers"]) + 1
    ):
        one["transfer_id"] = number
    booked = json.dumps({**again, "transfers": twice}, separators=(",", ":")).encode()
    assert "a second time" in verify_export(whole_export([*leaves[:seq], booked])).problem


async def test_time_that_runs_backwards_and_a_wrong_number_are_found(log):
    leaves = leaves_of(await log.export())
    assert "time runs backwards" in verify_export(whole_export(changed(leaves, 5, at_us=1))).problem
    assert "says that it is number" in verify_export(whole_export(changed(leaves, 5, seq=6))).problem


@pytest.mark.parametrize(
    "lines", [[], [""], ["{}"], ["{}", "{}"], ["null", "null"], ["[" * 100_000], ["{", "}"], ['{"format":1}', "{}"]]
)
def test_what_is_no_export_is_not_verified_and_nothing_is_raised(lines):
    assert not verify_export(lines).ok


async def test_the_command_says_what_it_found(log, tmp_path, capsys):
    file, older = tmp_path / "export.jsonl", tmp_path / "older.txt"
    file.write_text("".join(await log.export()), encoding="utf-8")
    older.write_text(await log.auditor.checkpoint(), encoding="utf-8")
    assert main([str(file), "--key", log.auditor.verifier_key, "--witnessed", str(older)]) == 0
    assert "VERIFIED" in capsys.readouterr().out
    file.write_text(file.read_text().replace('"seq":1', '"seq":2', 1), encoding="utf-8")
    assert main([str(file)]) == 1
    assert "NOT VERIFIED" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 2


async def test_what_is_wrong_is_of_a_kind_and_has_its_line(log):
    lines = await log.export()
    middle = len(lines) // 2
    key = log.auditor.verifier_key
    for changed, trusted, code, line in (
        (lines, key, "", 0),
        (lines, str(Signer(ORIGIN, new_private_key()).verifier), "another_key", 0),
        (lines[:-1], key, "export_cut_short", 0),
        (lines[:1], key, "export_cut_short", 0),
        ([*lines[:-1], lines[-1][:20]], key, "export_cut_short", len(lines)),
        ([*lines[:middle], lines[middle][:20]], key, "export_cut_short", middle + 1),
        ([*lines[:middle], "{", *lines[middle:]], key, "not_verified", middle + 1),
        ([*lines[:middle], *lines[middle + 1 :]], key, "not_verified", 0),
        (["a,b,c", "1,2,3"], key, "no_export", 1),
        (['{"job": 1}', '{"job": 2}'], key, "no_export", 0),
        (["[]", "3"], key, "no_export", 0),
        ([], key, "no_export", 0),
        ([""], key, "no_export", 0),
    ):
        report = verify_export(changed, trusted_key=trusted)
        assert (report.code, report.line) == (code, line), report.problem
        assert bool(report.problem) == bool(code)


def test_a_signed_entry_that_is_wrong_is_named_with_its_line():
    header = export.header_line(origin=ORIGIN, key=str(SIGNER.verifier), account_id=None)
    report = verify_export(sealed([header, export.entry_line(7, b"{}")], [b"{}"]))
    assert (report.code, report.line) == ("not_verified", 2)
    assert str(report).startswith("NOT VERIFIED: line 2: entry 0 is missing")
