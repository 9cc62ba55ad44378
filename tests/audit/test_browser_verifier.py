"""The second implementation, in JavaScript for a browser: of every file it says what the first one says, or that it can't judge."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fabric
from fabric.audit.one_file import one_page
from fabric.audit.verify import verify_export
from fabric.charging.records import Cdr
from fabric.cli.app import app
from fabric.journal.auditor import Auditor
from fabric.journal.sqlite import SqliteJournal
from tests.audit.forged import entry_of, honest, lease_record, story
from tests.audit.test_cheats import TRUSTED, account_export, entries, packed
from tests.audit.test_earlier import MIDDLE, retold, view
from tests.audit.test_forgeries import BY_THE_OPERATOR, DECIDED_OTHERWISE, lines_of
from tests.audit.test_mutations import changed, changes
from tests.audit.test_verify import whole_export
from tests.journals.golden import releases, unpacked

VERIFIER = Path(fabric.__file__).parent / "console" / "verifier.js"
BOTH = (whole_export, account_export)
has_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")


def told(cases, tmp_path):
    """What the browser's verifier says of each case: lines and key, or more."""
    file = tmp_path / "cases.json"
    whole = [case if isinstance(case, dict) else {"lines": case, "key": TRUSTED} for case in cases]
    file.write_text(json.dumps(whole), encoding="utf-8")
    script = Path(__file__).with_name("run_verifier.js")
    ran = subprocess.run(["node", script, VERIFIER, file], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def same(found, report):
    """Both name the same thing, but for a transfer that one of them shows whole."""
    problem = re.sub(r", \{.*?\}, takes ", " takes ", report.problem)
    verdict = "not_verified" if problem else "verified" if report.trusted else "whole"
    return (found["verdict"], found["problem"]) == (verdict, problem)


@has_node
def test_both_implementations_say_the_same_of_every_forgery(tmp_path):
    """All that an operator can write into its log, decide by other prices than it shows, or leave out."""
    logs = [honest()]
    for cheat, _ in BY_THE_OPERATOR:
        logs.append(honest())
        cheat(logs[-1])
    for decided, _ in DECIDED_OTHERWISE:
        logs += [entries(story(decided)), entries(story(decided))]
        for entry in logs[-1]:
            if (entry["event"] or {}).get("event") in ("configure", "offer_model"):
                entry["event"] = entry_of(honest(), entry["event"]["event"])["event"]
    cases = [whose(packed(log)) for log in logs for whose in BOTH]
    cases += [
        lines_of(story(), **{how: {seq}}) for seq in range(0, len(story()), 3) for how in ("leave_out", "withhold")
    ]
    verdicts = []
    for lines, found in zip(cases, told(cases, tmp_path), strict=True):
        report = verify_export(lines, trusted_key=TRUSTED)
        assert same(found, report), (found, report)
        counts = dict(report.counts) if report.ok else found["counts"]
        assert {**dict.fromkeys(counts, 0), **found["counts"]} == counts
        verdicts.append(found["verdict"])
    assert verdicts.count("not_verified") >= 2 * 37
    assert verdicts.count("verified") >= 2 * 7


@has_node
def test_both_say_the_same_of_every_changed_figure(tmp_path):
    """Sums, lots, kinds, accounts and owners, each changed and sealed again; and nonsense in the place of a price."""
    log = entries(story())
    others = [other for _, where, new in list(changes(log))[::3] if (other := changed(log, where, new)) is not None]
    nonsense = [
        changed(log, (1, "event", "tariffs", "curve", "points"), value) for value in (0, None, "x", [], {}, [[0, 0]])
    ]
    cases = [BOTH[number % 2](packed(other)) for number, other in enumerate([*others, *nonsense])]
    for lines, found in zip(cases, told(cases, tmp_path), strict=True):
        report = verify_export(lines, trusted_key=TRUSTED)
        assert found["verdict"] != "verified"
        assert same(found, report) or "malformed" in found["problem"] + report.problem, (found, report)


@has_node
def test_every_change_of_the_file_is_found(tmp_path):
    lines = account_export(story())
    text, cases = "".join(lines), []
    for at in range(0, len(text), len(text) // 150):
        other = text[:at] + chr(ord(text[at]) ^ (1 << at % 7)) + text[at + 1 :]
        cases.append(other.removesuffix("\n").split("\n"))
    for at in range(len(lines)):
        cases += [lines[:at] + lines[at + 1 :], lines[: at + 1] + lines[at:], lines[:at]]
    cases += [[], [""], ["{}"], ["[" * 5_000], ["null"], ["3", "4"]]
    assert {found["verdict"] for found in told(cases, tmp_path)} == {"not_verified"}


@has_node
def test_history_keys_and_checkpoints_are_held_against_each_other(tmp_path):
    leaves = story()
    note = json.loads(view(leaves[:MIDDLE], None)[-1])["checkpoint"]
    cases = [
        {"lines": view(leaves, None), "key": TRUSTED, "witnessed": note},
        {"lines": view(leaves, "acme", since=MIDDLE), "key": TRUSTED, "witnessed": note},
        {"lines": view(leaves, "acme"), "key": TRUSTED, "witnessed": note},
        {"lines": view(leaves, None, instead=retold(leaves, 3)), "key": TRUSTED, "witnessed": note},
        {"lines": view(leaves, "acme", since=MIDDLE, instead=retold(leaves, 3)), "key": TRUSTED, "witnessed": note},
        {"lines": view(leaves[: MIDDLE - 1], None), "key": TRUSTED, "witnessed": note},
        {"lines": view(leaves[:MIDDLE], "acme", instead=retold(leaves, 3)), "key": TRUSTED, "witnessed": note},
        {"lines": view(leaves, "acme")},
        {"lines": view(leaves, "acme"), "key": TRUSTED.replace("test+", "else+")},
    ]
    for case, found in zip(cases, told(cases, tmp_path), strict=True):
        report = verify_export(case["lines"], trusted_key=case.get("key"), witnessed=case.get("witnessed"))
        assert same(found, report), (found, report)
    assert [found["verdict"] for found in told(cases[:2], tmp_path)] == ["verified", "verified"]


STRICT = [
    '{"seq":0,"seq":0,"at_us":1,"event":null,"outcome":null,"transfers":[],"records":[]}',
    '{"seq":0,"at_us":1,"event":{"event":"tick","event":"tock"},"outcome":null,"transfers":[],"records":[]}',
    '{"seq":0,"at_us":9223372036854775808,"event":null,"outcome":null,"transfers":[],"records":[]}',
    '{"seq":0,"at_us":-9223372036854775809,"event":null,"outcome":null,"transfers":[],"records":[]}',
    '{"seq":0,"at_us":1e3,"event":null,"outcome":null,"transfers":[],"records":[]}',
    '{"seq":0,"at_us":1.0,"event":null,"outcome":null,"transfers":[],"records":[]}',
    '{"seq":0,"at_us":NaN,"event":null,"outcome":null,"transfers":[],"records":[]}',
    '{"seq":0,"at_us":01,"event":null,"outcome":null,"transfers":[],"records":[]}',
    '{"seq":0,"at_us":1,"event":null,"outcome":null,"transfers":[],"records":[],}',
    '{"seq":0,"at_us":1,"event":"\\x","outcome":null,"transfers":[],"records":[]}',
]


@has_node
def test_json_that_two_readers_may_read_differently_is_refused_and_large_numbers_are_exact(tmp_path):
    cases = [whole_export([text.encode()]) for text in STRICT]
    good = '{"seq":0,"at_us":9007199254740993,"event":null,"outcome":null,"transfers":[],"r\\u0065cords":[]}'
    later = good.replace('"seq":0', '"seq":1').replace("40993", "40992")
    verdicts = [found["verdict"] for found in told([*cases, whole_export([good.encode()])], tmp_path)]
    assert verdicts == ["not_verified"] * len(cases) + ["verified"]
    (found,) = told([whole_export([good.encode(), later.encode()])], tmp_path)
    assert found["problem"] == "in entry 1 time runs backwards", "as floating-point numbers they would be the same"


@has_node
def test_what_it_can_not_judge_it_does_not_pass(tmp_path):
    def with_terms(change):
        log = honest()
        change(log)
        return whole_export(packed(log))

    def configured(log):
        return entry_of(log, "configure")["event"]

    def of_other_rules(log):
        log[0]["event"] = {"event": "adopt_rules", "rules": 99, "release": "9"}

    judged_by_others = [
        with_terms(lambda log: configured(log)["tariffs"].update(surcharge_ppm=5)),
        with_terms(lambda log: configured(log)["tariffs"]["weights"][0].update(moon="full")),
        with_terms(lambda log: configured(log)["catalogue"].update(discounts=[{"of": "all"}])),
        with_terms(lambda log: configured(log)["catalogue"]["plans"][0].update(price_twice=True)),
        with_terms(lambda log: configured(log)["catalogue"]["bundles"][0]["components"][0].update(bonus=1)),
        with_terms(lambda log: entry_of(log, "offer_model")["event"]["rates"][0].update(at_night=1)),
        with_terms(of_other_rules),
        with_terms(lambda log: lease_record(log).update(counter_of_tomorrow=1, charged_uhs=5)),
        {"lines": whole_export(story()), "key": TRUSTED, "without": "Ed25519"},
    ]
    passed = [
        with_terms(lambda log: configured(log)["tariffs"].update(surcharge_ppm=0, season=None)),
        with_terms(lambda log: lease_record(log).update(colour="red")),
    ]
    found = told([*judged_by_others, *passed], tmp_path)
    assert [each["verdict"] for each in found] == ["cannot_judge"] * 9 + ["verified"] * 2, found
    assert "colour of a record" in found[-1]["notes"][-1]
    assert "counter_of_tomorrow of a record" in found[7]["problem"]


@has_node
async def test_the_journal_of_a_release_is_not_wrongly_accused(tmp_path):
    """A history with everything in it: parts of devices, packages, spans, refunds. Prices with dates it may not be able to judge."""
    journal = SqliteJournal(unpacked(releases()[-1] / "sqlite" / "closed", tmp_path))
    auditor = Auditor(journal, origin="golden.example", signing_key=bytes(32))
    lines = [line.decode() async for line in auditor.export()]
    await journal.close()
    (found,) = told([{"lines": lines, "key": auditor.verifier_key}], tmp_path)
    assert found["verdict"] in ("verified", "cannot_judge"), found
    assert found["verdict"] == "cannot_judge" or found["counts"]["charging records"] > 10


def test_it_knows_no_field_that_a_record_does_not_have():
    said = re.search(r"record: words\(`([^`]*)`\)", VERIFIER.read_text(encoding="utf-8"))[1].split()
    assert set(said) <= set(Cdr.__struct_fields__)


def test_the_page_is_one_file_that_can_send_nothing():
    page = CliRunner().invoke(app, ["audit", "verifier", "--browser"]).stdout
    assert page == one_page()
    assert VERIFIER.read_text(encoding="utf-8") in page
    assert "default-src 'none'" in page
    assert "connect-src 'none'" in page
    assert not re.search(
        r"https?://|\bfetch\(|XMLHttpRequest|WebSocket|innerHTML|\beval\(|localStorage|<script src|import\(", page
    )
    assert page.count("</script>") == 2
