"""A small language model over bytes, trained on a text that every machine has: the source of Python's own library.

Real work for the demo and for the tests of stopping and resuming: a Llama of some 250 thousand parameters, on one
CPU thread or one CUDA device. Every step is a function of the weights, the seed and the step's number, so a run that was
stopped, saved and resumed ends with the same weights as one that was not, bit for bit on the same machine. It knows the
fabric only through `fabric.context`, and runs the same outside of it.
"""

import hashlib
import io
import math
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from fabric import context
from training.export import VOCABULARY, export_llama
from training.llama import Llama, Shape

CONTEXT: Final = 96
"""Bytes the model sees at once."""
BATCH: Final = 24
_LEARNING_RATE: Final = 2e-3
_WARMUP_STEPS: Final = 20
_HELD_OUT: Final = 10
"""Every tenth file is read for measuring only."""
_MEASURED: Final = 64
"""Windows a measurement reads."""
_SAY_EVERY: Final = 10

Report = dict[str, int | float]


def train(
    *,
    steps: int = 150,
    seed: int = 0,
    minutes: float | None = None,
    wait_ratio: float = 0.0,
    save_every: int = 50,
    report: Callable[[Report], None] | None = None,
    export_to: str | None = None,
) -> dict[str, int | float | str]:
    """Train for `steps` steps or `minutes`, whichever ends first; about 0.1 s a step on one core.

    `wait_ratio` is the share of the time that goes by waiting for data, as with a slow source (0 ≤ wait_ratio < 1).
    `save_every` counts the steps between checkpoints, beside the one made when the job is asked to stop. `report` is
    given the step, the loss in bits per byte and the speed now and then; None = a line on stdout. `export_to` names a
    folder for the trained model in Hugging Face's format, ready to be served.

    Returns:
        What came of it: `bits_per_byte_before`, `bits_per_byte_after` (on files it never trained on), `steps`,
        `parameters`, `bytes_per_s`, `waited_s`, `resumed_at_step`, `device` and `weights_sha256`.
    """
    if not 0 <= wait_ratio < 1:
        raise ValueError(f"wait_ratio is {wait_ratio}: it must be at least 0 and less than 1")
    torch.set_num_threads(1)
    job = context.current()
    run = Run.begin(seed=seed, saved=job.load())
    started, first_step, waited_s = time.monotonic(), run.step, 0.0
    while run.step < steps and (minutes is None or time.monotonic() - started < minutes * 60):
        if job.stop_requested:
            job.save(run.dump(), step=run.step)
            job.park()
        began = time.monotonic()
        bits = run.advance()
        busy_s = time.monotonic() - began
        if wait_ratio:
            waited_s += _wait(job, busy_s * wait_ratio / (1 - wait_ratio))
        if run.step % save_every == 0:
            job.save(run.dump(), step=run.step)
        if run.step % _SAY_EVERY == 0 or run.step == steps:
            (report or _say)({"step": run.step, "bits_per_byte": bits, "bytes_per_s": round(BATCH * CONTEXT / busy_s)})
    if export_to is not None:
        export_llama(Path(export_to), run.model)
    took_s = max(time.monotonic() - started, 1e-9)
    return {
        "steps": run.step,
        "parameters": sum(weight.numel() for weight in run.model.parameters()),
        "bits_per_byte_before": run.bits_before,
        "bits_per_byte_after": run.measure(),
        "bytes_per_s": round((run.step - first_step) * BATCH * CONTEXT / took_s),
        "waited_s": round(waited_s, 3),
        "resumed_at_step": first_step,
        "device": str(run.device),
        "weights_sha256": run.digest(),
    }


def train_waiting(*, steps: int = 150, seed: int = 0, minutes: float | None = None) -> dict[str, int | float | str]:
    """The same work, on a source so slow that half of the time goes by waiting for it."""
    return train(steps=steps, seed=seed, minutes=minutes, wait_ratio=0.5)


@dataclass(slots=True)
class Run:
    """A model in training: everything that a checkpoint has to bring back."""

    model: Llama
    optimizer: torch.optim.Optimizer
    device: torch.device
    seed: int
    step: int
    bits_before: float

    @classmethod
    def begin(cls, *, seed: int, saved: bytes | None = None) -> "Run":
        """A fresh run, or the one that was saved, at the step where it was."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Llama(Shape(vocabulary=VOCABULARY))
            model.begin()
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
        run = cls(model=model, optimizer=optimizer, device=device, seed=seed, step=0, bits_before=0.0)
        if saved is None:
            run.bits_before = run.measure()
        else:
            run._restore(saved)
        return run

    def advance(self) -> float:
        """One step; the loss in bits per byte."""
        windows = _windows(_files(held_out=False), count=BATCH, seed=self.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * min(1.0, (self.step + 1) / _WARMUP_STEPS)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(windows)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return _bits(loss)

    def measure(self) -> float:
        """Bits per byte on held-out files: 8.0 is knowing nothing."""
        with torch.inference_mode():
            return _bits(self._loss(_windows(_files(held_out=True), count=_MEASURED, seed=7)))

    def digest(self) -> str:
        """The sha256 of all weights: two runs that agree on it agree on every bit."""
        whole = hashlib.sha256()
        for name, weight in self.model.state_dict().items():
            whole.update(name.encode())
            whole.update(weight.detach().cpu().contiguous().numpy().tobytes())
        return whole.hexdigest()

    def dump(self) -> bytes:
        """All of it, to resume from."""
        kept = io.BytesIO()
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "seed": self.seed,
                "step": self.step,
                "bits_before": self.bits_before,
            },
            kept,
        )
        return kept.getvalue()

    def _restore(self, saved: bytes) -> None:
        kept: dict[str, Any] = torch.load(io.BytesIO(saved), map_location=self.device, weights_only=True)
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.seed, self.step, self.bits_before = kept["seed"], kept["step"], kept["bits_before"]

    def _loss(self, windows: Tensor) -> Tensor:
        windows = windows.to(self.device)
        logits = self.model(windows[:, :-1])
        return functional.cross_entropy(logits.reshape(-1, VOCABULARY), windows[:, 1:].reshape(-1))


def _bits(loss: Tensor) -> float:
    nats: float = loss.item()
    return round(nats / math.log(2), 4)


def _files(*, held_out: bool) -> list[Path]:
    """The standard library's own modules, in order of name; long enough for a window."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted(path for path in library.glob("*.py") if path.stat().st_size > CONTEXT)
    return [path for at, path in enumerate(modules) if (at % _HELD_OUT == 0) == held_out]


def _windows(files: list[Path], *, count: int, seed: int) -> Tensor:
    """`count` windows of CONTEXT + 1 bytes, read from the files at places that only the seed decides."""
    dice = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        path = files[int(torch.randint(len(files), (1,), generator=dice))]
        start = int(torch.randint(path.stat().st_size - CONTEXT, (1,), generator=dice))
        with path.open("rb") as file:
            file.seek(start)
            rows.append(torch.frombuffer(bytearray(file.read(CONTEXT + 1)), dtype=torch.uint8))
    return torch.stack(rows).long()


def _wait(job: context.Context, seconds: float) -> float:
    """Wait as for a slow network, but not past being asked to stop; the seconds it took."""
    began = time.monotonic()
    job.wait_for_stop(seconds)
    return time.monotonic() - began


def _say(said: Report) -> None:
    sys.stdout.write(
        f"step {said['step']:>4}  {said['bits_per_byte']:.3f} bits/byte  {said['bytes_per_s']:>6} bytes/s\n"
    )
    sys.stdout.flush()
