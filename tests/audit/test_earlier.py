"""An export is held against one of before, the same customer's or another's: what is not of one history is named."""

import json

import pytest
from typer.testing import CliRunner

from fabric.audit import export
from fabric.audit.checkpoint import Signer, new_private_key
from fabric.audit.merkle import ProofTree, leaf_hash
from fabric.audit.verify import checkpoint_of, main, verify_export
from fabric.cli.app import app
from tests.audit.conftest import ORIGIN
from tests.audit.forged import honest, story
from tests.audit.test_cheats import TRUSTED
from tests.audit.test_verify import sealed, whole_export

MIDDLE = len(story()) - 3
MINE = [seq for seq, leaf in enumerate(story()) if b'"beta' not in leaf and b"/beta" not in leaf]
OTHERS = {"acme": "beta", "beta": "acme"}


def view(leaves, account, *, since=None, leave_out=(), withhold=(), instead=()):
    """An account's export of a log, or everybody's; `instead` has what is shown of some entries, with proofs as they would be."""
    instead = dict(instead)
    leaves = [instead.get(seq, leaf) for seq, leaf in enumerate(leaves)]
    if account is None:
        return whole_export(leaves)
    tree, other = ProofTree(leaf_hash(leaf) for leaf in leaves), OTHERS[account].encode()
    lines = [export.header_line(origin=ORIGIN, key=TRUSTED, account_id=account)]
    for seq, leaf in enumerate(leaves):
        if b'"' + other in leaf or b"/" + other in leaf or seq in leave_out:
            continue
        proof = tree.inclusion(seq, size=len(leaves))
        shown = seq not in withhold
        lines.append(
            export.entry_line(seq, leaf, proof=proof)
            if shown
            else export.withheld_line(seq, leaf_hash(leaf), proof=proof)
        )
    if since not in (None, len(leaves)):
        lines.append(export.consistency_line(since, proof=tree.consistency(since)))
    return sealed(lines, leaves)


def told(now, before, **more):
    return verify_export(now, trusted_key=TRUSTED, earlier=before, **more)


def retold(leaves, at):
    """An entry's bytes as another history has them: the same entry, said with a space."""
    return {at: leaves[at].replace(b'"seq":', b'"seq": ', 1)}


@pytest.mark.parametrize("before", [None, "acme", "beta"])
@pytest.mark.parametrize("now", [None, "acme", "beta"])
def test_what_only_grew_is_found_unchanged(now, before):
    leaves = story()
    report = told(view(leaves, now, since=MIDDLE), view(leaves[:MIDDLE], before))
    assert report.ok, report
    assert report.counts["entries as in the earlier export"] >= 2, "the prices at least"
    assert told(view(leaves, now), view(leaves, before)).ok, "and what is of the same tree"


@pytest.mark.parametrize(("now", "before"), [(None, None), ("acme", "acme"), (None, "acme"), ("acme", None)])
@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_rewritten_entry_is_named(now, before, place):
    leaves = story()
    at = [seq for seq in MINE if seq < MIDDLE][place]
    report = told(view(leaves, now, since=MIDDLE, instead=retold(leaves, at)), view(leaves[:MIDDLE], before))
    assert (report.code, f"entry {at} was rewritten" in report.problem) == ("another_history", True), report


@pytest.mark.parametrize("seq", [5, 9])
def test_an_entry_that_is_gone_or_new_in_what_was_sealed_is_named(seq):
    """The trees are the same, and the numbers of transfers are not looked at: a price or an event that moved nothing."""
    leaves = story()
    out = next(each["seq"] for each in honest()[seq:] if not each["transfers"] and each["seq"] < MIDDLE)
    less, whole = view(leaves, "acme", since=MIDDLE, leave_out={out}), view(leaves, "acme", since=MIDDLE)
    before, before_less = view(leaves[:MIDDLE], "acme"), view(leaves[:MIDDLE], "acme", leave_out={out})
    if verify_export(less, trusted_key=TRUSTED).ok:
        assert f"entry {out} is missing" in told(less, before).problem
    if verify_export(before_less, trusted_key=TRUSTED).ok:
        assert f"entry {out} was inserted" in told(whole, before_less).problem


def test_what_is_withheld_now_is_still_the_same_entry():
    leaves = story()
    tick = next(
        e["seq"] for e in reversed(honest()) if (e["event"] or {}).get("event") == "tick" and not e["transfers"]
    )
    report = told(view(leaves, "acme", withhold={tick}), view(leaves, "acme"))
    assert report.ok, report
    assert report.counts["of these now withheld"] == 1


def test_two_customers_that_are_shown_two_histories_are_told_so():
    """Each is whole by itself. Where nothing that both are shown differs, the roots do."""
    leaves = story()
    rewritten = view(leaves, "acme", instead=retold(leaves, 0))
    assert verify_export(rewritten, trusted_key=TRUSTED).ok
    report = told(rewritten, view(leaves, "beta"))
    assert "entry 0 was rewritten" in report.problem
    assert "split view" in report.problem
    acmes = next(each["seq"] for each in honest() if b'"acme' in leaves[each["seq"]])
    report = told(view(leaves, "acme", instead=retold(leaves, acmes)), view(leaves, "beta"))
    assert f"{len(leaves)} entries are signed with two roots" in report.problem
    report = told(view(leaves, "acme", instead=retold(leaves, acmes), since=MIDDLE), view(leaves[:MIDDLE], "beta"))
    assert "was rewritten: the log was forked" in report.problem


def test_what_can_not_be_told_is_not_passed():
    leaves = story()
    before = view(leaves[:MIDDLE], "acme")
    assert f"consistent since size {MIDDLE}" in told(view(leaves, "acme"), before).problem
    assert "wrong way round" in told(before, view(leaves, "acme")).problem
    forger = Signer(ORIGIN, new_private_key())
    assert told(whole_export(leaves), whole_export(leaves, signer=forger)).code == "another_key"
    note = json.loads(before[-1])["checkpoint"]
    assert "not both" in told(view(leaves, "acme"), before, witnessed=note).problem
    report = told(view(leaves, "acme"), before[:-1])
    assert (report.code, report.problem.startswith("the earlier export: ")) == ("export_cut_short", True)
    assert told(view(leaves, "acme"), []).code == "no_export"


def test_every_entry_that_is_told_otherwise_is_named_in_a_model_of_two_histories():
    """For each entry that the customer has, and each earlier size: what differs before it is named, what differs after isn't."""
    leaves = story()
    for size in (MINE[3], MIDDLE, len(leaves)):
        before = view(leaves[:size], "acme")
        for at in MINE[::4]:
            problem = told(view(leaves, "acme", since=size, instead=retold(leaves, at)), before).problem
            assert problem == "" if at >= size else f"entry {at} was rewritten" in problem, (size, at, problem)


def test_the_commands_hold_two_files_against_each_other(tmp_path, capsys):
    leaves = story()
    files = {
        "old": view(leaves[:MIDDLE], "acme"),
        "new": view(leaves, "acme", since=MIDDLE),
        "other": view(leaves, "acme", since=MIDDLE, instead=retold(leaves, MINE[3])),
    }
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    old, new, other = (str(tmp_path / name) for name in files)
    assert main([new, "--key", TRUSTED, "--earlier", old]) == 0
    assert "entries as in the earlier export" in capsys.readouterr().out
    assert main([other, "--key", TRUSTED, "--earlier", old]) == 1
    assert CliRunner().invoke(app, ["audit", "verify", new, "--key", TRUSTED, "--earlier", old]).exit_code == 0
    refused = CliRunner().invoke(app, ["audit", "verify", other, "--key", TRUSTED, "--earlier", old])
    assert (refused.exit_code, f"entry {MINE[3]} was rewritten" in refused.output.replace("\n", " ")) == (2, True)


def test_an_old_export_says_since_when_the_new_one_is_to_show_that_the_log_only_grew(tmp_path):
    from fabric.cli.audit import _size_of

    before = view(story()[:MIDDLE], "acme")
    (tmp_path / "old").write_text("".join(before), encoding="utf-8")
    (tmp_path / "note").write_text(json.loads(before[-1])["checkpoint"], encoding="utf-8")
    assert [_size_of(tmp_path / name) for name in ("old", "note")] == [MIDDLE, MIDDLE]
    assert checkpoint_of(["{}", "{}"]) == checkpoint_of([]) == checkpoint_of(before[:-1]) == ""
