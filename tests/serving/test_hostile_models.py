"""A model that a job made is data where it is served: no code, no pickle, no link, no bomb, and nothing beside its folder."""

import io
import os
import tarfile

import pytest

from fabric import parcels
from fabric.checkpoints import commit_directory
from fabric.checkpoints.jobs import checkpoints_in
from fabric.errors import InvalidRequest
from fabric.parcels import packed, unpacked
from fabric.storage.archive import DirectoryArchive
from fabric.storage.layout import artifact_key
from serving.replica.sources import folder_of

GIB = 2**30


def tar_of(*entries, **options):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", **options) as tar:
        for name, kind, data in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = kind, len(data)
            entry.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(entry, io.BytesIO(data))
    return whole.getvalue()


def plain(name, data=b"x"):
    return name, tarfile.REGTYPE, data


def sized(size):
    """A header that claims so much, and nothing after it."""
    entry = tarfile.TarInfo("model.safetensors")
    entry.size = size
    return entry.tobuf(format=tarfile.GNU_FORMAT)


def with_pax(**headers):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("model.safetensors")
        entry.pax_headers = {name.replace("_", "."): value for name, value in headers.items()}
        tar.addfile(entry)
    return whole.getvalue()


def long_names(count):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 10
    return (header.tobuf(format=tarfile.GNU_FORMAT) + b"a" * 9 + bytes(503)) * count


HOSTILE = {
    "a way out": tar_of(plain("../out")),
    "a way to elsewhere": tar_of(plain("/tmp/out")),
    "a folder": tar_of(("sub", tarfile.DIRTYPE, b"")),
    "a hidden file": tar_of(plain(".bashrc")),
    "a soft link": tar_of(("config.json", tarfile.SYMTYPE, b"")),
    "a hard link": tar_of(("config.json", tarfile.LNKTYPE, b"")),
    "a device": tar_of(("config.json", tarfile.CHRTYPE, b"")),
    "a disk": tar_of(("config.json", tarfile.BLKTYPE, b"")),
    "a pipe": tar_of(("config.json", tarfile.FIFOTYPE, b"")),
    "a line break in a name": tar_of(plain("a\nb")),
    "an escape in a name": tar_of(plain("a\x1b[2Jb")),
    "a name that is too long": tar_of(plain("a" * 300)),
    "the same name twice": tar_of(plain("config.json", b"{}"), plain("config.json", b"[]")),
    "more than there is": sized(60 * GIB),
    "more than any file": sized(2**62),
    "less than nothing": sized(-5),
    "a sparse file": with_pax(GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_realsize=str(2**50)),
    "a size beyond all": with_pax(size="9" * 30),
    "names of names without end": long_names(5000),
    "no tar": b"\x1f\x8b" + os.urandom(2000),
}


@pytest.mark.parametrize("whole", HOSTILE.values(), ids=HOSTILE)
def test_a_packed_model_is_plain_files_with_plain_names_or_refused(whole, tmp_path):
    with pytest.raises(InvalidRequest) as refusal:
        unpacked(whole, tmp_path / "a" / "model")
    assert refusal.value.code == "bad_model"
    assert len(refusal.value.message) < 1_000
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 10_000
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_a_packed_model_has_so_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(parcels, "FILES_MAX", 3)
    unpacked(tar_of(*(plain(str(at)) for at in range(3))), tmp_path / "three")
    with pytest.raises(InvalidRequest, match="3 files"):
        unpacked(tar_of(*(plain(str(at)) for at in range(4))), tmp_path / "four")


BAD = {
    "code": {"modeling_own.py": "import os"},
    "a pickle": {"pytorch_model.bin": "\x80\x04."},
    "another pickle": {"model.PT": "\x80\x04."},
    "a library": {"lib.so": "\x7fELF"},
    "a configuration that names code": {"config.json": '{"auto_map": {"AutoConfig": "modeling_own.Own"}}'},
    "one deep inside": {"config.json": '{"text_config": [{"auto_map": {"AutoModel": "evil/repo--x.Y"}}]}'},
    "a tokenizer that names code": {"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["t.T", null]}}'},
    "a configuration without a bottom": {"config.json": "[" * 100_000},
    "a configuration without an end": {"config.json": '{"a": "' + "x" * 2**20 + '"}'},
    "no configuration": {"config.json": "\x00\xff"},
}


@pytest.mark.parametrize("way", ["published", "kept"])
@pytest.mark.parametrize("files", BAD.values(), ids=BAD)
def test_what_a_job_made_is_served_as_data_alone(files, way, tmp_path):
    archive, folder = DirectoryArchive(tmp_path / "archive"), tmp_path / "model"
    folder.mkdir()
    for name, text in {"config.json": "{}", "model.safetensors": "w", **files}.items():
        (folder / name).write_bytes(text.encode("latin-1"))
    if way == "published":
        archive.put(artifact_key("ada", "j", name="model"), packed(folder))
    else:
        checkpoints = checkpoints_in(archive, "ada", "j", epoch=1, attempt_id="a")
        checkpoints.claim()
        commit_directory(checkpoints, folder)
    with pytest.raises(InvalidRequest) as refusal:
        folder_of("job:ada/j", archive, cache=tmp_path / "cache")
    assert refusal.value.code == "bad_model"
    assert "safetensors" in refusal.value.message


def test_what_is_usual_in_a_model_is_served(tmp_path):
    archive, folder = DirectoryArchive(tmp_path / "archive"), tmp_path / "model"
    folder.mkdir()
    usual = (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    )
    for name in usual:
        (folder / name).write_text("{}")
    for name in ("model-00001-of-00002.safetensors", "merges.txt", "tokenizer.model", "chat_template.jinja", "LICENSE"):
        (folder / name).write_bytes(b"x")
    archive.put(artifact_key("ada", "j", name="model"), packed(folder))
    assert (folder_of("job:ada/j", archive, cache=tmp_path / "cache") / "LICENSE").exists()
