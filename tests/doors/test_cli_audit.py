"""The commands of whoever doubts a bill: checkpoints that are kept, exports since them, and how a check ends."""

import base64
import json

from fabric.audit.checkpoint import Signer
from fabric.audit.merkle import leaf_hash
from fabric.audit.records import Sealed
from fabric.gate.questions import CheckpointOf
from tests.audit.test_verify import SIGNER, whole_export


def test_a_checkpoint_is_kept_and_an_export_shows_that_the_log_only_grew(run, house, tmp_path, monkeypatch):
    signer = Signer("o", bytes(range(32)))
    note, asked = signer.checkpoint(size=3, root=bytes(32)), []
    answered = house.port.ask

    async def ask(question):
        is_it = isinstance(question, CheckpointOf)
        return Sealed(note=note, key=str(signer.verifier)) if is_it else await answered(question)

    async def export(*, account_id, since=None):
        asked.append((account_id, since))
        yield b"{}"

    monkeypatch.setattr(house.port, "ask", ask)
    monkeypatch.setattr(house.port, "export", export)
    kept = tmp_path / "october.checkpoint"
    assert run("audit", "checkpoint").stdout == note
    assert json.loads(run("audit", "checkpoint", kept, "--json").output)["key"] == str(signer.verifier)
    assert kept.read_text() == note
    run("audit", "export", tmp_path / "export.jsonl", "--since", kept)
    run("audit", "export", tmp_path / "export.jsonl")
    assert asked == [("acme", 3), ("acme", None)]
    kept.write_text("none")
    assert "no_checkpoint" in run("audit", "export", tmp_path / "export.jsonl", "--since", kept, code=2).stderr


def test_what_is_whole_but_signed_by_a_key_that_nobody_vouched_for_ends_with_3(run, tmp_path):
    leaf = b'{"seq":0,"at_us":1,"event":{"event":"tick"},"outcome":{"outcome":"accepted"},"transfers":[],"records":[]}'
    file, key = tmp_path / "export.jsonl", str(SIGNER.verifier)
    file.write_text("".join(whole_export([leaf])))
    older = tmp_path / "older.checkpoint"
    older.write_text(SIGNER.checkpoint(size=1, root=leaf_hash(leaf)))
    assert "WHOLE, BUT NOT VERIFIED" in run("audit", "verify", file, code=3).stdout
    assert json.loads(run("audit", "verify", file, "--json", code=3).stdout)["verified"] is False
    assert "VERIFIED" in run("audit", "verify", file, "--key", key, "--witnessed", older).stdout
    older.write_text(SIGNER.checkpoint(size=1, root=bytes(32)))
    forked = run("audit", "verify", file, "--key", key, "--witnessed", older, code=2).stderr
    assert "the log was forked" in forked
    receipt = {"seq": 0, "leaf": base64.b64encode(leaf).decode(), "leaf_hash": leaf_hash(leaf).hex(), "proof": [],
               "tree_size": 1, "checkpoint": SIGNER.checkpoint(size=1, root=leaf_hash(leaf)), "key": key}  # fmt: skip
    file.write_text(json.dumps([receipt]))
    run("audit", "verify-receipt", file, code=3)
    assert json.loads(run("audit", "verify-receipt", file, "--key", key, "--json").stdout)["verified"] is True
    file.write_text(json.dumps([receipt | {"seq": 1}]))
    assert "not_verified" in run("audit", "verify-receipt", file, "--key", key, code=2).stderr
