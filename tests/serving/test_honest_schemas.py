"""The real compiler with a vocabulary as large as real models': honest schemas are taken, harmful ones end at their limit."""

import asyncio
import json
import pickle
import random

import pytest

from fabric.errors import InvalidRequest, RateLimited
from serving import limits
from serving.grammars import Grammars

from .honest_schemas import HONEST

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

VOCABULARY = 64_000
REPEATED = {
    "type": "object",
    "properties": {f"p{n}": {"type": "string", "pattern": "^(a{1,200}){1,200}$"} for n in range(30)},
}
DOUBLED = (
    "root ::= r0\n"
    + "\n".join(f'r{n} ::= "a" r{n + 1} | "b" r{n + 1} | r{n + 1}' for n in range(2_500))
    + '\nr2500 ::= "z"'
)
TAGS = {"structures": [{"begin": f"<f{n}>", "schema": REPEATED, "end": "</f>"} for n in range(40)], "triggers": ["<f"]}


HARMFUL = [{"json": REPEATED}, {"grammar": DOUBLED}, {"structural_tag": json.dumps(TAGS)}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_folder):
    """A model's folder but for its weights: what the compiler reads is the vocabulary, of words of all lengths."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made, rng = tmp_path_factory.mktemp("large-vocabulary"), random.Random(1)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = dict.fromkeys(["<|end|>", *pre_tokenizers.ByteLevel.alphabet()])
    while len(words) < VOCABULARY:
        word = "".join(rng.choices(letters, weights=range(26, 0, -1), k=rng.randint(2, 12)))
        words[
            rng.choice(
                (word, f"Ġ{word}", word.title(), f"Ġ{word.title()}", f"{rng.randint(0, 9999)}", f"ä{word}", f'"{word}')
            )
        ] = None
    tokenizer = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(str(made))
    config = json.loads((model_folder / "config.json").read_text()) | {"vocab_size": VOCABULARY}
    (made / "config.json").write_text(json.dumps(config))
    return made


@pytest.fixture(scope="module")
def setup(folder):
    from vllm.config import ModelConfig, StructuredOutputsConfig

    return pickle.dumps((ModelConfig(model=str(folder), dtype="float32"), StructuredOutputsConfig(backend="xgrammar")))


@pytest.fixture
async def grammars(setup):
    opened = Grammars(setup)
    await opened.start()
    yield opened
    await opened.close()


async def test_every_honest_schema_is_taken_and_none_has_to_wait(grammars):
    used_s = {}
    for name, schema in HONEST.items():
        used_s[name] = (await grammars.check("ann", {"json": json.dumps(schema)})).cpu_s
    print({name: each for name, each in used_s.items() if each > 0.5}, "in all", sum(used_s.values()))


async def test_a_harmful_grammar_ends_at_its_limit_and_others_go_on(grammars):
    async def harm():
        for shape in HARMFUL:
            with pytest.raises((InvalidRequest, RateLimited)) as refused:
                await grammars.check("eve", shape)
            print(str(shape)[:60], refused.value.code, refused.value.message[:120])

    harming = asyncio.create_task(harm())
    for name in ("a small model", "patterns", "a tree", "formats"):
        assert (await grammars.check("ann", {"json": json.dumps(HONEST[name])})).is_accepted
    assert not harming.done(), "nobody waits for another account's"
    await harming
    assert sum(found.cpu_s for found in grammars._known.values()) < len(HARMFUL) * limits.GRAMMAR_CPU_S * 1.5


async def test_what_the_compiler_cannot_do_is_said_without_its_own_words(grammars):
    schema = {
        "type": "object",
        "properties": {"line": {"type": "string", "pattern": "^.{1,200}$"}},
        "required": ["line"],
    }
    with pytest.raises(InvalidRequest, match="more than 128 times") as refused:
        await grammars.check("ann", {"json": json.dumps(schema)})
    assert "Check failed" not in refused.value.message
