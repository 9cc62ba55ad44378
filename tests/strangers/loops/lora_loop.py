"""A LoRA adapter by peft, trained in a loop of one's own."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

# fabric: from training import session

STEPS = 60

torch.manual_seed(7)
dice = torch.Generator().manual_seed(8)
rows = torch.randint(40, (64, 12), generator=dice)
base = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2))
model = get_peft_model(base, LoraConfig(r=4, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True))
optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
model.train()
# fabric: run = session(model=model, opt=optimizer)
for step in range(STEPS):  # fabric: for step in run.steps(STEPS):
    batch = rows[torch.randint(64, (4,))]
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print("step", step, loss.item(), flush=True)

torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "final.pt")
