"""A LoRA adapter by peft, trained by Hugging Face's Trainer with a linear schedule."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

# fabric: from training.integrations.huggingface import train

set_seed(7)
dice = torch.Generator().manual_seed(8)
rows = [{"input_ids": row, "labels": row} for row in torch.randint(40, (64, 12), generator=dice)]
base = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2))
model = get_peft_model(base, LoraConfig(r=4, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True))
arguments = TrainingArguments(
    output_dir="out", max_steps=60, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1,
    save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
)  # fmt: skip
trainer = Trainer(model=model, args=arguments, train_dataset=rows)
trainer.train()  # fabric: train(trainer)

logged = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
torch.save({"model": model.state_dict(), "logged": logged}, "final.pt")
