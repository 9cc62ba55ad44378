"""Hugging Face's and Lightning's trainers are saved at the end of a step and go on from there, to the same weights."""

import importlib.util
import random
import shutil

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fabric import context
from fabric.errors import InvalidRequest
from tests.training.workload import Attempts, ended_by, running, stopped
from training.integrations import huggingface
from training.integrations import lightning as adapters_lightning

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, and many
STEPS = 12


def needs(*modules):
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


def samples():
    dice = torch.Generator().manual_seed(3)
    return torch.randn(24, 4, generator=dice), torch.randint(3, (24,), generator=dice)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3))

    def forward(self, x, labels):
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def hugging_face(folder, *, each=lambda step: None, best=None):
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    class Each(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            each(state.global_step)

    set_seed(0)
    model = Net()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=4, report_to=[], logging_steps=1,
        disable_tqdm=True, learning_rate=1e-2, use_cpu=True, seed=0, **(best or {"save_strategy": "no"}),
        **({"metric_for_best_model": "eval_worse", "greater_is_better": False} if best else {}),
    )  # fmt: skip
    data = [{"x": x, "labels": y} for x, y in zip(*samples(), strict=True)]

    class Worse(Trainer):
        def evaluate(self, *given, **options):
            metrics = {"eval_worse": float(self.state.global_step)}
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    huggingface.train(Worse(model=model, args=arguments, train_dataset=data, eval_dataset=data, callbacks=[Each()]))
    return torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])


def lightning(folder, *, each=lambda step: None, epochs=None, batches=6, validates=False, **options):
    import pytorch_lightning

    class Module(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()
            self.ends = 0

        def training_step(self, batch, batch_idx):
            each(self.global_step if epochs is None else self.trainer.fit_loop.total_batch_idx)
            self.log("seen", 1.0)
            return self.net(*batch)["loss"] + 0.01 * torch.rand(())

        def validation_step(self, batch, batch_idx):
            self.log("val", self.net(*batch)["loss"] + torch.rand(()))

        def configure_optimizers(self):
            opt = torch.optim.AdamW(self.parameters(), lr=1e-2)
            return [opt], [torch.optim.lr_scheduler.ExponentialLR(opt, 0.8)]

    pytorch_lightning.seed_everything(0, verbose=False)
    module = Module()
    length = {"max_steps": STEPS} if epochs is None else {"max_epochs": epochs}
    trainer = pytorch_lightning.Trainer(
        **length, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder), barebones=False, **options,
    )  # fmt: skip
    data = TensorDataset(*samples())
    loader = DataLoader(data, batch_size=24 // batches, shuffle=True)
    if validates:
        options = {"val_dataloaders": DataLoader(data, batch_size=8)}
        adapters_lightning.fit(trainer, module, loader, **options)
    else:
        adapters_lightning.fit(trainer, module, loader)
    counts = [trainer.global_step, trainer.current_epoch, trainer.fit_loop.epoch_loop._batches_that_stepped]
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    return torch.cat([*(weight.detach().reshape(-1) for weight in module.parameters()), torch.tensor([*counts, rate])])


FRAMEWORKS = [
    pytest.param(hugging_face, marks=needs("transformers", "accelerate"), id="hugging-face"),
    pytest.param(lightning, marks=needs("pytorch_lightning"), id="lightning"),
]


@pytest.mark.parametrize("train", FRAMEWORKS)
def test_a_trainer_that_is_evicted_ends_with_the_same_weights(tmp_path, train):
    whole = train(tmp_path / "whole")
    attempts, stops = Attempts(tmp_path / "kept"), [2, 7]

    def work(job):
        def each(step):
            if stops and step == stops[0]:
                stopped(job)
                stops.pop(0)

        return train(tmp_path / f"attempt-{attempts.count}", each=each)

    assert torch.equal(attempts.run(work), whole)
    assert attempts.saves == [3, 8, STEPS]


@needs("pytorch_lightning")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"validates": True, "val_check_interval": 4, "accumulate_grad_batches": 3}, id="accumulation"),
    ],
)
def test_a_trainer_evicted_at_every_batch_of_three_epochs_ends_the_same(tmp_path, options):
    options = {"epochs": 3, "batches": 8, **options}
    whole = lightning(tmp_path / "whole", **options)
    attempts, computed = Attempts(tmp_path / "kept"), []

    def work(job):
        def each(batch):
            computed.append(batch)
            stopped(job)

        return lightning(tmp_path / f"attempt-{attempts.count}", each=each, **options)

    assert torch.equal(attempts.run(work), whole)
    assert computed == list(range(24)), "each batch is computed once"


@pytest.mark.parametrize("train", FRAMEWORKS)
def test_a_trainer_whose_state_nobody_wants_ends_without_a_save(tmp_path, train):
    attempts = Attempts(tmp_path / "kept")
    job = attempts.next()
    with ended_by(context.Saved, job):
        train(tmp_path, each=lambda step: step == 2 and job.ask_to_stop("cancelled", seconds_left=9, save=False))
    assert attempts.saves == []


@pytest.mark.parametrize("train", FRAMEWORKS)
def test_how_far_a_trainer_is_can_be_seen(tmp_path, train):
    attempts = Attempts(tmp_path / "kept")
    with running(attempts.next()) as job:
        train(tmp_path)
    assert (job.progress.step, job.progress.steps_total) == (STEPS, STEPS)
    assert job.progress.loss_micro > 0


@needs("transformers", "accelerate")
def test_the_best_model_of_an_evicted_trainer_is_found_on_another_node(tmp_path):
    """It is of step 4 (the metric gets worse from there on), and the trainer is evicted after step 7."""
    best = {"eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "load_best_model_at_end": True}
    whole = hugging_face(tmp_path / "whole", best=best)
    attempts, stops = Attempts(tmp_path / "kept"), [7]

    def work(job):
        def each(step):
            if stops and step == stops[0]:
                stopped(job)
                stops.pop(0)

        folder = tmp_path / f"attempt-{attempts.count}"
        shutil.rmtree(tmp_path / f"attempt-{attempts.count - 1}", ignore_errors=True)
        return hugging_face(folder, each=each, best=best)

    assert torch.equal(attempts.run(work), whole)


@needs("transformers", "accelerate")
def test_what_a_trainer_saves_by_itself_is_committed_too(tmp_path):
    attempts = Attempts(tmp_path / "kept")
    with running(attempts.next()):
        from transformers import Trainer, TrainingArguments

        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=6, save_steps=2, per_device_train_batch_size=4, report_to=[],
            disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        data = [{"x": x, "labels": y} for x, y in zip(*samples(), strict=True)]
        huggingface.train(Trainer(model=Net(), args=arguments, train_dataset=data))
    assert attempts.saves == [2, 4, 6]


def test_a_loader_that_says_where_it_is_goes_on_there_with_the_same_order():
    def loader():
        return adapters_lightning.Resumable(DataLoader(range(20), batch_size=3, shuffle=True))

    torch.manual_seed(5)
    whole = [batch.tolist() for batch in loader()]
    torch.manual_seed(5)
    first = loader()
    seen = iter(first)
    begun = [next(seen).tolist() for _ in range(3)]
    state = first.state_dict()
    torch.manual_seed(random.randrange(1000))
    second = loader()
    second.load_state_dict(state)
    assert begun + [batch.tolist() for batch in second] == whole


def test_a_loader_without_a_length_is_refused_for_lightning():
    with pytest.raises(InvalidRequest, match="length"):
        adapters_lightning.Resumable(iter([1]))
