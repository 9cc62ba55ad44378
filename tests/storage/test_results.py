import pytest

from fabric.errors import InvalidRequest
from fabric.storage import results
from fabric.storage.archive import DirectoryArchive
from fabric.storage.results import JOURNALED_BYTES_MAX, inline_result, keep_result, read_result, shown_ref

KEY = "jobs/acme/job-1/result"


@pytest.fixture
def archive(tmp_path):
    return DirectoryArchive(tmp_path)


def test_a_small_result_is_in_its_reference_and_not_in_the_archive(archive):
    reference = keep_result(archive, KEY, b"x" * JOURNALED_BYTES_MAX)
    assert inline_result(reference) == read_result(archive, reference) == b"x" * JOURNALED_BYTES_MAX
    assert not archive.exists(KEY)


def test_a_larger_result_is_in_the_archive_under_its_key(archive):
    reference = keep_result(archive, KEY, b"x" * (JOURNALED_BYTES_MAX + 1))
    assert reference == KEY
    assert inline_result(reference) is None
    assert read_result(archive, reference) == b"x" * (JOURNALED_BYTES_MAX + 1)


def test_an_empty_result_is_a_result(archive):
    assert read_result(archive, keep_result(archive, KEY, b"")) == b""


def test_what_is_shown_of_a_reference_never_contains_the_result(archive):
    assert shown_ref(keep_result(archive, KEY, b"secret")) == "inline"
    assert shown_ref(KEY) == KEY
    assert shown_ref("") == ""


def test_a_result_that_no_door_could_hand_on_is_refused_with_the_remedy(archive, monkeypatch):
    monkeypatch.setattr(results, "RESULT_BYTES_MAX", 5_000)
    with pytest.raises(InvalidRequest, match="write it to storage") as refusal:
        results.keep_result(archive, KEY, b"x" * 5_001)
    assert refusal.value.code == "result_too_large"
    assert not archive.exists(KEY)
