"""A gate that is killed again and again: run by `test_crash.py`, or by hand with `--lives` and `--seed`.

One process has everything imported and does nothing but fork. Each life opens the journal as a restarted gate would,
checks that all which former lives acknowledged is there, says READY, and serves clients until SIGKILL finds it. Some are
killed while they are still starting. What is acknowledged is told through a pipe, which outlives the dead.
"""

import argparse
import asyncio
import json
import os
import random
import select
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from fabric.audit.merkle import ProofTree
from fabric.audit.verify import verify_export
from fabric.charging.catalogue import Catalogue, Plan
from fabric.charging.tariffs import Tariffs, Weight
from fabric.clock import SteadyClock
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import Configure, Grant
from fabric.gate.gate import Gate
from fabric.gate.instructions import Accepted
from fabric.gate.serving_events import Authorize, ReleaseHold, SettleHold, UpdateHold
from fabric.journal.auditor import Auditor
from fabric.journal.encoding import decode_entry
from fabric.journal.postgres import PostgresJournal
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.store import Journal
from fabric.journal.writer import Writer
from fabric.ledger.scopes import Service, Use

ACCOUNTS = [f"acct-{number}" for number in range(4)]
CLIENTS = 32
SNAPSHOT_EVERY = 150
LIVES_A_JOURNAL = 50
STARTUP_KILLS = 0.1
LOAD_S = 0.06
OPENING = [
    Configure(
        tariffs=Tariffs(version=1, weights=(Weight(accelerator="H100", ppm=1_000_000),)),
        catalogue=Catalogue(
            version=1, plans=(Plan(name="starter", tier_rank=3, price_microcny_per_ct=500_000, lifetime_days=30),)
        ),
        request_id="configure",
    ),
    *(OpenAccount(account_id=name, name=name, plan="starter", request_id="open") for name in ACCOUNTS),
    *(Grant(account_id=name, amount_uhs=10**15, request_id="grant") for name in ACCOUNTS),
]


def say(pipe: int, *words: object) -> None:
    os.write(pipe, (json.dumps(words) + "\n").encode())


def key_of(event) -> str:
    return f"{type(event).__name__}/{event.hold_id}/{getattr(event, 'seq', 0)}"


def answer_of(outcome) -> list[object]:
    assert isinstance(outcome, Accepted), outcome
    return [outcome.granted_uhs, outcome.held_uhs, outcome.final]


async def client(writer: Writer[Gate], pipe: int, name: str, dice: random.Random) -> None:
    """Hold, use, and end, for ever; whatever is acknowledged is said at once."""
    account = dice.choice(ACCOUNTS)
    for number in range(1_000_000):
        of = {"hold_id": f"{name}-{number}", "account_id": account}
        use = Use(service=Service.INFERENCE)
        steps = [Authorize(**of, amount_uhs=dice.randint(1, 10**6), use=use, ttl_us=3_600_000_000)]
        if dice.random() < 0.5:
            steps.append(UpdateHold(**of, seq=1, used_uhs=dice.randint(0, 10**5), more_uhs=dice.randint(0, 10**5)))
        if dice.random() < 0.7:
            end = dice.choice((SettleHold, ReleaseHold))
            steps.append(end(**of, seq=len(steps), **({"used_uhs": 7} if end is SettleHold else {})))
        for event in steps:
            (outcome,) = await writer.submit([event])
            say(pipe, "ACK", key_of(event), answer_of(outcome))


async def check(writer: Writer[Gate], acknowledged: dict[str, list[object]], witnessed: tuple[int, str]) -> None:
    """Nothing acknowledged is missing or different, history only grew, the books are sound."""
    journal, head = writer.journal, writer.head
    tree = ProofTree(await journal.leaf_hashes())
    assert (tree.size, tree.root()) == (head.size, head.root), "the root does not verify"
    size, root = witnessed
    assert size <= head.size, f"{size} entries were witnessed, {head.size} are left"
    assert not size or tree.root(size).hex() == root, "history was rewritten"
    found: dict[str, list[object]] = {}
    held: defaultdict[str, int] = defaultdict(int)
    async for entry in journal.read():
        recorded = decode_entry(entry.leaf)
        if hasattr(recorded.event, "hold_id"):
            found[key_of(recorded.event)] = answer_of(recorded.outcome)
        for transfer in recorded.transfers:
            assert sum(posting.amount for posting in transfer.postings) == 0
            for posting in transfer.postings:
                held[posting.account] += posting.amount
    lost = {key: answer for key, answer in acknowledged.items() if found.get(key) != answer}
    assert not lost, f"{len(lost)} acknowledged events are missing or different: {list(lost.items())[:3]}"
    gate = writer.core
    gate.check()
    for name in ACCOUNTS:
        balance = gate.state.book.balance(name, now_us=gate.state.now_us)
        assert balance is not None, name
        assert balance.held_uhs == held[f"cust/{name}/held"], "held is not the sum of the journal's holds"
        assert balance.free_uhs == held[f"cust/{name}/available"]


async def live(
    journal: Journal, pipe: int, seed: int, acknowledged: dict[str, list[object]], witnessed, *, last: bool
) -> None:
    async def carry_out(_instructions) -> None:
        pass

    writer = Writer(
        journal,
        restore=Gate.restore,
        clock=SteadyClock(),
        carry_out=carry_out,
        snapshot_every=SNAPSHOT_EVERY,
    )
    await writer.start()
    await writer.submit(OPENING)
    await check(writer, acknowledged, witnessed)
    say(pipe, "READY", writer.head.size, writer.head.root.hex())
    if last:
        auditor = Auditor(writer.journal, origin="crash.example", signing_key=bytes(32))
        report = verify_export([line.decode() async for line in auditor.export()], trusted_key=auditor.verifier_key)
        assert report.ok, report
        await writer.close()
        return
    dice = random.Random(seed)
    await asyncio.gather(
        *(client(writer, pipe, f"{seed}-{number}", random.Random(dice.random())) for number in range(CLIENTS))
    )


def born(store: Callable[[], Journal], seed: int, acknowledged, witnessed, *, last: bool) -> tuple[int, int]:
    """Fork a life: its pid, and the pipe it speaks through."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    try:
        os.close(ours)
        asyncio.run(live(store(), theirs, seed, acknowledged, witnessed, last=last))
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        say(theirs, "FAILED", repr(error))
        os._exit(1)


class Words:
    """What a life says, line by line, until its pipe closes."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe
        self.rest = b""
        self.closed = False

    def until(self, seconds: float, *, word: str = "") -> list[list]:
        """All that is said within a time, or until a word is; half a line is kept for later."""
        deadline = time.monotonic() + seconds
        said: list[list] = []
        while not self.closed and (wait := deadline - time.monotonic()) > 0:
            if not select.select([self.pipe], [], [], wait)[0]:
                break
            chunk = os.read(self.pipe, 1 << 16)
            self.closed = not chunk
            *whole, self.rest = (self.rest + chunk).split(b"\n")
            said += [json.loads(line) for line in whole]
            if any(one[0] == word for one in said):
                break
        return said


def store_of(directory: Path, name: str, *, dsn: str) -> Callable[[], Journal]:
    """How each life opens the journal of that name."""
    if dsn:
        return lambda: PostgresJournal(dsn, schema=f"crash_{name}")
    return lambda: SqliteJournal(directory / name / "journal.sqlite")


def main(*, directory: Path, lives: int, seed: int, dsn: str = "") -> dict[str, int]:
    dice = random.Random(seed)
    totals = {"lives": 0, "killed_starting": 0, "acknowledged": 0, "journals": 0}
    for first in range(0, lives, LIVES_A_JOURNAL):
        store = store_of(directory, f"{seed}_{first}", dsn=dsn)
        acknowledged: dict[str, list[object]] = {}
        witnessed = (0, "")
        count = min(LIVES_A_JOURNAL, lives - first)
        for number in range(count + 1):
            last = number == count
            pid, pipe = born(store, dice.getrandbits(32), acknowledged, witnessed, last=last)
            words = Words(pipe)
            early = not last and dice.random() < STARTUP_KILLS
            said = words.until(dice.uniform(0, 0.05)) if early else words.until(120, word="READY")
            if not last:
                said += words.until(dice.uniform(0, LOAD_S))
                os.kill(pid, signal.SIGKILL)
            said += words.until(60)
            os.close(pipe)
            os.waitpid(pid, 0)
            failed = [one for one in said if one[0] == "FAILED"]
            assert not failed, f"seed {seed}, life {first + number}: {failed}"
            assert early or any(one[0] == "READY" for one in said), (
                f"seed {seed}, life {first + number} never got ready"
            )
            acknowledged |= {one[1]: one[2] for one in said if one[0] == "ACK"}
            witnessed = next(((one[1], one[2]) for one in said if one[0] == "READY"), witnessed)
            totals["lives"] += not last
            totals["killed_starting"] += early
        totals["acknowledged"] += len(acknowledged)
        totals["journals"] += 1
    return totals


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--lives", type=int, default=100)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--dsn", default="", help="Of a PostgreSQL to keep the journals in, instead of files.")
    given = parser.parse_args()
    sys.stdout.write(json.dumps(main(directory=given.directory, lives=given.lives, seed=given.seed, dsn=given.dsn)))
