"""A diffusion model by the parts of diffusers: its UNet, its noise schedule, and an average of the weights (EMA)."""

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel

# fabric: from training import session

STEPS = 50

torch.manual_seed(15)
images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(16)) * 2 - 1
model = UNet2DModel(
    sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
    down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), dropout=0.1,
)  # fmt: skip
noise_schedule = DDPMScheduler(num_train_timesteps=100)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
lr_scheduler = get_cosine_schedule_with_warmup(optimizer, 5, STEPS)
ema = EMAModel(model.parameters(), decay=0.99, use_ema_warmup=True)
model.train()
# fabric: run = session(model=model, opt=optimizer, sched=lr_scheduler, extra={"ema": ema})
for step in range(STEPS):  # fabric: for step in run.steps(STEPS):
    clean = images[torch.randint(40, (4,))]
    noise = torch.randn_like(clean)
    times = torch.randint(0, noise_schedule.config.num_train_timesteps, (4,))
    guess = model(noise_schedule.add_noise(clean, noise, times), times, return_dict=False)[0]
    loss = torch.nn.functional.mse_loss(guess, noise)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    lr_scheduler.step()
    optimizer.zero_grad()
    ema.step(model.parameters())
    print("step", step, loss.item(), flush=True)

average = {"weights": [weight.detach() for weight in ema.shadow_params], "steps": ema.optimization_step}
torch.save({"model": model.state_dict(), "average": average, "rate": lr_scheduler.get_last_lr()}, "final.pt")
