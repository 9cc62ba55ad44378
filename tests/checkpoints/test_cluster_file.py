"""What the cluster file says of checkpoints reaches the runner that writes them."""

import pytest

from fabric.checkpoints import DirectoryStore, near_store
from fabric.checkpoints.jobs import checkpoints_in
from fabric.config.cluster import load_cluster, shipped
from fabric.errors import PermissionDenied, Unavailable
from fabric.server.wiring import cluster_settings, open_archive_of


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The local cluster file, with a line more."""
    monkeypatch.setenv("FABRIC_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr("fabric.checkpoints.near.LEAVE_FREE", 0.0)

    def loaded(line=""):
        file = tmp_path / "cluster.yaml"
        file.write_text(shipped("local.yaml").read_text() + f"\n{line}\n")
        return load_cluster(file)

    return loaded


def a_job(config, *, epoch):
    stage_dir = cluster_settings(config, key=b"k" * 32).stage_dir
    return checkpoints_in(
        open_archive_of(config), "acme", "j-1", epoch=epoch, attempt_id=f"j-1.{epoch}", stage_dir=str(stage_dir or "")
    )


def test_checkpoints_are_staged_where_the_cluster_file_says_and_nowhere_else(cluster, save, tmp_path):
    config = cluster(f"staging: {{path: {tmp_path / 'near'}}}")
    first = a_job(config, epoch=1)
    save(first, 1)
    (own,) = (tmp_path / "near").iterdir()
    assert (own.stat().st_mode & 0o777) == 0o700, "another user of the node can't read it"
    assert len(DirectoryStore(own).keys("jobs/acme/j-1/checkpoint/data")) == 1
    assert a_job(config, epoch=2).load()[1] == {"state": b"state 1"}
    plain = a_job(cluster(), epoch=2)
    assert plain.local is None
    assert plain.load()[1] == {"state": b"state 1"}


def test_a_jobs_checkpoints_are_its_accounts_own(cluster, save):
    first = a_job(cluster(), epoch=1)
    save(first, 1)
    with pytest.raises(PermissionDenied):
        first.fork("jobs/rival/j-9/checkpoint")
    assert first.fork("jobs/acme/j-9/checkpoint").step == 1


def test_a_folder_that_somebody_else_may_have_made_is_not_staged_in(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    for name in ("open", "link"):
        with pytest.raises(Unavailable) as raised:
            near_store(tmp_path / name)
        assert raised.value.code == "stage_dir_not_ours"
