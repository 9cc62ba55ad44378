"""What was trained is what is served: the exported folder, read by another implementation, gives the same logits."""

import io
import tarfile

import pytest
import torch

from fabric.errors import InvalidRequest
from training.demo import byte_lm
from training.demo.llama import Llama, Shape
from training.demo.llama_export import BEGIN, END, PAD, byte_tokenizer, export_llama
from training.parcels import packed, unpacked


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = Llama(Shape(vocabulary=259, context=128))
    model.begin(std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return export_llama(tmp_path_factory.mktemp("model"), model)


def test_another_implementation_gives_the_same_logits(model, folder):
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(0, 259, (3, 100), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, other = model(tokens), theirs(tokens).logits
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)
    assert ours.std() > 0.1


@pytest.mark.parametrize("text", ["", "plain", "é ü 漢字 🙂", "\x00\t\r\n  spaces ", "</s> is text here too?"[4:]])
def test_every_byte_is_the_token_of_its_value(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text).ids
    assert ids == [BEGIN, *text.encode()]
    assert tokenizer.decode(ids) == text


def test_the_folder_brings_its_tokenizer_and_chat_template(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (BEGIN, END, PAD)
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert said == "<s>user: Hi\nassistant: "


def test_a_training_run_leaves_a_model_that_can_be_served(tmp_path):
    from transformers import AutoModelForCausalLM

    byte_lm.train(steps=2, export_to=str(tmp_path / "out"), directory=tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == 259


def test_a_packed_model_unpacks_to_the_same_files(folder, tmp_path):
    whole = packed(folder)
    assert packed(unpacked(whole, tmp_path / "again")) == whole


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", ".hidden", "a/b"])
def test_a_packed_model_reaches_no_other_folder(tmp_path, name):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(InvalidRequest, match="plain files only"):
        unpacked(whole.getvalue(), tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def sparse(name, size):
    """A tar of three blocks with a file of any size, all of it a hole."""
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0" % 0 * 2
    header[482:495] = b"\0%011o\0" % size
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    return bytes(header) + bytes(2 * tarfile.BLOCKSIZE)


def test_a_packed_model_is_never_larger_than_its_tar(tmp_path):
    with tarfile.open(fileobj=io.BytesIO(sparse("config.json", 2**30))) as tar:
        assert [(entry.size, entry.isfile()) for entry in tar] == [(2**30, True)]
    with pytest.raises(InvalidRequest, match="plain files only"):
        unpacked(sparse("config.json", 2**30), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_broken_tar_is_no_model(folder, tmp_path):
    for broken in (b"no tar at all" * 100, packed(folder)[: len(packed(folder)) // 2]):
        with pytest.raises(InvalidRequest) as refusal:
            unpacked(broken, tmp_path / "out")
        assert refusal.value.code == "bad_model"
