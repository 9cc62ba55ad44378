"""Whatever happens to whichever byte that is kept, what is loaded is what was saved, and the damage is named."""

import random
import sys

import msgspec
import pytest

from fabric.checkpoints import Checkpoints, DirectoryStore, near_store
from fabric.checkpoints.near import forget_old
from fabric.checkpoints.records import decoded, encoded
from fabric.errors import CheckpointDamaged, NotFound
from tests.checkpoints.stepped import MemoryStore

JOB = "jobs/acme/j-1/checkpoint"
OTHER = "jobs/acme/j-2/checkpoint"


def kept_by(store, prefix, *, seed):
    """Two attempts' checkpoints; what each was of, by step."""
    dice, states = random.Random(seed), {}
    for epoch in (1, 2):
        checkpoints = Checkpoints(store, prefix=prefix, epoch=epoch, keep=3)
        for step in (epoch * 10, epoch * 10 + 1):
            draft = checkpoints.begin(step)
            states[step] = {"model": dice.randbytes(3000), "opt/0": dice.randbytes(40), "empty": b""}
            for name, data in states[step].items():
                draft.put(name, data)
            checkpoints.commit(draft, meta={"cursor": step})
    return states


def flip(dice, values, key):
    data = bytearray(values[key]) or bytearray(1)
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    values[key] = bytes(data)


def truncate(dice, values, key):
    values[key] = values[key][: dice.randrange(len(values[key]))] if values[key] else b"x"


def extend(dice, values, key):
    values[key] += dice.randbytes(dice.randrange(1, 9))


def swap(dice, values, key):
    other = dice.choice(sorted(each for each in values if values[each] != values[key]))
    values[key], values[other] = values[other], values[key]


def zero(dice, values, key):
    length = len(values[key])
    values[key] = bytes(length) if any(values[key]) else b"\1" * (length or 1)


def lose(dice, values, key):
    del values[key]


DAMAGES = [flip] * 5 + [truncate, extend, swap, zero, lose]


def named(store, prefix, key):
    """Whether a reader who looks at everything finds that this key's value is not what was written."""
    reader = Checkpoints(store, prefix=prefix, epoch=9)
    if "/log/" in key:
        slot = int(key.rpartition("/")[2])
        try:
            decoded(store.get(key), prefix=prefix, slot=slot)
        except (CheckpointDamaged, NotFound):
            return True
        return False
    for manifest in reader.ls():
        if any(key == f"{prefix}/{shard.key}" for shard in manifest.shards):
            try:
                reader.verify(manifest)
            except CheckpointDamaged:
                return True
            return False
    return reader.log.view().damaged != ()  # its manifest is what was swapped with it


def all_damage_is_found(count, *, seed):
    dice, store = random.Random(seed), MemoryStore()
    states = {prefix: kept_by(store, prefix, seed=f"{seed} {prefix}") for prefix in (JOB, OTHER)}
    whole, found = dict(store.values), 0
    for number in range(count):
        store.values = dict(whole)
        key, damage = dice.choice(sorted(whole)), dice.choice(DAMAGES)
        damage(dice, store.values, key)
        assert store.values != whole
        touched = [each for each in whole if store.values.get(each) != whole[each]]
        for each in touched:
            assert named(store, JOB if each.startswith(JOB) else OTHER, each), f"seed {seed}, number {number}: {each}"
            found += 1
        for prefix in (JOB, OTHER):
            manifest, shards = Checkpoints(store, prefix=prefix, epoch=9).load()
            assert shards == states[prefix][manifest.step], f"seed {seed}, number {number}"
            assert manifest.meta == {"cursor": manifest.step}
    return found


def test_five_hundred_damages_of_any_kept_byte_are_all_found():
    seed = random.SystemRandom().getrandbits(32)
    found = all_damage_is_found(500, seed=seed)
    sys.stdout.write(f"seed {seed}: {found} of {found} damaged values found, none loaded\n")


@pytest.mark.soak
def test_ten_thousand_damages_of_any_kept_byte_are_all_found():
    seed = random.SystemRandom().getrandbits(32)
    found = all_damage_is_found(10_000, seed=seed)
    sys.stdout.write(f"seed {seed}: {found} of {found} damaged values found, none loaded\n")


def test_every_single_bit_of_a_record_matters():
    store = MemoryStore()
    kept_by(store, JOB, seed=1)
    for key in store.keys(f"{JOB}/log"):
        whole = store.values[key]
        for bit in range(len(whole) * 8):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CheckpointDamaged):
                decoded(bytes(damaged), prefix=JOB, slot=int(key.rpartition("/")[2]))


def test_a_near_copy_that_is_damaged_or_gone_is_no_copy(tmp_path):
    store, local = DirectoryStore(tmp_path / "store"), DirectoryStore(tmp_path / "near", durable=False)
    checkpoints = Checkpoints(store, prefix=JOB, local=local)
    draft = checkpoints.begin(1)
    draft.put("state", b"state")
    manifest = checkpoints.commit(draft)
    key = f"{JOB}/{manifest.shards[0].key}"
    store.put(key, b"stale")
    assert checkpoints.read(manifest, "state") == b"state", "the near copy is whole, so it is read"
    checkpoints.fetch(manifest, "state", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"state"
    store.put(key, b"state")
    for damage in (b"statE", None):
        local.put(key, damage) if damage else local.delete(key)
        assert checkpoints.read(manifest, "state") == b"state"
        checkpoints.fetch(manifest, "state", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"state"


def test_what_was_staged_and_then_damaged_is_never_made_durable(tmp_path):
    store, local = DirectoryStore(tmp_path / "store"), DirectoryStore(tmp_path / "near", durable=False)
    first = Checkpoints(store, prefix=JOB, local=local, epoch=1)
    draft = first.begin(1)
    draft.put("state", b"state")
    staged = first.stage(draft)
    local.put(f"{JOB}/{staged.shards[0].key}", b"statE")
    second = Checkpoints(store, prefix=JOB, local=local, epoch=2)
    assert second.staged() is None
    with pytest.raises(CheckpointDamaged):
        second.commit_staged(staged)
    assert second.newest() is None


def test_what_a_dead_process_staged_is_made_durable_by_the_next_if_nothing_newer_is(tmp_path):
    store, local = DirectoryStore(tmp_path / "store"), DirectoryStore(tmp_path / "near", durable=False)
    first = Checkpoints(store, prefix=JOB, local=local, epoch=1)
    for step in (1, 2):
        draft = first.begin(step)
        draft.put("state", f"state {step}".encode())
        first.commit(draft) if step == 1 else first.stage(draft, meta={"cursor": 2})
    assert first.newest().step == 1, "what is staged is not durable"
    second = Checkpoints(store, prefix=JOB, local=local, epoch=2)
    second.claim()
    staged = second.staged()
    assert (staged.step, second.commit_staged(staged).step, second.newest().step) == (2, 2, 2)
    assert second.load()[1] == {"state": b"state 2"}
    assert second.staged() is None
    third = Checkpoints(store, prefix=JOB, local=local, epoch=3)
    draft = third.begin(3)
    draft.put("state", b"three")
    third.stage(draft)
    elsewhere = Checkpoints(store, prefix=JOB, epoch=4)
    later = elsewhere.begin(4)
    later.put("state", b"four")
    elsewhere.commit(later)
    assert Checkpoints(store, prefix=JOB, local=local, epoch=5).staged() is None, "something newer is durable"


def test_ranks_that_did_not_commit_drop_their_older_near_copies(tmp_path):
    store = DirectoryStore(tmp_path / "store")
    near = [DirectoryStore(tmp_path / f"near-{rank}", durable=False) for rank in (0, 1)]
    ranks = [Checkpoints(store, prefix=JOB, local=near[rank], epoch=1, attempt_id="a") for rank in (0, 1)]
    for step in range(3):
        drafts = [rank.begin(step, token=f"save-{step}") for rank in ranks]
        for rank, draft in enumerate(drafts):
            draft.put(f"rank-{rank}", f"{rank} {step}".encode())
        drafts[1].upload()
        manifest = ranks[0].commit(drafts[0], shards=drafts[1].shards, world=2)
        ranks[1].settled(manifest)
        assert [store.folders(f"{JOB}/data") for store in near] == [[manifest.draft], [manifest.draft]]
    assert ranks[1].load()[1] == {"rank-0": b"0 2", "rank-1": b"1 2"}


@pytest.fixture
def _room(monkeypatch):
    """However full this machine's disk is."""
    monkeypatch.setattr("fabric.checkpoints.near.LEAVE_FREE", 0.0)


class Dying(DirectoryStore):
    """A stand-in for a store whose writer is killed before it has sent anything."""

    def put_file(self, key, path):
        raise KeyboardInterrupt


@pytest.mark.usefixtures("_room")
def test_a_process_that_dies_while_it_sends_loses_nothing_if_its_node_lives(tmp_path, save):
    near = near_store(tmp_path / "near")
    first = Checkpoints(Dying(tmp_path / "store"), prefix=JOB, local=near, epoch=1)
    with pytest.raises(KeyboardInterrupt):
        save(first, 7)
    store = DirectoryStore(tmp_path / "store")
    elsewhere = Checkpoints(store, prefix=JOB, local=near_store(tmp_path / "elsewhere"), epoch=1)
    assert elsewhere.newest() is None
    told = []
    second = Checkpoints(
        store,
        prefix=JOB,
        local=near_store(tmp_path / "near"),
        epoch=2,
        on_durable=lambda found, _: told.append(found.step),
    )
    assert second.recover().step == 7
    assert told == [7]
    assert Checkpoints(store, prefix=JOB, epoch=3).load()[1] == {"state": b"state 7"}
    assert second.recover() is None
    second.forget_near()
    assert near.keys("jobs") == []


def test_what_does_not_fit_near_goes_to_the_store_at_once(tmp_path, save):
    near = DirectoryStore(tmp_path / "near", durable=False, leave_free=1.0)
    store = DirectoryStore(tmp_path / "store")
    save(Checkpoints(store, prefix=JOB, local=near), 1)
    assert near.keys("jobs") == []
    assert Checkpoints(store, prefix=JOB).load()[1] == {"state": b"state 1"}


@pytest.mark.usefixtures("_room")
def test_near_copies_that_nobody_came_back_for_are_forgotten(tmp_path, save):
    near = near_store(tmp_path / "near")
    first = Checkpoints(DirectoryStore(tmp_path / "store"), prefix=JOB, local=near)
    save(first, 1)
    near_store(tmp_path / "near")
    assert len(near.folders(f"{JOB}/data")) == 1
    forget_old(tmp_path / "near", older_than_s=-1.0)
    assert near.folders(f"{JOB}/data") == []
    assert first.load()[1] == {"state": b"state 1"}


IMPOSSIBLE = [
    {"step": -1}, {"step": 2**63}, {"step": 10**40}, {"size": -1}, {"size": 2**63}, {"size": 10**40}, {"size": 2**62, "count": 2},
]  # fmt: skip


@pytest.mark.parametrize("said", IMPOSSIBLE)
def test_a_record_of_what_can_not_be_is_damaged_and_the_one_before_stands(said):
    """A job's own process can write it: a size below nothing would give its account room in the archive, and a number too large
    spoils what it is shown in.
    """
    store = MemoryStore()
    kept_by(store, JOB, seed=1)
    good = Checkpoints(store, prefix=JOB, epoch=3).newest()
    slot = good.slot + 1
    shard = msgspec.structs.replace(good.shards[0], size=said.get("size", good.shards[0].size))
    bad = msgspec.structs.replace(
        good, slot=slot, step=said.get("step", good.step), shards=(shard,) * said.get("count", 1)
    )
    store.put(Checkpoints(store, prefix=JOB, epoch=3).log.key(slot), encoded(bad))
    reader = Checkpoints(store, prefix=JOB, epoch=4)
    assert reader.newest() == good
    assert all(0 <= found.bytes < 2**63 and 0 <= found.step < 2**63 for found in reader.ls())
    with pytest.raises(CheckpointDamaged):
        decoded(encoded(bad), prefix=JOB, slot=slot)
