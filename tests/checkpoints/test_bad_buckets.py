"""A bucket that throttles, fails, hangs, cuts off, expires or refuses: saved whole and once, or said clearly and nothing torn."""

import random
import sys

import pytest
import stamina

from fabric.checkpoints import Checkpoints, S3Store
from fabric.errors import Conflict, NotFound, Unavailable
from fabric.storage.s3 import Place
from fabric.storage.s3_clients import S3Credentials
from tests.checkpoints.conftest import JOB, OWN
from tests.checkpoints.faulty_bucket import (
    DENIED,
    DROP_AFTER,
    DROP_BEFORE,
    EXPIRED,
    HANG,
    INTERNAL,
    SLOW_DOWN,
    TRUNCATE,
    UNAVAILABLE,
    FaultyBucket,
)

MIB = 2**20
FAULTS = [SLOW_DOWN, INTERNAL, UNAVAILABLE, DROP_BEFORE, DROP_AFTER, TRUNCATE]


@pytest.fixture(autouse=True)
def _no_waiting():
    """Tries again at once: how long one waits is no property of what is saved."""
    stamina.set_testing(True, attempts=6)
    yield
    stamina.set_testing(False)


@pytest.fixture
def faulty(moto_url):
    proxy = FaultyBucket(moto_url)
    yield proxy
    proxy.stop()


@pytest.fixture
def open_store(faulty, bucket):
    def opened(*, part_bytes=5 * MIB, **options):
        options = {"credentials": OWN, "read_timeout_s": 20.0} | options
        place = Place(bucket=bucket, endpoint_url=faulty.url, region="us-east-1", **options)
        return S3Store(place, part_bytes=part_bytes)

    return opened


def once(fault, *, when):
    """Fails the first request that `when` holds for."""
    left = [fault]
    return lambda request: left.pop() if left and when(request) else None


def puts_below(part):
    return lambda request: request.method == "PUT" and part in request.path


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("where", ["/data/", "/log/"])
def test_one_failed_request_of_a_save_is_tried_again_and_nobody_notices(faulty, open_store, save, fault, where):
    store = open_store()
    first = Checkpoints(store, prefix=JOB, epoch=1)
    save(first, 1)
    faulty.fault_of = once(fault, when=puts_below(where))
    manifest = save(first, 2)
    assert [found.slot for found in first.ls()] == [3, 2]
    assert manifest.slot == 3, "a create whose answer was lost is found to be one's own"
    assert Checkpoints(store, prefix=JOB, epoch=2).load()[1] == {"state": b"state 2"}


def test_a_bucket_that_lets_everybody_create_is_found_out_before_it_is_trusted(faulty, open_store, save):
    faulty.unheard = "if-none-match"
    with pytest.raises(Unavailable, match="If-None-Match") as raised:
        save(Checkpoints(open_store(), prefix=JOB, epoch=1), 1)
    assert raised.value.code == "store_without_create_once"
    faulty.unheard = ""
    for epoch in (1, 2):
        save(Checkpoints(open_store(), prefix=JOB, epoch=epoch), epoch)


def test_a_commit_of_which_nobody_knows_whether_it_was_carried_out_may_be_abandoned(faulty, open_store, save):
    store = open_store()
    first = Checkpoints(store, prefix=JOB, epoch=1, keep=1)
    save(first, 1)
    draft = first.begin(2)
    draft.put("state", b"state 2")
    faulty.fault_of = lambda request: DROP_AFTER if "/log/" in request.path else None
    with pytest.raises(Unavailable):
        first.commit(draft)
    first.abandon(draft)
    faulty.fault_of = lambda _: None
    second = Checkpoints(store, prefix=JOB, epoch=2, keep=1)
    second.claim()
    second.sweep()
    manifest, shards = second.load()
    assert shards == {"state": f"state {manifest.step}".encode()}


def test_a_create_is_somebody_elses_when_the_bytes_are(open_store):
    store = open_store()
    assert store.put("k", b"mine", once=True)
    assert store.put("k", b"mine", once=True), "as after a lost answer"
    assert not store.put("k", b"other", once=True)
    assert store.get("k") == b"mine"
    assert store.get("create-once-probe") == b"first"


@pytest.mark.parametrize("fault", [SLOW_DOWN, INTERNAL, DROP_BEFORE, DENIED])
def test_a_bucket_that_stays_bad_leaves_what_was_saved_and_says_so(faulty, open_store, save, fault):
    store = open_store()
    first = Checkpoints(store, prefix=JOB, epoch=1)
    save(first, 1)
    faulty.fault_of = lambda request: fault if request.method == "PUT" else None
    sent = len(faulty.seen)
    with pytest.raises(Unavailable) as raised:
        save(first, 2)
    assert raised.value.code == ("store_refused" if fault == DENIED else "store_failed")
    assert len(faulty.seen) - sent == (1 if fault == DENIED else 6), "a refusal is final, a failure is not"
    faulty.fault_of = lambda _: None
    assert first.load()[1] == {"state": b"state 1"}
    assert save(first, 2).step == 2


def test_a_bucket_that_does_not_answer_is_given_up_on(faulty, open_store):
    store = open_store(read_timeout_s=0.2)
    faulty.hang_s, faulty.fault_of = 0.5, lambda _: HANG
    with pytest.raises(Unavailable) as raised:
        store.put("k", b"v")
    assert raised.value.code == "store_failed"
    assert len(faulty.seen) >= 5


def test_a_bucket_that_is_not_there_is_no_missing_value(faulty):
    store = S3Store(Place(bucket="nowhere-at-all", endpoint_url=faulty.url, region="us-east-1", credentials=OWN))
    with pytest.raises(Unavailable, match="NoSuchBucket") as raised:
        store.get("k")
    assert raised.value.code == "store_refused"


def test_a_large_value_goes_in_parts_and_only_a_failed_part_again(faulty, open_store, tmp_path):
    store, data = open_store(), random.Random(1).randbytes(11 * MIB)
    (tmp_path / "f").write_bytes(data)
    faulty.fault_of = once(SLOW_DOWN, when=lambda request: "partNumber=2" in request.path)
    store.put_file("large", tmp_path / "f")
    parts = [request.path.partition("partNumber=")[2][0] for request in faulty.seen if "partNumber=" in request.path]
    assert sorted(parts) == ["1", "2", "2", "3"]
    assert store.get("large") == data
    store.put("large/too", memoryview(data))
    assert store.get("large/too") == data


def test_a_large_value_that_can_not_be_sent_leaves_nothing(faulty, open_store):
    store = open_store()
    faulty.fault_of = lambda request: INTERNAL if "partNumber=3" in request.path else None
    with pytest.raises(Unavailable):
        store.put("large", bytes(11 * MIB))
    with pytest.raises(NotFound):
        store.get("large")
    assert store._bucket.client.list_multipart_uploads(Bucket=store._bucket.name).get("Uploads", []) == []


def test_an_upload_whose_completion_was_answered_to_nobody_is_complete(faulty, open_store):
    store, data = open_store(), random.Random(2).randbytes(6 * MIB)
    faulty.fault_of = once(DROP_AFTER, when=lambda r: r.method == "POST" and "uploadId=" in r.path)
    store.put("large", data)
    assert store.get("large") == data


def test_a_file_that_changes_while_it_is_sent_is_refused(faulty, open_store, tmp_path):
    store, path = open_store(), tmp_path / "f"
    path.write_bytes(bytes(11 * MIB))

    def change(request):
        if request.path.endswith("?uploads"):
            path.write_bytes(b"\1" * (11 * MIB))

    faulty.fault_of = change
    with pytest.raises(Conflict) as raised:
        store.put_file("large", path)
    assert raised.value.code == "file_changed"


def test_only_the_part_of_a_download_that_breaks_off_is_fetched_again(faulty, open_store):
    store, data = open_store(), random.Random(3).randbytes(28 * MIB)
    store.put("k", data)
    sent = len(faulty.seen)
    faulty.fault_of = once(TRUNCATE, when=lambda request: request.method == "GET" and request.number > sent + 2)
    assert store.get("k") == data
    assert len(faulty.seen) - sent == 6 + 1


def test_a_value_that_is_replaced_while_it_is_fetched_is_not_mixed(faulty, open_store):
    store, other = open_store(), open_store()
    store.put("k", bytes(11 * MIB))
    parts = store.chunks("k")
    next(parts)
    other.put("k", b"\1" * (11 * MIB))
    with pytest.raises(Unavailable):
        list(parts)


def test_credentials_that_expire_in_the_middle_of_a_save_are_renewed(faulty, open_store, save):
    renewed = []

    def refresh():
        renewed.append(1)
        return S3Credentials(access_key_id="AKIA2", secret_access_key="secret")

    store = open_store(refresh=refresh)
    first = Checkpoints(store, prefix=JOB, epoch=1)
    save(first, 1)
    faulty.fault_of = lambda request: EXPIRED if request.access_key_id == "AKIA" else None
    save(first, 2, a=b"1", b=b"2")
    assert renewed == [1]
    assert first.load()[1] == {"a": b"1", "b": b"2"}


def test_credentials_that_can_not_be_renewed_say_so_and_leave_what_was_saved(faulty, open_store, save):
    first = Checkpoints(open_store(), prefix=JOB, epoch=1)
    save(first, 1)
    faulty.fault_of = lambda request: EXPIRED if "/log/" in request.path else None
    with pytest.raises(Unavailable, match="renew them") as raised:
        save(first, 2)
    assert raised.value.code == "credentials_expired"
    faulty.fault_of = lambda _: None
    assert first.newest().step == 1
    save(first, 2)


@pytest.mark.parametrize(("sse", "key"), [("AES256", ""), ("aws:kms", "alias/mine")])
def test_everything_is_encrypted_at_rest_when_asked(open_store, save, tmp_path, sse, key):
    store = open_store(sse=sse, kms_key_id=key)
    first = Checkpoints(store, prefix=JOB, epoch=1)
    (tmp_path / "large").write_bytes(bytes(6 * MIB))
    save(first, 1, small=b"x", large=tmp_path / "large")
    first.fork("jobs/acme/j-2/checkpoint")
    kept = store.keys("jobs")
    assert len(kept) == 2 + 2 + 2 + 1
    for name in kept:
        about = store._bucket.client.head_object(Bucket=store._bucket.name, Key=name)
        assert about["ServerSideEncryption"] == sse
        assert about.get("SSEKMSKeyId", "").endswith(key)


def nothing_acknowledged_is_lost(faulty, open_store, save, *, saves, seed):
    dice, store, acknowledged, given_up = random.Random(seed), open_store(part_bytes=5 * MIB), 0, 0
    faulty.fault_of = lambda _: dice.choice(FAULTS) if dice.random() < 0.25 else None
    checkpoints = Checkpoints(store, prefix=JOB, epoch=1)
    for step in range(1, saves + 1):
        try:
            save(checkpoints, step, a=f"a{step}".encode() * 5000, b=f"b{step}".encode())
            acknowledged = step
        except Unavailable:
            given_up += 1
        except Conflict:  # its own record may have arrived after it was given up: it begins anew, as a new attempt
            checkpoints = Checkpoints(store, prefix=JOB, epoch=checkpoints.epoch + 1)
    faulty.fault_of = lambda _: None
    reader = Checkpoints(store, prefix=JOB, epoch=10**6)
    if acknowledged:
        manifest, shards = reader.load()
        assert manifest.step >= acknowledged, f"seed {seed}"
        assert shards == {"a": f"a{manifest.step}".encode() * 5000, "b": f"b{manifest.step}".encode()}
        assert reader.passed_over == ()
    return given_up, len(faulty.seen)


def test_a_quarter_of_all_requests_may_fail_and_nothing_acknowledged_is_lost(faulty, open_store, save):
    seed = random.SystemRandom().getrandbits(32)
    given_up, requests = nothing_acknowledged_is_lost(faulty, open_store, save, saves=20, seed=seed)
    sys.stdout.write(
        f"seed {seed}: 20 saves, {requests} requests, a quarter failed, {given_up} saves given up, 0 lost\n"
    )


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_quarter_of_very_many_requests_may_fail_and_nothing_acknowledged_is_lost(faulty, open_store, save):
    seed = random.SystemRandom().getrandbits(32)
    given_up, requests = nothing_acknowledged_is_lost(faulty, open_store, save, saves=1000, seed=seed)
    sys.stdout.write(f"seed {seed}: 1000 saves, {requests} requests, {given_up} saves given up, 0 lost\n")
