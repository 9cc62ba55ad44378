"""Supervised fine-tuning by TRL: texts, a tokenizer made here, packing left out, a LoRA adapter on top."""

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

# fabric: from training.integrations.huggingface import train

WORDS = [f"w{number}" for number in range(30)]

set_seed(9)
dice = torch.Generator().manual_seed(10)
texts = [" ".join(WORDS[at] for at in row) for row in torch.randint(30, (48, 10), generator=dice)]
words = Tokenizer(
    models.WordLevel({"<eos>": 0, "<unk>": 1, **{word: 2 + at for at, word in enumerate(WORDS)}}, "<unk>")
)
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")
model = GPT2LMHeadModel(
    GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, eos_token_id=0, bos_token_id=0)
)
arguments = SFTConfig(
    output_dir="out", max_steps=50, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1, max_length=16,
    save_strategy="no", report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, gradient_checkpointing=False,
)  # fmt: skip
trainer = SFTTrainer(
    model=model, args=arguments, train_dataset=Dataset.from_dict({"text": texts}), processing_class=tokenizer,
    peft_config=LoraConfig(r=4, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True),
)  # fmt: skip
trainer.train()  # fabric: train(trainer)

logged = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
torch.save({"model": trainer.model.state_dict(), "logged": logged}, "final.pt")
