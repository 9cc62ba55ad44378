"""Lightning's Trainer, with validations within epochs and a schedule."""

import sys

import pytorch_lightning
import torch
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# fabric: from training.integrations.lightning import fit

ACCUMULATION = int(sys.argv[1]) if len(sys.argv) > 1 else 1


class Module(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3))
        self.register_buffer("seen", torch.zeros(120, dtype=torch.int64))

    def training_step(self, batch, batch_idx):
        x, y, which = batch
        self.seen[which] += 1
        loss = nn.functional.cross_entropy(self.net(x + 0.1 * torch.randn_like(x)), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y, _ = batch
        self.log("val", nn.functional.cross_entropy(self.net(x), y) + 0.01 * torch.rand(()))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class Lines(Logger):
    name = version = "lines"
    experiment = None

    def log_hyperparams(self, params):
        """None."""

    def log_metrics(self, metrics, step):
        print("step", step, sorted(metrics.items()), flush=True)


pytorch_lightning.seed_everything(11)
dice = torch.Generator().manual_seed(12)
data = TensorDataset(torch.randn(120, 6, generator=dice), torch.randint(3, (120,), generator=dice), torch.arange(120))
module = Module()
trainer = pytorch_lightning.Trainer(
    max_epochs=3, accelerator="cpu", val_check_interval=7, accumulate_grad_batches=ACCUMULATION, logger=Lines(),
    log_every_n_steps=1, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
loader, checks = DataLoader(data, batch_size=6, shuffle=True), DataLoader(data, batch_size=40)
trainer.fit(module, loader, val_dataloaders=checks)  # fabric: fit(trainer, module, loader, val_dataloaders=checks)

rate = trainer.optimizers[0].param_groups[0]["lr"]
torch.save({"model": module.state_dict(), "seen": module.seen, "steps": trainer.global_step, "rate": rate}, "final.pt")
