"""Hugging Face's Trainer on a small GPT-2, with a warm-up, accumulated gradients and evaluations."""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

# fabric: from training.integrations.huggingface import train

set_seed(5)
dice = torch.Generator().manual_seed(6)
rows = [{"input_ids": row, "labels": row} for row in torch.randint(40, (64, 12), generator=dice)]
model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2))
arguments = TrainingArguments(
    output_dir="out", num_train_epochs=4, per_device_train_batch_size=2, gradient_accumulation_steps=2, warmup_steps=5,
    learning_rate=1e-2, logging_steps=1, eval_strategy="steps", eval_steps=20, save_strategy="no", report_to=[],
    use_cpu=True, disable_tqdm=True, enable_jit_checkpoint="jit" in sys.argv,
)  # fmt: skip
trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:8])
trainer.train()  # fabric: train(trainer)

logged = [
    (entry["step"], entry.get("loss", 0.0), entry.get("eval_loss", 0.0)) for entry in trainer.state.log_history[:-1]
]
torch.save({"model": model.state_dict(), "logged": logged, "rate": trainer.lr_scheduler.get_last_lr()}, "final.pt")
