"""What was committed is found whole by whoever comes next, in a directory and in a bucket alike."""

import threading

import msgspec
import pytest

from fabric.checkpoints import Checkpoints, DirectoryStore
from fabric.checkpoints.records import FORMAT, Manifest, decoded, encoded
from fabric.errors import CheckpointDamaged, Conflict, InvalidRequest, NotFound, PermissionDenied

JOB = "jobs/acme/j-1/checkpoint"


def steps(checkpoints):
    return [manifest.step for manifest in checkpoints.ls()]


def test_nothing_saved_is_nothing_found(attempt):
    assert attempt().load() is None
    assert attempt().newest() is None
    assert attempt().ls() == ()


def test_a_newer_attempt_finds_every_shard_of_every_rank(attempt):
    first = attempt(attempt_id="a")
    first.claim()
    draft = first.begin(7, token="t")
    draft.put("rank-0/model", b"zero")
    other = attempt(attempt_id="a").begin(7, token="t")
    other.put("rank-1/model", bytearray(b"one"))
    first.commit(draft, shards=other.shards, world=2, meta={"cursor": [1, 2], "kinds": ("H100",)})
    manifest, shards = attempt(2).load()
    assert shards == {"rank-0/model": b"zero", "rank-1/model": b"one"}
    assert (manifest.step, manifest.world, manifest.bytes) == (7, 2, 7)
    assert manifest.meta == {"cursor": [1, 2], "kinds": ["H100"]}


def test_a_draft_that_was_not_committed_does_not_exist(attempt, save):
    first = attempt()
    save(first, 1)
    first.begin(2).put("state", b"half")
    assert steps(attempt(2)) == [1]


def test_shards_may_be_files_and_are_read_back_as_files(attempt, tmp_path):
    (tmp_path / "in").write_bytes(b"x" * 10_000)
    first = attempt()
    draft = first.begin(1)
    draft.put("file", tmp_path / "in")
    manifest = first.commit(draft)
    first.fetch(manifest, "file", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"x" * 10_000


def test_an_older_attempt_commits_nothing_once_a_newer_one_has_claimed(attempt, save):
    old, new = attempt(1), attempt(2)
    save(old, 0)
    save(old, 1)
    new.claim()
    with pytest.raises(Conflict) as raised:
        save(old, 2)
    assert (raised.value.code, raised.value.facts["epoch"]) == ("fenced", 1)
    with pytest.raises(Conflict):
        attempt(1).claim()
    with pytest.raises(Conflict):
        old.retain(keep=1)
    assert steps(new) == [1, 0]


def test_another_rank_of_the_attempt_may_commit_in_the_place_of_a_dead_one_for_good(attempt, save):
    first, survivor = attempt(1, attempt_id="lease-1", keep=9), attempt(1, attempt_id="lease-1", keep=9)
    for step in range(3):
        save(first, step)
    save(survivor, 3)
    save(survivor, 4)
    with pytest.raises(Conflict):
        save(first, 3)
    first.claim()
    with pytest.raises(Conflict):
        save(first, 3)
    assert steps(attempt(2)) == [4, 3, 2, 1, 0]


def test_no_rank_goes_on_after_its_attempt_was_rolled_back(attempt, save):
    first, survivor = attempt(1, attempt_id="lease-1"), attempt(1, attempt_id="lease-1")
    save(first, 1)
    attempt(1).rollback(1)
    with pytest.raises(Conflict):
        save(survivor, 2)


def test_of_two_resumes_that_race_exactly_one_wins(attempt, save):
    save(attempt(1), 1)
    racers, gate, ends = [attempt(2) for _ in range(6)], threading.Barrier(6), []

    def race(racer):
        gate.wait()
        try:
            racer.claim()
            ends.append("won")
        except Conflict as error:
            ends.append(error.code)

    threads = [threading.Thread(target=race, args=(racer,)) for racer in racers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["already_claimed"] * 5 + ["won"]
    winners = [racer for racer in racers if racer._claimed]
    save(winners[0], 2)
    assert steps(attempt(3)) == [2, 1]


def test_attempts_that_end_before_they_save_leave_nothing_to_read(attempt, save, store):
    save(attempt(1), 1)
    for epoch in range(2, 12):
        attempt(epoch).claim()
    assert len(store.keys(f"{JOB}/log")) == 2
    assert attempt(12).load()[1] == {"state": b"state 1"}


def test_without_an_epoch_the_next_one_is_taken(store, save):
    for step in range(3):
        save(Checkpoints(store, prefix=JOB), step)
    assert [(found.step, found.epoch) for found in Checkpoints(store, prefix=JOB).ls()] == [(2, 3), (1, 2)]


@pytest.mark.parametrize("damage", [b"", b"state 2!", b"statE 2", None])
def test_a_damaged_one_is_named_and_passed_over_for_the_one_before(attempt, save, store, damage):
    first = attempt()
    save(first, 1)
    key = f"{JOB}/{save(first, 2).shards[0].key}"
    store.delete(key) if damage is None else store.put(key, damage)
    second = attempt(2)
    assert second.newest().step == 1
    assert second.load()[1] == {"state": b"state 1"}
    assert "step 2" in second.passed_over[0]


def test_a_damaged_manifest_is_passed_over_too(attempt, save, store):
    first = attempt()
    save(first, 1)
    slot = save(first, 2).slot
    store.put(first.log.key(slot), store.get(first.log.key(slot)).replace(b'"step":2', b'"step":3'))
    assert attempt(2).newest().step == 1
    assert save(attempt(2), 3).step == 3


def test_when_none_is_whole_nobody_begins_anew_by_accident(attempt, save, store):
    first = attempt()
    store.put(f"{JOB}/{save(first, 1).shards[0].key}", b"")
    with pytest.raises(CheckpointDamaged) as raised:
        attempt(2).newest()
    assert raised.value.code == "no_good_checkpoint"


def test_a_checkpoint_of_another_model_is_refused_and_both_are_named(attempt, save):
    save(attempt(1, model="llama-8b"), 1)
    with pytest.raises(Conflict, match="llama-8b.*qwen-4b") as raised:  # noqa: RUF043
        attempt(2, model="qwen-4b").load()
    assert raised.value.code == "checkpoint_of_another_model"
    assert attempt(2).load() is not None


def test_a_checkpoint_of_another_version_is_refused_and_both_are_named(attempt, save, store):
    first = attempt()
    manifest = save(first, 1)
    later = msgspec.structs.replace(manifest, format=FORMAT + 1)
    store.put(first.log.key(manifest.slot), encoded(later))
    with pytest.raises(Conflict, match=f"format {FORMAT + 1}, this .* format {FORMAT}") as raised:
        attempt(2).newest()
    assert raised.value.code == "checkpoint_version"


def test_the_newest_stay_and_multiples_of_every_besides(attempt, save, store):
    first = attempt(keep=2, every=10)
    for step in range(0, 40, 5):
        save(first, step)
    assert steps(first) == [35, 30, 20, 10, 0]
    assert len(store.folders(f"{JOB}/data")) == 5
    assert [found.step for found in first.retain(keep=1)] == [30, 20, 10, 0]
    assert steps(attempt(2)) == [35]
    assert len(store.folders(f"{JOB}/data")) == 1
    first.verify(first.newest())


def test_rolling_back_makes_an_older_one_the_newest_and_fences_whoever_runs(attempt, save):
    first = attempt(keep=5)
    for step in range(4):
        save(first, step)
    made = attempt(1).rollback(1)
    assert made.origin == "rollback to step 1"
    assert steps(attempt(2)) == [1, 0]
    with pytest.raises(Conflict):
        save(first, 4)
    second = attempt(2, keep=5)
    assert second.load()[1] == {"state": b"state 1"}
    save(second, 2, state=b"another 2")
    assert steps(attempt(3)) == [2, 1, 0]
    assert second.newest().step == 2
    with pytest.raises(NotFound, match="it has 2, 1, 0"):
        second.rollback(9)


def test_a_damaged_checkpoint_is_not_rolled_back_to(attempt, save, store):
    first = attempt(keep=5)
    store.put(f"{JOB}/{save(first, 1).shards[0].key}", b"")
    save(first, 2)
    with pytest.raises(CheckpointDamaged):
        attempt(1).rollback(1)
    assert first.newest().step == 2


def test_a_fork_begins_another_job_and_outlives_the_first(attempt, save, store):
    first = attempt(keep=3)
    for step in range(3):
        save(first, step)
    to = "jobs/acme/j-2/checkpoint"
    assert first.fork(to, step=1).origin == f"fork of step 1 of {JOB}"
    store.delete_folder("jobs/acme/j-1")
    fork = Checkpoints(store, prefix=to, epoch=1)
    assert fork.load()[1] == {"state": b"state 1"}
    save(fork, 2)
    assert steps(Checkpoints(store, prefix=to, epoch=2)) == [2, 1]


def test_a_fork_never_goes_over_another_jobs_checkpoints(attempt, save, store):
    save(Checkpoints(store, prefix="jobs/acme/j-2/checkpoint"), 5)
    save(attempt(), 1)
    with pytest.raises(Conflict) as raised:
        attempt().fork("jobs/acme/j-2/checkpoint")
    assert raised.value.code == "fork_target_in_use"
    assert len(store.folders("jobs/acme/j-2/checkpoint/data")) == 1


@pytest.mark.parametrize("to", ["jobs/rival/j-2/checkpoint", "jobs/acme2/j", "jobs/acme", "other"])
def test_no_prefix_leaves_its_tenant(attempt, save, store, to):
    mine = attempt(tenant="jobs/acme")
    save(mine, 1)
    with pytest.raises(PermissionDenied):
        mine.fork(to)
    with pytest.raises(PermissionDenied):
        Checkpoints(store, prefix=to, tenant="jobs/acme")


@pytest.mark.parametrize(
    "name", ["../../../rival/j/checkpoint/log/0000000001", "/etc/passwd", "a//b", ".hidden", "", "a/../b"]
)
def test_no_shard_leaves_its_draft(attempt, name):
    with pytest.raises(InvalidRequest):
        attempt().begin(1).put(name, b"")
    with pytest.raises(InvalidRequest):
        attempt().fork("jobs/acme/../rival/j")


def test_a_link_that_a_job_plants_leads_nowhere(tmp_path):
    store = DirectoryStore(tmp_path / "store")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"secret")
    store.put("jobs/acme/x", b"")
    (tmp_path / "store" / "jobs" / "acme" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "store" / "jobs" / "acme" / "key").symlink_to(tmp_path / "secret" / "key")
    for attempt_ in (lambda: store.get("jobs/acme/out/key"), lambda: store.put("jobs/acme/out/new", b"")):
        with pytest.raises(InvalidRequest):
            attempt_()
    with pytest.raises(Exception, match="can't be read"):
        store.get("jobs/acme/key")
    store.delete_folder("jobs/acme")
    assert (tmp_path / "secret" / "key").read_bytes() == b"secret"


def test_sweeping_takes_what_ended_attempts_left_and_nothing_else(attempt, save, store):
    old = attempt(1)
    save(old, 1)
    old.begin(2).put("state", b"orphan")
    assert attempt(1).sweep() == (), "its attempt may still be running"
    new = attempt(2)
    new.claim()
    running = new.begin(3)
    running.put("state", b"running")
    late = old.begin(3)
    late.put("state", b"zombie")
    assert len(attempt(2).sweep()) == 2
    new.commit(running)
    assert steps(attempt(3)) == [3, 1]
    assert attempt(3).load()[1] == {"state": b"running"}
    attempt(3).verify(attempt(3).ls()[1])


def test_the_first_commit_of_an_attempt_sweeps_what_earlier_ones_left(attempt, save, store):
    old = attempt(1)
    save(old, 1)
    old.begin(2).put("state", b"orphan")
    new = attempt(2, keep=1)
    assert len(store.folders(f"{JOB}/data")) == 2
    kept = save(new, 3)
    assert store.folders(f"{JOB}/data") == [kept.draft]


def test_an_abandoned_draft_leaves_nothing(attempt, store):
    first = attempt()
    draft = first.begin(1)
    draft.put("state", b"x")
    first.abandon(draft)
    assert store.keys(f"{JOB}/data") == []


@pytest.mark.parametrize(
    "meta", [{"x": object()}, {"x": {1, 2}}, {"x": [2**64]}, {"x": float("nan")}, {1: 2}, {"x": {1: 2}}, {"x": b""}]
)
def test_meta_that_is_not_json_is_refused(attempt, meta):
    first = attempt()
    draft = first.begin(1)
    draft.put("state", b"x")
    with pytest.raises(InvalidRequest) as raised:
        first.commit(draft, meta=meta)
    assert raised.value.code == "meta_invalid"
    assert attempt(2).newest() is None


def test_a_checkpoint_without_shards_or_with_one_twice_is_refused(attempt):
    first = attempt()
    with pytest.raises(InvalidRequest):
        first.commit(first.begin(1))
    draft = first.begin(1)
    draft.put("a", b"")
    with pytest.raises(Conflict):
        draft.put("a", b"")
    with pytest.raises(InvalidRequest, match="it has a"):
        first.commit(draft).shard("b")


def test_two_ranks_that_put_the_same_name_are_told_and_nothing_is_committed(attempt):
    ranks = [attempt(1, attempt_id="a") for _ in range(2)]
    drafts = [rank.begin(1, token="t") for rank in ranks]
    for number, draft in enumerate(drafts):
        draft.put("model", f"rank {number}".encode())
    with pytest.raises(InvalidRequest, match="each name once") as raised:
        ranks[0].commit(drafts[0], shards=drafts[1].shards, world=2)
    assert raised.value.code == "shards_invalid"
    assert attempt(2).newest() is None


@pytest.mark.parametrize("policy", [{"keep": 0}, {"every": -1}, {"keep": -2}])
def test_a_policy_that_keeps_nothing_is_refused(attempt, policy):
    with pytest.raises(InvalidRequest):
        attempt(**policy)
    with pytest.raises(InvalidRequest):
        attempt().retain(**policy)


@pytest.mark.parametrize("step", [-1, 2**63])
def test_a_step_that_is_no_count_is_refused(attempt, step):
    with pytest.raises(OverflowError):
        attempt().begin(step)


def test_a_record_is_read_back_where_it_was_written_and_nowhere_else():
    manifest = Manifest(prefix=JOB, slot=3, epoch=1, attempt="a", writer="w", step=1, draft="d", shards=())
    assert decoded(encoded(manifest), prefix=JOB, slot=3) == manifest
    for prefix, slot in ((JOB, 4), ("jobs/acme/j-2/checkpoint", 3)):
        with pytest.raises(CheckpointDamaged):
            decoded(encoded(manifest), prefix=prefix, slot=slot)


def test_every_durable_checkpoint_is_told_once(attempt, save):
    told = []
    first = attempt(on_durable=lambda manifest, took_us: told.append((manifest.step, took_us >= 0)))
    for step in range(3):
        save(first, step)
    assert told == [(0, True), (1, True), (2, True)]
