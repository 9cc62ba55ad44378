"""The node's cache: each shard fetched once whoever asks, never stale, never over its limit, never gone under a job's hands."""

import multiprocessing
import threading
import time
from pathlib import Path

import boto3
import pytest

from fabric import context
from fabric.errors import InvalidRequest, NotFound, Unavailable
from fabric.node.agent import _holdings
from fabric.storage.shard_cache import ShardCache
from fabric.storage.shard_sources import source_of

KB = 1024


class Store:
    """Where shards come from; counts how often."""

    def __init__(self, root):
        self.root, self.fetched = root, []
        root.mkdir()

    def put(self, name, size=KB, fill=b"x"):
        (self.root / name).write_bytes(fill * size)
        return f"file://{self.root / name}"

    def source(self, address):
        name, fetch = source_of(address)

        def counted(to):
            self.fetched.append(address)
            fetch(to)

        return name, counted


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache", limit_bytes=10 * KB)


def get(cache, store, address, tmp_path, job="job"):
    return cache.get(*store.source(address), prefix="p", to=tmp_path / job / Path(address).name)


def test_the_second_job_gets_what_the_first_fetched_and_is_told_what_that_saved(cache, store, tmp_path):
    address = store.put("a")
    first, second = (get(cache, store, address, tmp_path, job) for job in ("one", "two"))
    assert (first.hit, second.hit, len(store.fetched)) == (False, True, 1)
    assert second.saved_us >= 0
    assert first.path.read_bytes() == second.path.read_bytes() == b"x" * KB
    assert cache.holdings()[0] == {"p": KB}


def test_a_shard_that_changed_is_another_shard(cache, store, tmp_path):
    address = store.put("a")
    get(cache, store, address, tmp_path)
    time.sleep(0.01)
    store.put("a", fill=b"y")
    assert get(cache, store, address, tmp_path).path.read_bytes() == b"y" * KB


def test_what_was_used_longest_ago_goes_first_and_the_limit_holds(cache, store, tmp_path):
    addresses = [store.put(f"s{at}", 4 * KB) for at in range(3)]
    for at, address in enumerate((addresses[0], addresses[1], addresses[0], addresses[2])):
        got = get(cache, store, address, tmp_path, f"job{at}")
        assert got.path.exists()
        assert sum(cache.holdings()[0].values()) <= 10 * KB
        time.sleep(0.01)
    assert not get(cache, store, addresses[1], tmp_path, "late").hit, "it was used longest ago"


def test_what_leaves_the_cache_stays_with_the_job_that_has_it(cache, store, tmp_path):
    mine = get(cache, store, store.put("mine", 8 * KB, b"m"), tmp_path)
    get(cache, store, store.put("other", 8 * KB), tmp_path, "other")
    assert cache.holdings()[0] == {"p": 8 * KB}
    assert mine.path.read_bytes() == b"m" * 8 * KB


def test_a_shard_torn_by_a_crash_is_fetched_again(cache, store, tmp_path):
    address = store.put("a")
    get(cache, store, address, tmp_path)
    (shard,) = (cache.root / "shards").iterdir()
    shard.write_bytes(b"x")
    assert get(cache, store, address, tmp_path, "two").path.read_bytes() == b"x" * KB


def test_a_fetch_that_fails_leaves_nothing_behind(cache, store, tmp_path):
    def half(to):
        to.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(Unavailable, match="No space left"):
        cache.get("n", half, prefix="p", to=tmp_path / "n")
    assert list((cache.root / "shards").iterdir()) == list((cache.root / "drafts").iterdir()) == []
    assert not get(cache, store, store.put("a"), tmp_path).hit


def _get_in_another_process(root, address, to, queue):
    fetched = []
    name, fetch = source_of(address)

    def slow(path):
        fetched.append(1)
        time.sleep(0.3)
        fetch(path)

    ShardCache(root).get(name, slow, prefix="p", to=to)
    queue.put(len(fetched))


def test_processes_that_want_the_same_shard_at_once_fetch_it_once(cache, store, tmp_path):
    address, queue = store.put("a"), multiprocessing.get_context("spawn").Queue()
    processes = [
        multiprocessing.get_context("spawn").Process(
            target=_get_in_another_process, args=(cache.root, address, tmp_path / str(at), queue)
        )
        for at in range(3)
    ]
    for process in processes:
        process.start()
    assert sum(queue.get(timeout=60) for _ in processes) == 1
    for process in processes:
        process.join()


def test_a_job_reads_by_address_counts_it_to_its_dataset_and_tells_what_it_saved(cache, store, tmp_path):
    address = store.put("a")
    prefix = address.rpartition("/")[0] + "/"
    for at in range(2):
        place = context.Place(job_id=f"j{at}")
        here = context.Context(place, cache=cache, prefixes=("file:///", prefix), folder=tmp_path / f"job{at}")
        assert here.fetch(address).read_bytes() == b"x" * KB
        assert here.fetch(address) == here.fetch(address)
        assert here.progress.timers["staging_saved"] >= 0
    assert cache.holdings()[0] == {prefix: KB}


def test_outside_the_fabric_the_same_call_just_reads(store):
    address = store.put("a")
    assert context.current().fetch(address).read_bytes() == b"x" * KB


def test_a_machine_tells_what_its_accounts_hold_together_and_roughly(tmp_path, store):
    for account in ("acme", "globex"):
        cache = ShardCache(tmp_path / "cache" / account)
        cache.get(*store.source(store.put("big", 3 * 2**20 + 5)), prefix="p", to=tmp_path / account)
    found = _holdings(tmp_path)
    assert found.bytes_by_prefix == {"p": 6 * 2**20}
    assert found.rate_bytes_per_s > 0
    assert len(str(found.rate_bytes_per_s).rstrip("0")) <= 2


@pytest.fixture
def bucket(moto_url):
    s3 = boto3.client(
        "s3", endpoint_url=moto_url, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    s3.create_bucket(Bucket="data")
    return s3


def test_objects_are_named_by_their_etag(bucket, cache, tmp_path):
    bucket.put_object(Bucket="data", Key="set/one", Body=b"first")
    name, fetch = source_of("s3://data/set/one", s3=bucket)
    assert cache.get(name, fetch, prefix="p", to=tmp_path / "one").path.read_bytes() == b"first"
    bucket.put_object(Bucket="data", Key="set/one", Body=b"second")
    changed, fetch = source_of("s3://data/set/one", s3=bucket)
    assert changed != name
    assert cache.get(changed, fetch, prefix="p", to=tmp_path / "two").path.read_bytes() == b"second"
    with pytest.raises(NotFound):
        source_of("s3://data/set/none", s3=bucket)


@pytest.mark.parametrize("address", ["", "a/b", "http://x/y", "s3://bucket", "s3:///key", "file://"])
def test_an_address_of_another_kind_is_refused(address):
    with pytest.raises(InvalidRequest, match="s3://bucket/key"):
        source_of(address)


def test_threads_share_a_cache(cache, store, tmp_path):
    address = store.put("a")
    threads = [
        threading.Thread(target=get, args=(cache, store, address, tmp_path, str(at))) for at in range(8)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.fetched) == 1
