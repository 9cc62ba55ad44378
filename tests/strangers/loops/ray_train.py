"""As Ray Train's guides have it: two workers, a checkpoint with every report, and the run goes on from the last one."""

import os
import tempfile

import ray.train
import torch
from ray.train import Checkpoint, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def train_func(config):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    model = prepare_model(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)))
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = prepare_data_loader(DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True))
    start, rank = 0, ray.train.get_context().get_world_rank()
    if found := ray.train.get_checkpoint():
        with found.as_directory() as folder:
            state = torch.load(os.path.join(folder, "state.pt"), weights_only=True)
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        start = state["epoch"] + 1
    for epoch in range(start, config["epochs"]):
        loader.sampler.set_epoch(epoch)
        for inputs, wanted in loader:
            loss = (model(inputs) - wanted).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
        if rank == 0:
            print(f"step {epoch} loss {loss.item():.9f}")
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                state = {"model": model.state_dict(), "opt": opt.state_dict(), "epoch": epoch}
                torch.save(state, os.path.join(folder, "state.pt"))
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({"loss": loss.item(), "step": epoch}, checkpoint=checkpoint)


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False)
    trainer = TorchTrainer(train_func, train_loop_config={"epochs": 24}, scaling_config=ScalingConfig(num_workers=2))
    result = trainer.fit()
    with result.checkpoint.as_directory() as folder:
        state = torch.load(os.path.join(folder, "state.pt"), weights_only=True)
    reported = [int(step) for step in result.metrics_dataframe["step"]]
    torch.save({"model": state["model"], "opt": state["opt"], "reported": reported}, f"{os.environ['OUT']}/final.pt")
