"""Witnesses: a checkpoint that they have cosigned is what others see too. Notes were made by another's library (aics-tlog 0.2.1)."""

import base64
import hashlib
import json
import sys

import pytest

from fabric.audit.verify import Wrong, verify_export, verify_receipts
from fabric.audit.verify.notes import opened, size_of
from fabric.audit.verify.policy import Policy
from fabric.audit.verify.tree import included, leaf_hash
from tests.audit.forged import story
from tests.audit.test_cheats import TRUSTED, account_export
from tests.audit.test_verify import SIGNER

LOG = "log.example/of-another-kind+8be299c2+ASmsuuFBvMrwsi4alNNNC8c2HlJtC/4SyJeUvJMilm3X"
W1 = "witness.example/w1+b72bab2e+BCVDuS/xCVURR2rcg2nbbdyTNmWhGXjdoUBO4QZsqVWd"
W2 = "witness.example/w2+96ca11c4+BBdFU7RW3d/GkI7KscEB/mqyHiuqBhd5W31DpjSCmT/V"
NOTE = (
    "log.example/of-another-kind\n11\ntubAHcNe8yoG1ShcXR8u5hcSynqvU9EI/ULCvRwUFgc=\n\n"
    "— log.example/of-another-kind"
    " i+KZwtNGwXN0B8tTZrDe5OXW2D+evBRfJclt5+XPfAQSudPkLqK7OVkpMLuv4oSsdeFcp0/VRgl6b0eVpcUQp81AMQ8=\n"
)
BY_1 = (
    "— witness.example/w1 tyurLgAAAABpJIEAYwo84Se+Re09W+QkJNLCvXxvRVcnkDFhETALpHMig+T7GyUfs4Dz5aNbgP6QOkhUMpEmRKhN0glgPU0c"
    "U5HYBA==\n"
)
BY_2 = (
    "— witness.example/w2 lsoRxAAAAABpJIEABk7gj+vBvVw6fOzIKFYmf2LQhBdO1pkSrBxEkJDXbdi5zfAOLGcfx8nWN2f2pcVGBYQc6SNiBxtHfF9K"
    "s/xGAw==\n"
)
PROOF = (
    "ab37ba34d1dfe29015de717a6d5764a8fb029c3a7a0f5b64b93b54351885bf7c",
    "fc5f6b88ff8554f75bb2f9e6f39c31b1936d44b69276edf7b1205a955b9761e3",
    "c3e6b3b91f3a13b9a4270b2cd911623abb3a7a855af5e6e4b71c84f990cdc469",
    "4eda2b4773200992eef6c877bafc659c5c88952d9fdc07b2908e5d260256fb14",
)
WITNESSES = f"# who\nlog {LOG}\nwitness one {W1}\n\twitness  two\t{W2} https://w2.example\n\n"
ANY, BOTH = f"{WITNESSES}group g any one two\nquorum g\n", f"{WITNESSES}group g all one two\nquorum g\n"


def test_notes_and_proofs_of_another_implementation_are_read():
    size, root = opened(NOTE + BY_1, key=LOG, origin="log.example/of-another-kind")
    assert (size, size_of(NOTE)) == (11, 11)
    assert included(leaf_hash(b"leaf 3"), 3, size, [bytes.fromhex(node) for node in PROOF]) == root


@pytest.mark.parametrize(
    ("policy", "lines", "met"),
    [
        (ANY, "", False),
        (ANY, BY_1, True),
        (ANY, BY_2, True),
        (BOTH, BY_2, False),
        (BOTH, BY_2 + BY_1, True),
        (f"{WITNESSES}quorum one\n", BY_2, False),
        (f"{WITNESSES}quorum none\n", "", True),
        (f"{WITNESSES}group a 1 one\ngroup b 2 a two\nquorum b\n", BY_1, False),
        (f"{WITNESSES}group a 1 one\ngroup b 2 a two\nquorum b\n", BY_1 + BY_2, True),
    ],
)
def test_a_quorum_is_met_by_who_has_cosigned(policy, lines, met):
    found = Policy(policy)
    assert found.met(found.cosigned(NOTE + lines)) is met


@pytest.mark.parametrize("changed", [("11\n", "12\n"), ("tubA", "tubB"), ("AAAABpJIEA", "AAAABpJIEB")])
def test_a_cosignature_of_something_else_is_found(changed):
    with pytest.raises(Wrong, match="cosignature of the checkpoint by witness"):
        Policy(ANY).cosigned((NOTE + BY_1).replace(*changed, 1))


@pytest.mark.parametrize(
    "text",
    [
        "", "quorum nobody\n", f"{WITNESSES}", f"{ANY}quorum g\n", f"{WITNESSES}witness one {W2}\nquorum none\n",
        f"{WITNESSES}witness three {W1}\nquorum one\n", f"{WITNESSES}group g 3 one two\nquorum g\n",
        f"{WITNESSES}group g 0 one two\nquorum g\n", f"{WITNESSES}group g any one\ngroup h any one\nquorum h\n",
        f"{WITNESSES}group g any one one\nquorum g\n", f"{WITNESSES}group g any none\nquorum g\n", f"witness one {LOG}\nquorum one\n",
        f"log {LOG}\nlog {LOG}\nquorum none\n", "believe me\n", "witness one\nquorum one\n", f"{WITNESSES}group g x one\nquorum g\n",
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused_in_a_sentence(text):
    with pytest.raises(Wrong):
        Policy(text)


def cosigned(lines):
    """An export whose checkpoint a witness has cosigned, as the one above cosigns: nothing else of the file changes."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    last = json.loads(lines[-1])
    text = last["checkpoint"].partition("\n\n")[0]
    signature = Ed25519PrivateKey.from_private_bytes(bytes(range(64, 96))).sign(
        f"cosignature/v1\ntime 7\n{text}\n".encode()
    )
    blob = bytes.fromhex("b72bab2e") + (7).to_bytes(8, "big") + signature
    line = f"— witness.example/w1 {base64.b64encode(blob).decode()}\n"
    return [*lines[:-1], json.dumps(last | {"checkpoint": last["checkpoint"] + line})]


def test_an_export_is_verified_by_a_policy_alone_and_only_if_its_quorum_has_cosigned():
    lines = account_export(story())
    policy = f"log {TRUSTED}\nwitness one {W1}\nwitness two {W2}\ngroup g 1 one two\nquorum g\n"
    report = verify_export(cosigned(lines), policy=policy)
    assert (report.ok, report.trusted) == (True, True), report
    assert "as witnesses saw them: one" in report.notes[0]
    assert verify_export(lines, policy=policy).code == "not_witnessed"
    seen = json.loads(cosigned(lines)[-1])["checkpoint"]
    assert verify_export(lines, policy=policy, witnessed=seen).ok, "an older one that they cosigned will do"
    assert verify_export(cosigned(lines), policy=policy.replace("g 1", "g 2")).code == "not_witnessed"
    assert verify_export(cosigned(lines), policy=policy.replace(TRUSTED, LOG)).code == "another_key"
    assert verify_export(lines, policy="none").code == "no_policy"
    assert verify_export(cosigned(lines)).ok, "without a policy, cosignatures are nobody's"


def test_receipts_are_held_against_a_policy_too():
    leaf = story()[0]
    note = SIGNER.checkpoint(size=1, root=leaf_hash(leaf))
    receipt = {"seq": 0, "leaf": base64.b64encode(leaf).decode(), "leaf_hash": leaf_hash(leaf).hex(), "proof": [],
               "tree_size": 1, "checkpoint": note, "key": TRUSTED}  # fmt: skip
    text = json.dumps(receipt)
    assert verify_receipts(text, policy=f"log {TRUSTED}\nquorum none\n").trusted
    assert verify_receipts(text, policy=f"log {TRUSTED}\nwitness one {W1}\nquorum one\n").code == "not_witnessed"


def test_a_witness_with_a_post_quantum_key_is_believed_and_only_for_what_it_cosigned():
    """ML-DSA-44 over the subtree message: name, time, origin, size and root are all in it."""
    mldsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.mldsa")
    key = mldsa.MLDSA44PrivateKey.generate()
    name, public = "witness.example/pq", b"\x06" + key.public_key().public_bytes_raw()
    key_id = hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
    published = f"{name}+{key_id.hex()}+{base64.b64encode(public).decode()}"
    origin, size, root = NOTE.split("\n")[:3]

    def line(at_s, said_s=None):
        message = b"".join((
            b"subtree/v1\n\0", bytes([len(name)]), name.encode(), at_s.to_bytes(8, "big"), bytes([len(origin)]), origin.encode(),
            bytes(8), int(size).to_bytes(8, "big"), base64.b64decode(root),
        ))  # fmt: skip
        blob = key_id + (said_s or at_s).to_bytes(8, "big") + key.sign(message)
        return f"— {name} {base64.b64encode(blob).decode()}\n"

    found = Policy(f"log {LOG}\nwitness pq {published}\nwitness one {W1}\ngroup g all pq one\nquorum g\n")
    assert found.cosigned(NOTE + BY_1 + line(7)) == ["pq", "one"]
    assert not found.met(found.cosigned(NOTE + BY_1))
    for forged in (NOTE.replace("\n11\n", "\n12\n") + line(7), NOTE + line(7, 8)):
        with pytest.raises(Wrong, match="cosignature of the checkpoint by"):
            found.cosigned(forged)


def test_without_the_library_a_post_quantum_witness_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mldsa", None)
    public = b"\x06" + bytes(1312)
    key_id = hashlib.sha256(b"pq\n" + public).hexdigest()[:8]
    with pytest.raises(Wrong, match="ML-DSA-44 can't be verified here"):
        Policy(f"witness w pq+{key_id}+{base64.b64encode(public).decode()}\nquorum w\n")
