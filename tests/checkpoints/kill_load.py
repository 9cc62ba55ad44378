"""Lives of a job that saves without pause and is killed: at a random instant, or at a call to the disk or the bucket.

    kill_load.py WHERE --lives N --seed S        WHERE = a directory, or an endpoint's address and a bucket: URL/BUCKET

Each life is a process of its own, the next attempt of the same job: it claims, sweeps, loads, checks what it loaded, and
saves until it is killed. After each, another process looks at what is kept: every checkpoint that stands must be whole, and
the newest at least as new as the last that was acknowledged. Prints totals as JSON; the exit code is 1 at the first fault.
"""

import argparse
import json
import mmap
import os
import random
import signal
import sys
import time
from collections import Counter

from fabric.checkpoints import Checkpoints, DirectoryStore, S3Store, checkpoints, directory, retention
from fabric.storage.s3 import Place
from fabric.storage.s3_clients import S3Credentials

JOB = "jobs/acme/j-1/checkpoint"
STAGES = ("begin", "claim", "sweep", "load", "shards", "commit", "gc", "between")
SHARDS = 3
FROZEN = "frozen"
"""The same at every step: written once in a life, or taken over from an earlier one, and taken over from then on."""
OWN = S3Credentials(access_key_id="AKIA", secret_access_key="secret")


def opened(where):
    if not where.startswith("http"):
        return DirectoryStore(where)
    url, _, bucket = where.rpartition("/")
    return S3Store(Place(bucket=bucket, endpoint_url=url, region="us-east-1", credentials=OWN))


def content(step, shard):
    """What a shard of a step holds: 3 to 60 kB that only the two decide."""
    return random.Random(f"{step} {shard}").randbytes(3_000 + 19_000 * shard)


def life(where, epoch, stage, told, *, die_at):
    """Claim, sweep, load and save for ever; steps that are durable are told."""

    def at(name):
        stage[0] = STAGES.index(name)

    armed(where, die_at)
    mine = Checkpoints(opened(where), prefix=JOB, epoch=epoch, keep=2)
    clear = retention.clear

    def clearing(*args):
        if STAGES[stage[0]] == "commit":
            at("gc")
        clear(*args)

    checkpoints.retention.clear = clearing
    at("claim")
    mine.claim()
    at("sweep")
    mine.sweep()
    at("load")
    step, frozen = 0, None
    if (found := mine.load()) is not None:
        step = found[0].step
        assert found[1] == {f"s{shard}": content(step, shard) for shard in range(SHARDS)} | {FROZEN: content(0, 1)}
        frozen = found[0].shard(FROZEN) if epoch % 2 else None
    while True:
        step += 1
        at("shards")
        draft = mine.begin(step)
        for shard in range(SHARDS):
            draft.put(f"s{shard}", content(step, shard))
        part = draft.put(FROZEN, content(0, 1)) if frozen is None else draft.take(frozen)
        at("commit")
        mine.commit(draft)
        frozen = part
        os.write(told, step.to_bytes(8, "big"))
        at("between")


def armed(where, die_at):
    """Die at the nth call that changes something, in its middle where it has one."""
    if die_at is None:
        return
    left = [die_at]

    def point():
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def killing(original):
        def called(*args, **kwargs):
            point()
            result = original(*args, **kwargs)
            point()
            return result

        return called

    if where.startswith("http"):
        from botocore.httpsession import URLLib3Session

        URLLib3Session.send = killing(URLLib3Session.send)
        return

    write = directory._write_all

    def half_written(file, data):
        write(file, memoryview(data)[: len(data) // 2])
        point()
        write(file, memoryview(data)[len(data) // 2 :])

    directory._write_all = half_written
    directory._linked = killing(directory._linked)
    directory.shutil.rmtree = killing(directory.shutil.rmtree)
    for name in ("hardlink_to", "replace", "unlink", "mkdir"):
        setattr(directory.Path, name, killing(getattr(directory.Path, name)))
    directory.os.fsync = killing(directory.os.fsync)


def lived(where, epoch, dice, *, longest_s):
    """One life and its end: the stage it was killed in, and the last step it was told is durable."""
    stage, (ear, mouth) = mmap.mmap(-1, 1), os.pipe()
    die_at = dice.randrange(1, 60) if dice.random() < 0.5 else None
    wait_s = dice.uniform(0, longest_s)
    pid = os.fork()
    if pid == 0:
        os.close(ear)
        try:
            life(where, epoch, stage, mouth, die_at=die_at)
        except BaseException as error:  # noqa: BLE001
            sys.stderr.write(f"life {epoch}: {error!r}\n")
        os._exit(1)
    os.close(mouth)
    if die_at is None:
        time.sleep(wait_s)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    told = b""
    while chunk := os.read(ear, 65536):
        told += chunk
    os.close(ear)
    assert os.WIFSIGNALED(status), f"life {epoch} ended by itself: the reason is above"
    return STAGES[stage[0]], int.from_bytes(told[-8:], "big") if told else 0, len(told) // 8


def looked_at(store, least):
    """The newest step of what is kept.

    Raises:
        AssertionError: something that stands is torn, or what was acknowledged is not there.
    """
    reader = Checkpoints(store, prefix=JOB, epoch=10**7)
    for manifest in (standing := reader.ls()):
        reader.verify(manifest)
        for shard in manifest.shards:
            wanted = content(0, 1) if shard.name == FROZEN else content(manifest.step, int(shard.name[1:]))
            assert reader.read(manifest, shard.name) == wanted
    newest = reader.newest()
    assert reader.passed_over == ()
    assert reader.log.view().damaged == ()
    step = newest.step if newest else 0
    assert step >= least, f"step {least} was acknowledged, the newest is {step}"
    assert len(standing) <= 2
    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("where")
    parser.add_argument("--lives", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dice, stages, least, saves = random.Random(given.seed), Counter(), 0, 0
    store, longest_s = opened(given.where), 0.6 if given.where.startswith("http") else 0.06
    looked_at(store, 0)
    for epoch in range(1, given.lives + 1):
        stage, acknowledged, count = lived(given.where, epoch, dice, longest_s=longest_s)
        stages[stage] += 1
        saves += count
        least = looked_at(store, max(least, acknowledged))
    last = Checkpoints(store, prefix=JOB, epoch=given.lives + 1)
    last.claim()
    last.sweep()
    left = len(last.store.folders(f"{JOB}/data"))
    assert left <= 3, f"{left} drafts are left for 2 checkpoints"
    print(json.dumps({"lives": given.lives, "acknowledged": saves, "newest": least, "killed in": dict(stages)}))


if __name__ == "__main__":
    main()
