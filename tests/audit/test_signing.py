import stat

import pytest

from fabric.audit.signing import load_or_create_key
from fabric.errors import InvalidConfig


def test_a_key_is_created_once_and_only_its_owner_may_read_it(tmp_path):
    path = tmp_path / "state" / "signing.key"
    key = load_or_create_key(path)
    assert load_or_create_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["signing.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_may_read_is_refused(tmp_path, mode):
    path = tmp_path / "signing.key"
    load_or_create_key(path)
    path.chmod(mode)
    with pytest.raises(InvalidConfig, match="chmod 600"):
        load_or_create_key(path)


@pytest.mark.parametrize("content", [b"", b"AAAA\n", b"not base64!"])
def test_a_file_that_holds_no_key_is_refused_and_never_replaced(tmp_path, content):
    path = tmp_path / "signing.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InvalidConfig, match="restore it from a backup"):
        load_or_create_key(path)
    assert path.read_bytes() == content
