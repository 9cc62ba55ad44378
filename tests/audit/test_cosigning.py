"""The log's side of witnesses: checkpoints that customers get carry what witnesses cosigned, and no witness holds anything up."""

import asyncio
import contextlib
import json
import socket
import threading
from types import SimpleNamespace

import pytest

from fabric.audit.merkle import leaf_hash
from fabric.audit.verify import size_of, verify_export, verify_receipts
from fabric.audit.witness.cosigner import Cosigner
from fabric.audit.witness.kept import Kept
from fabric.audit.witness.server import WitnessServer
from fabric.audit.witness.witness import Answer, Witness
from fabric.config.witnesses import WitnessConfig
from fabric.doctor import Health
from fabric.doctor.witnesses import check_witnesses
from fabric.gate.events import Tick
from fabric.gate.questions import ReceiptsOf
from fabric.journal import cosigning
from fabric.journal.auditor import Auditor
from tests.audit.conftest import KEY, ORIGIN, calls
from tests.audit.test_cheats import TRUSTED

NAMES = ("w1.example", "w2.example")


class Served:
    """A witness behind its door, in a thread."""

    def __init__(self, name, folder, logs=(TRUSTED,)):
        self.said, self.asked = [], 0
        self.witness = Witness(Cosigner(name, bytes([len(folder.name)]) * 32), logs, Kept(folder), self.said.append)
        self.answers = self.witness.add_checkpoint
        self.witness.add_checkpoint = self._answered
        self.server = WitnessServer(("127.0.0.1", 0), self.witness)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.at = WitnessConfig(url=f"http://127.0.0.1:{self.server.server_address[1]}/", key=self.witness.cosigner.key)

    def _answered(self, body, *, at_s):
        self.asked += 1
        return self.answers(body, at_s=at_s)

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        self.witness._kept.close()


@pytest.fixture
def two(tmp_path):
    with contextlib.ExitStack() as held:
        served = [Served(name, tmp_path / ("w" * (n + 1))) for n, name in enumerate(NAMES)]
        for each in served:
            held.callback(each.close)
        yield served


@pytest.fixture(autouse=True)
def _rounds_follow_each_other(monkeypatch):
    monkeypatch.setattr(cosigning, "APART_S", 0.0)


def audited(log, witnesses, **options):
    found = Auditor(log.auditor._journal, origin=ORIGIN, signing_key=KEY, witnesses=[each.at for each in witnesses])
    found.cosigning._began_at = 0.0
    for each in found.cosigning._witnesses:
        each._clock = options.get("clock", each._clock)
    return found


def policy(witnesses, least):
    lines = [f"witness {n} {each.at.key}" for n, each in enumerate(witnesses)]
    names = " ".join(map(str, range(len(witnesses))))
    return "\n".join([f"log {TRUSTED}", *lines, f"group g {least} {names}", "quorum g", ""])


async def test_what_customers_get_carries_what_the_witnesses_cosigned(log, two):
    auditor = audited(log, two)
    await log.write(calls("acme"))
    lines = [line.decode() async for line in auditor.export("acme")]
    report = verify_export(lines, policy=policy(two, 2))
    assert (report.ok, report.trusted) == (True, True), report
    paged, page = [], None
    while page is None or page:
        page = await auditor.export_page("acme", start=len(paged), count=5)
        paged += [line.decode() for line in page]
    assert verify_export(paged, policy=policy(two, 2)).ok
    question = ReceiptsOf(account_id="acme", limit=7)
    while question is not None:
        found = await auditor.receipts(question)
        for each in found.receipts:
            receipt = json.dumps({name: getattr(each, name) for name in each.__struct_fields__})
            assert verify_receipts(receipt, policy=policy(two, 2)).ok, "each page, and of one tree"
        question = found.following
    note = await auditor.checkpoint()
    assert [note.count(f"\n— {name} ") for name in NAMES] == [1, 1]
    assert size_of(note) == log.writer.head.size
    assert (two[0].asked, two[0].said) == (1, []), "one tree is cosigned once, whoever asks how often"


async def test_customers_that_ask_at_once_get_one_head_and_a_log_that_grows_is_cosigned_on(log, two):
    auditor = audited(log, two)
    notes = set(await asyncio.gather(*(auditor.checkpoint() for _ in range(50))))
    assert len(notes) == 1
    assert two[0].asked <= 2
    for _ in range(3):
        await log.write([Tick(), *calls("acme")[:1]])
        assert (await auditor.checkpoint()).count("\n— w") == 2
    again = audited(log, two)
    assert (await again.checkpoint()).count("\n— w") == 2, "a gate that was started again asks where they are"


def silent(body, *, at_s):
    threading.Event().wait(0.2)
    return Answer(200, "")


@pytest.mark.parametrize(
    "answers",
    [
        lambda body, *, at_s: Answer(500, "no room\n"),
        lambda body, *, at_s: Answer(409, "x\n"),
        lambda body, *, at_s: Answer(409, "99999999\n"),
        lambda body, *, at_s: Answer(409, "9" * 5_000),
        lambda body, *, at_s: Answer(200, "— w1.example AAAA\n"),
        lambda body, *, at_s: Answer(200, "— w1.example !\n" * 9),
        lambda body, *, at_s: Answer(200, ""),
        lambda body, *, at_s: Answer(302, ""),
        silent,
    ],
)
async def test_a_witness_that_does_not_answer_as_it_should_holds_up_no_checkpoint_and_is_left_alone(
    log, two, answers, monkeypatch
):
    monkeypatch.setattr(cosigning, "ROUND_S", 0.1 if answers is silent else 2.0)
    now = [0.0]
    auditor = audited(log, two, clock=lambda: now[0])
    two[0].answers, right = answers, two[0].answers
    note = await auditor.checkpoint()
    assert (note.count("\n— w1"), note.count("\n— w2") == 1 or answers is silent) == (0, True)
    asked = two[0].asked
    for _ in range(5):
        await log.write([Tick(), *calls("acme")[:1]])
        await auditor.checkpoint()
    assert two[0].asked == asked, "while it is left alone it is not asked"
    two[0].answers, now[0] = right, cosigning.PAUSE_MAX_S
    assert (await auditor.checkpoint()).count("\n— w1") == 1, "and then it is, though the log has not grown"


async def test_pauses_grow_up_to_a_bound(log, two):
    two[0].answers = lambda body, *, at_s: Answer(500, "")
    now, pauses = [0.0], []
    auditor = audited(log, two, clock=lambda: now[0])
    (first, _) = auditor.cosigning._witnesses
    for _ in range(12):
        await auditor.checkpoint()
        pauses.append(first._again_at - now[0])
        now[0] = first._again_at
    assert pauses == [*(2.0**n for n in range(9)), *[cosigning.PAUSE_MAX_S] * 3]


async def test_a_witness_that_has_seen_another_history_does_not_cosign_this_one(log, two):
    """The operator shows a witness one history and customers another: the policy's quorum is not met."""
    size = log.writer.head.size
    other = [leaf_hash(b"%d" % seq) for seq in range(size - 1)]
    from fabric.audit.checkpoint import Signer
    from fabric.audit.merkle import ProofTree
    from fabric.audit.witness.requests import written

    note = Signer(ORIGIN, KEY).checkpoint(size=size - 1, root=ProofTree(other).root())
    assert two[0].witness.add_checkpoint(written(0, (), note), at_s=1).status == 200
    auditor = audited(log, two)
    lines = [line.decode() async for line in auditor.export("acme")]
    assert verify_export(lines, policy=policy(two, 1)).ok
    assert verify_export(lines, policy=policy(two, 2)).code == "not_witnessed"
    assert "does not lead on" in two[0].said[0], "and it tells, with what was signed"


async def test_the_doctor_says_how_far_each_witness_has_cosigned(log, two, tmp_path):
    """In a thread of its own, because it blocks."""

    def looked(witnesses, key=KEY, origin=ORIGIN):
        return asyncio.to_thread(check_witnesses, [each.at for each in witnesses], origin=origin, signing_key=key)

    (first, second) = await looked(two)
    assert (first.health, "has cosigned 0 entries" in first.found) == (Health.OK, True)
    await audited(log, two).checkpoint()
    (first, second) = await looked(two)
    assert f"has cosigned {log.writer.head.size} entries" in second.found
    assert (await audited(log, two).checkpoint()).count("\n— w") == 2, "what the doctor asks changes nothing"
    assert "knows a log of the name" in (await looked(two, key=None))[0].found
    assert "knows another key" in (await looked(two, key=KEY[::-1]))[0].found
    unknown = (await looked(two, origin="else"))[0]
    assert (unknown.health, "--log else+" in unknown.remedy) == (Health.WARN, True)
    with socket.socket() as held:  # bound, and nobody listens: whoever connects is refused
        held.bind(("127.0.0.1", 0))
        gone = WitnessConfig(url=f"http://127.0.0.1:{held.getsockname()[1]}", key=two[0].at.key)
        assert (await looked([SimpleNamespace(at=gone)]))[0].health is Health.WARN
    two[0].answers = lambda body, *, at_s: Answer(418, "")
    assert "it is no witness" in (await looked(two))[0].remedy


async def test_without_witnesses_the_chore_reads_nothing_of_the_journal(log, monkeypatch):
    auditor = audited(log, [])

    async def grown():
        raise AssertionError("a large journal would be read at every start")

    monkeypatch.setattr(auditor.cosigning._tree, "grow", grown)
    await auditor.cosigning.show()
    assert check_witnesses([], origin=ORIGIN, signing_key=None) == []
