"""Signed notes: the example published with the format, and what a changed one is told."""

import pytest

from fabric.audit.checkpoint import Checkpoint, NoteError, Signer, Verifier, new_private_key, parse_checkpoint

PUBLISHED_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PUBLISHED_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
SIGNER = Signer("fabric.example/lab", bytes(range(32)))
ROOT = bytes(range(32))


def test_the_published_note_opens_with_the_published_key():
    key = Verifier.parse(PUBLISHED_KEY)
    assert key.open(PUBLISHED_NOTE).startswith("If you think")
    assert str(key) == PUBLISHED_KEY


def test_a_checkpoint_is_three_lines_an_empty_one_and_the_signature():
    note = SIGNER.checkpoint(size=7, root=ROOT, more=("said too",))
    assert note.split("\n")[:5] == [
        "fabric.example/lab",
        "7",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "said too",
        "",
    ]
    assert SIGNER.verifier.checkpoint(note) == Checkpoint("fabric.example/lab", 7, ROOT, ("said too",))


def test_a_witness_may_sign_too():
    witness = Signer("witness.example", new_private_key())
    text = Checkpoint("fabric.example/lab", 7, ROOT).text()
    cosigned = SIGNER.sign(text) + witness.sign(text).rpartition("\n\n")[2]
    assert SIGNER.verifier.checkpoint(cosigned) == witness.verifier.checkpoint(cosigned)


@pytest.mark.parametrize("at", range(len(SIGNER.checkpoint(size=7, root=ROOT).rpartition("\n\n")[0]) + 1))
def test_a_signed_text_with_any_character_changed_is_refused(at):
    note = SIGNER.checkpoint(size=7, root=ROOT)
    with pytest.raises(NoteError):
        SIGNER.verifier.checkpoint(note[:at] + chr(ord(note[at]) ^ 1) + note[at + 1 :])


def test_a_note_by_another_key_of_the_same_name_is_refused():
    other = Signer("fabric.example/lab", new_private_key())
    with pytest.raises(NoteError, match="has not signed"):
        SIGNER.verifier.open(other.checkpoint(size=1, root=ROOT))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin\n1\n",
        "origin\n-1\nAAAA\n",
        "origin\n01\nAAAA\n",
        "origin\n1\n%%%\n",
        "origin\n1\nAAAA\n",
        "\n1\nAAAA\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text):
    with pytest.raises(NoteError):
        parse_checkpoint(text)


@pytest.mark.parametrize(
    "text", ["", "a+b", "PeterNeumann+c74f20a4" + PUBLISHED_KEY[21:], PUBLISHED_KEY.replace("ARpc", "AhpC")]
)
def test_what_is_no_verifier_key_is_refused(text):
    with pytest.raises(ValueError, match=r"verifier key|names key"):
        Verifier.parse(text)


@pytest.mark.parametrize("name", ["", "with space", "with+plus", "with\nnewline"])
def test_a_name_that_would_break_a_note_is_refused(name):
    with pytest.raises(ValueError, match="can't name a key"):
        Signer(name, new_private_key())
