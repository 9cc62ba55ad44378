"""Attempts that run, sleep, wake as zombies, sweep and lose answers at the same time, in every order that chance finds.

What holds in each: a commit that began after a newer attempt's claim was answered never succeeds; what was acknowledged is
found whole, or something that came later; and no shard of a checkpoint that stands is ever deleted.
"""

import random
import sys
from dataclasses import dataclass, field

import pytest

from fabric.checkpoints import Checkpoints
from fabric.errors import CheckpointDamaged, Conflict, Unavailable
from tests.checkpoints.stepped import Director, MemoryStore

JOB = "jobs/acme/j-1/checkpoint"


@dataclass
class History:
    """What the actors were told, and when by the director's clock."""

    claims: list[tuple[int, int]] = field(default_factory=list)
    """(epoch, when it was answered)"""
    commits: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(epoch, slot, when it began, when it was answered)"""
    losses: list[str] = field(default_factory=list)


class Unfenced(Checkpoints):
    """A stand-in for the usual way: looks whether a newer attempt has begun, and then writes."""

    def commit(self, draft, **_):
        view = self.log.view()
        if view.claim is not None and view.claim.epoch > self.epoch:
            raise Conflict("looked, and was late", code="fenced")
        manifest = self._manifest(draft, draft.shards, slot=0, meta=None, world=1)
        slot = view.head + 1
        made = type(manifest)(**{**{n: getattr(manifest, n) for n in manifest.__struct_fields__}, "slot": slot})
        from fabric.checkpoints.records import encoded

        self.store.put(self.log.key(slot), encoded(made))
        return made


def an_attempt(director, store, history, *, epoch, kind, saves, sweeps, attempt_id):
    checkpoints = kind(store, prefix=JOB, epoch=epoch, attempt_id=attempt_id, keep=1 + epoch % 3)

    def act():
        try:
            checkpoints.claim()
            history.claims.append((epoch, director.clock))
            if kind is Checkpoints:
                checkpoints.load()
        except (Conflict, Unavailable):
            return
        except CheckpointDamaged as error:
            history.losses.append(f"attempt {epoch} found nothing whole: {error}")
            return
        for step in range(saves):
            began = director.clock
            draft = checkpoints.begin(epoch * 100 + step)
            try:
                draft.put("state", f"{epoch} {step} {attempt_id}".encode())
                made = checkpoints.commit(draft)
            except Unavailable:
                checkpoints.abandon(draft)
                continue
            except Conflict:
                checkpoints.abandon(draft)
                return
            history.commits.append((epoch, made.slot, began, director.clock))
            if sweeps:
                checkpoints.sweep()

    return act


def a_history(seed, *, kind=Checkpoints):
    """Play one; what was found wrong in it."""
    director, dice, history = Director(seed), random.Random(f"{seed} actors"), History()
    store = MemoryStore(director)
    actors = {}
    for number in range(dice.randrange(2, 5)):
        epoch = number + 1 if dice.random() < 0.8 else max(1, number)
        for rank in range(1 if dice.random() < 0.7 else 2):
            actors[f"{number}.{rank}"] = an_attempt(
                director, store, history, epoch=epoch, kind=kind, saves=dice.randrange(1, 5),
                sweeps=dice.random() < 0.5, attempt_id=f"attempt-{number}",
            )  # fmt: skip
    if dice.random() < 0.3:
        actors["sweeper"] = lambda: [Checkpoints(store, prefix=JOB, epoch=99).sweep() for _ in range(4)]
    director.play(actors)
    store.director = None
    return wrongs(store, history)


def wrongs(store, history):
    found = list(history.losses)
    for epoch, slot, began, _ in history.commits:
        fencing = [other for other, answered in history.claims if other > epoch and answered < began]
        if fencing:
            found.append(f"zombie: attempt {epoch} committed slot {slot} after attempt {fencing[0]} had claimed")
    if history.commits:
        reader = Checkpoints(store, prefix=JOB, epoch=1000)
        standing = reader.ls()
        for manifest in standing[:1]:
            try:
                reader.verify(manifest)
            except CheckpointDamaged as error:
                found.append(f"lost: the newest is not whole: {error}")
        last = max(slot for _, slot, _, _ in history.commits)
        if not standing or standing[0].slot < last:
            found.append(f"lost: slot {last} was acknowledged, the newest is {standing[0].slot if standing else None}")
    if len({slot for _, slot, _, _ in history.commits}) < len(history.commits):
        found.append("lost: two commits were given the same slot")
    return found


def play(seeds, *, kind=Checkpoints):
    return {seed: found for seed in seeds if (found := a_history(seed, kind=kind))}


def test_in_no_interleaving_does_a_zombie_commit_or_a_commit_get_lost():
    seed = random.SystemRandom().getrandbits(32)
    sys.stdout.write(f"seeds from {seed}\n")
    assert play(range(seed, seed + 250)) == {}


@pytest.mark.soak
def test_in_no_interleaving_of_many_does_a_zombie_commit_or_a_commit_get_lost():
    seed = random.SystemRandom().getrandbits(32)
    sys.stdout.write(f"seeds from {seed}\n")
    assert play(range(seed, seed + 20_000)) == {}


def test_without_fencing_zombies_do_commit_and_commits_do_get_lost():
    found = [said for all_said in play(range(250), kind=Unfenced).values() for said in all_said]
    zombies, lost = (sum(said.startswith(kind) for said in found) for kind in ("zombie", "lost"))
    sys.stdout.write(f"look, then write: {zombies} zombie commits, {lost} losses in 250 histories\n")
    assert lost > 0
