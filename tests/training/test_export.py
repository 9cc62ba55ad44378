"""What was trained is what is served: the exported folder, read by another implementation, gives the same logits."""

import io
import tarfile

import pytest
import torch

from fabric.errors import InvalidRequest
from training import byte_lm
from training.export import BEGIN, END, PAD, byte_tokenizer, export_llama
from training.llama import Llama, Shape
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
