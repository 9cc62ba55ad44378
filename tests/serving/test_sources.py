"""Where models come from: folders, the archive, and what jobs left; never half a model, and none that isn't one."""

import pytest

from fabric.checkpoints import commit_directory
from fabric.checkpoints.jobs import checkpoints_in
from fabric.errors import InvalidRequest, NotFound
from fabric.storage.archive import DirectoryArchive
from fabric.storage.layout import artifact_key
from serving.replica.adapter_files import CONFIG, WEIGHTS
from serving.replica.sources import folder_of
from training.parcels import packed


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def archive(tmp_path):
    return DirectoryArchive(tmp_path / "archive")


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_folder_is_served_where_it_is(model, tmp_path):
    assert folder_of(str(model), None, cache=tmp_path / "cache") == model


def test_a_packed_model_comes_out_of_the_archive_once(model, archive, tmp_path):
    archive.put("models/m.tar", packed(model))
    first = folder_of("archive:models/m.tar", archive, cache=tmp_path / "cache")
    assert names(first) == ["config.json", "model.safetensors"]
    assert folder_of("archive:models/m.tar", archive, cache=tmp_path / "cache") == first
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_what_a_job_published_is_served_before_what_it_kept(model, archive, tmp_path):
    archive.put(artifact_key("ada", "j-1", name="model"), packed(model))
    found = folder_of("job:ada/j-1", archive, cache=tmp_path / "cache")
    assert names(found) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("below", ["", "model"])
def test_what_a_job_exported_into_its_kept_folder_is_served(model, archive, tmp_path, below):
    kept = tmp_path / "kept"
    model.rename(kept if not below else _in(kept) / below)
    checkpoints = checkpoints_in(archive, "ann", "j1", epoch=1, attempt_id="a1")
    checkpoints.claim()
    commit_directory(checkpoints, kept, step=7)
    found = folder_of("job:ann/j1", archive, cache=tmp_path / "cache")
    assert {"config.json", "model.safetensors"} <= set(names(found))


def _in(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("archive:none", NotFound, "none"),
        ("job:ann/j9", NotFound, "j9 has published no model and left no checkpoint: have its code publish one"),
        ("/nowhere", InvalidRequest, "no config.json"),
    ],
)
def test_what_is_no_model_is_said_so_and_leaves_nothing(archive, tmp_path, source, error, says):
    with pytest.raises(error, match=says):
        folder_of(source, archive, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache").iterdir()) == []


def test_a_job_that_saved_but_published_nothing_is_told_to_publish(archive, tmp_path):
    checkpoints = checkpoints_in(archive, "ann", "j1", epoch=1, attempt_id="a1")
    checkpoints.claim()
    draft = checkpoints.begin(600)
    draft.put("state", b"weights")
    checkpoints.commit(draft)
    with pytest.raises(InvalidRequest, match="saved at step 600 is no folder: have its code publish one") as refused:
        folder_of("job:ann/j1", archive, cache=tmp_path / "cache")
    assert refused.value.code == "no_model"


@pytest.mark.parametrize("source", ["archive:lora/law.tar", "job:ada/j-1", "folder"])
def test_an_adapter_comes_from_wherever_a_model_does(archive, tmp_path, source):
    folder = tmp_path / "law"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS, "training_args.bin"):  # what is taken over of it, `taken_over` says
        (folder / name).write_bytes(b"{}")
    archive.put("lora/law.tar", packed(folder))
    archive.put(artifact_key("ada", "j-1", name="model"), packed(folder))
    asked = str(folder) if source == "folder" else source
    found = folder_of(asked, archive, cache=tmp_path / "cache", sought=CONFIG)
    assert {CONFIG, WEIGHTS} <= set(names(found))


def test_a_model_is_no_adapter(model, tmp_path):
    with pytest.raises(InvalidRequest, match="there is no adapter in"):
        folder_of(str(model), None, cache=tmp_path / "cache", sought=CONFIG)
