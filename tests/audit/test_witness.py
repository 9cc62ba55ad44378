"""A witness: it cosigns what only grew, keeps that through crashes, and never goes back."""

import base64
import http.client
import os
import random
import threading
from itertools import count
from pathlib import Path

import pytest

from fabric.audit.checkpoint import Signer
from fabric.audit.merkle import ProofTree, leaf_hash
from fabric.audit.verify.cosignatures import cosigned_at
from fabric.audit.witness import server as door
from fabric.audit.witness.cosigner import Cosigner
from fabric.audit.witness.kept import Kept
from fabric.audit.witness.requests import BODY_BYTES, read, written
from fabric.audit.witness.witness import Witness
from fabric.errors import Conflict, InvalidConfig
from tests.audit.test_witnesses import BY_1, NOTE, W1

ORIGIN = "log.example/one"
LOG = Signer(ORIGIN, bytes(range(1, 33)))
COSIGNER = Cosigner("witness.example/w1", bytes(range(64, 96)))
NOW_S = 1_700_000_000


def tree_of(size, *, other_from=10**9):
    return ProofTree(leaf_hash(b"%d%s" % (seq, b"!" if seq >= other_from else b"")) for seq in range(size))


def asked(tree, old, size=None, *, signer=LOG, proof=None, more=()):
    size = tree.size if size is None else size
    proof = tree.consistency(min(old, size), size=size) if proof is None else proof
    return written(old, proof, signer.checkpoint(size=size, root=tree.root(size), more=more))


@pytest.fixture
def kept(tmp_path):
    found = Kept(tmp_path / "state")
    yield found
    found.close()


@pytest.fixture
def said():
    return []


@pytest.fixture
def witness(kept, said):
    return Witness(COSIGNER, [str(LOG.verifier)], kept, said.append)


def answered(witness, body):
    return (answer := witness.add_checkpoint(body, at_s=NOW_S)).status, answer.body


def test_it_cosigns_as_another_implementation_does():
    text = NOTE.partition("\n\n")[0] + "\n"
    assert COSIGNER.key == W1
    assert COSIGNER.cosign(text, at_s=0x69248100) == BY_1


def test_a_log_that_grows_is_cosigned_each_time(witness, kept, said):
    tree, old = tree_of(40), 0
    for size in (0, 1, 1, 2, 7, 8, 8, 33, 40):
        status, line = answered(witness, asked(tree, old, size, more=("of another room",)))
        assert status == 200, line
        note = LOG.checkpoint(size=size, root=tree.root(size), more=("of another room",))
        assert cosigned_at(note + line, COSIGNER.key) == NOW_S
        assert kept.read(ORIGIN) == note
        old = size
    assert said == []


def test_what_is_refused_is_refused_as_the_protocol_has_it(witness, said):
    tree, fork = tree_of(20), tree_of(20, other_from=5)
    assert answered(witness, asked(tree, 0, 8))[0] == 200
    other = Signer("log.example/two", bytes(range(1, 33)))
    stranger = Signer(ORIGIN, bytes(range(2, 34)))
    assert answered(witness, asked(tree, 8, signer=other))[0] == 404
    assert answered(witness, asked(tree, 8, signer=stranger))[0] == 403
    assert answered(witness, asked(tree, 8).replace(b"old 8", b"old 21"))[0] == 400
    for old in (0, 7, 9):
        answer = witness.add_checkpoint(asked(tree, old), at_s=NOW_S)
        assert (answer.status, answer.body, answer.content_type) == (409, "8\n", "text/x.tlog.size")
    assert answered(witness, asked(fork, 8, 8)) == (409, "8\n"), "the same size with another root"
    assert answered(witness, asked(fork, 8))[0] == 422
    assert answered(witness, asked(tree, 8, proof=tree.consistency(8)[:-1]))[0] == 422
    assert answered(witness, asked(tree, 8, proof=(*tree.consistency(8), bytes(32))))[0] == 422
    assert answered(witness, asked(tree, 8, 8, proof=(bytes(32),)))[0] == 422
    assert len(said) == 2, "two histories of one log are told, with what was signed"
    assert all("The log signed" in each for each in said)
    assert answered(witness, asked(tree, 8))[0] == 200, "and none of it has changed anything"


def test_a_log_begins_without_a_proof_and_an_empty_one_has_one_root(witness):
    tree = tree_of(4)
    assert answered(witness, asked(tree, 0, proof=(bytes(32),)))[0] == 422
    assert answered(witness, written(0, (), LOG.checkpoint(size=0, root=bytes(32))))[0] in (409, 422)
    assert answered(witness, asked(tree, 0))[0] == 200


NOTES = LOG.checkpoint(size=1, root=tree_of(1).root())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"old", b"old 1", b"old 01\n\n" + NOTES.encode(), b"old -1\n\n" + NOTES.encode(), b"new 0\n\n" + NOTES.encode(),
        b"old 0\n" + NOTES.encode(), b"old 0\n\n", b"old 0\nAAAA\n\n" + NOTES.encode(), b"old 0\n!\n\n" + NOTES.encode(),
        b"old 9223372036854775808\n\n" + NOTES.encode(), b"old " + b"9" * 5_000 + b"\n\n" + NOTES.encode(),
        b"old 0\n\n" + NOTES.encode()[:-1], b"old 0\n\n" + NOTES.partition("\n\n")[0].encode() + b"\n\n",
        b"old 0\n\n" + NOTES.replace("\n1\n", "\n01\n").encode(), b"\xff\xfe", b"old 0\n\n\n\n\n\n\n\n\n",
        written(0, [bytes(32)] * 64, NOTES), b"old 0\n\n" + NOTES.replace("\n1\n", "\n1\nAA").encode(),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(witness, body):
    assert answered(witness, body)[0] == 400


def test_whatever_bytes_come_nothing_but_a_signed_checkpoint_is_cosigned(witness):
    chance, good = random.Random(7), asked(tree_of(3), 0)
    for _ in range(3_000):
        body = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        status, line = answered(witness, bytes(body))
        assert status in (400, 403, 404, 409, 422) or read(bytes(body)).root == tree_of(3).root(), (bytes(body), line)


def test_several_keys_of_one_log_are_known_and_lines_of_others_are_nobodys(kept, said):
    second = Signer(ORIGIN, bytes(range(3, 35)))
    witness = Witness(COSIGNER, [str(LOG.verifier), str(second.verifier)], kept, said.append)
    tree = tree_of(6)
    body = asked(tree, 0, 3, signer=second) + "— log.example/one AAAAAAAA\n— else AAAA\n".encode()
    assert answered(witness, body)[0] == 200
    assert kept.read(ORIGIN).count("\n—") == 1
    again = Witness(COSIGNER, [str(second.verifier)], kept, said.append)
    assert answered(again, asked(tree, 3, signer=second))[0] == 200
    for keys, why in (([str(LOG.verifier)], "restore it"), (["x"], "no key"), ([COSIGNER.key], "no key")):
        with pytest.raises(InvalidConfig, match=why):
            Witness(COSIGNER, keys, kept, said.append)


def test_two_processes_never_keep_one_state(kept):
    with pytest.raises(Conflict, match="another witness runs"):
        Kept(kept.folder)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb"])
def test_what_can_not_name_a_witness_is_refused(name):
    with pytest.raises(ValueError, match="can't name a witness"):
        Cosigner(name, bytes(32))


def test_a_crash_at_any_step_of_keeping_takes_back_nothing_that_was_cosigned(kept, said, monkeypatch):
    """Every call that touches the disk fails once, and the witness is started again from what is there."""
    tree = tree_of(400)
    calls = [(os, "fsync"), (Path, "replace"), (Path, "open"), (os, "open")]
    sizes, newest, crashes = iter(range(1, 401)), 0, 0
    for (owner, name), nth in ((call, nth) for call in calls for nth in range(3)):
        witness, left, whole = Witness(COSIGNER, [str(LOG.verifier)], kept, said.append), count(), getattr(owner, name)

        def failing(*args, left=left, nth=nth, whole=whole, **options):
            if next(left) == nth:
                raise OSError(28, "no space")
            return whole(*args, **options)

        monkeypatch.setattr(owner, name, failing)
        for _ in range(4):
            size = next(sizes)
            status, answer = answered(witness, asked(tree, newest, size))
            if status == 409:
                newest = int(answer)
            elif status == 200:
                newest = size
            crashes += status == 500
        monkeypatch.setattr(owner, name, whole)
        kept_size = int(kept.read(ORIGIN).split("\n")[1]) if kept.read(ORIGIN) else 0
        assert kept_size >= newest, "what was cosigned is kept"
        newest = kept_size
    assert crashes >= 5
    assert any("can't keep" in each for each in said)


def test_of_many_that_ask_at_once_only_one_history_is_cosigned(kept, said):
    """Threads race with two histories of one log: all that is cosigned lies on one, and sizes never go back."""
    witness, histories = (
        Witness(COSIGNER, [str(LOG.verifier)], kept, said.append),
        [tree_of(60), tree_of(60, other_from=3)],
    )
    cosigned, lock = [], threading.Lock()

    def ask(seed):
        chance, old = random.Random(seed), 0
        for _ in range(40):
            tree = histories[seed % 2]
            size = chance.randint(old, min(old + 4, 60))
            status, answer = answered(witness, asked(tree, old, size))
            if status == 200:
                with lock:
                    cosigned.append((size, tree.root(size)))
            old = int(answer) if status == 409 else size if status == 200 else old

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*cosigned}) > 10
    assert any(all(tree.root(size) == root for size, root in cosigned) for tree in histories)


# -- its door ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def port(witness):
    server = door.WitnessServer(("127.0.0.1", 0), witness, clock=lambda: NOW_S)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def sent(port, body, *, path="/add-checkpoint", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


def test_it_answers_over_http_on_one_connection_and_bounds_what_it_reads(port):
    tree = tree_of(5)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for old, size, wanted in ((0, 2, 200), (0, 5, 409), (2, 5, 200)):
        connection.request("POST", "/add-checkpoint", body=asked(tree, old, size))
        answer = connection.getresponse()
        assert answer.status == wanted, answer.read()
        body = answer.read().decode()
        assert body == "2\n" if wanted == 409 else body.startswith(f"— {COSIGNER.name} ")
        assert answer.headers["Content-Type"].startswith("text/x.tlog.size" if wanted == 409 else "text/plain")
    connection.request("GET", "/")
    assert f"witness {COSIGNER.key}\nlog {LOG.verifier}\n" in connection.getresponse().read().decode()
    connection.close()
    assert sent(port, asked(tree, 5), path="/else")[0] == 404
    assert sent(port, b"", **{"Content-Length": str(BODY_BYTES + 1)})[0] == 413
    assert sent(port, b"", **{"Content-Length": "9" * 5_000})[0] == 413
    assert sent(port, b"", **{"Content-Length": "-1"})[0] == 411
    assert sent(port, iter([b"old"]), **{"Transfer-Encoding": "chunked"})[0] == 411
    assert base64.b64decode(sent(port, asked(tree, 5))[1].split(" ")[2])[4:12] == NOW_S.to_bytes(8, "big")


def test_more_connections_than_it_has_room_for_are_closed_unheard(witness, monkeypatch):
    monkeypatch.setattr(door, "CONNECTIONS", 0)
    monkeypatch.setattr(door.threading, "BoundedSemaphore", threading.Semaphore)
    full = door.WitnessServer(("127.0.0.1", 0), witness)
    thread = threading.Thread(target=full.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with pytest.raises((http.client.HTTPException, OSError)):
        sent(full.server_address[1], asked(tree_of(1), 0))
    full.shutdown()
    thread.join()
    full.server_close()
