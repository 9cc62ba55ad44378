"""A small language model over bytes, trained on a text that every machine has: the source of Python's own library.

Real work for the demo and for the tests of stopping and resuming: a Llama of some 250 thousand parameters, on one CPU
thread or one device a rank. It is written as any script would be, with `training.session` around its loop: a step is four
micro-batches, which one rank or up to four may share, so it ends with the same weights however often it was evicted and on
however many devices it went on, bit for bit on machines of one kind. It runs the same outside the fabric.
"""

import hashlib
import json
import math
import os
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from fabric import context
from training import session
from training.demo.llama import Llama, Shape
from training.demo.llama_export import VOCABULARY, export_llama
from training.parcels import packed

CONTEXT: Final = 96
"""Bytes the model sees at once."""
BATCH: Final = 24
VIRTUAL: Final = 4
"""Micro-batches of a step: the most ranks that can share it."""
_LEARNING_RATE: Final = 2e-3
_WARMUP_STEPS: Final = 20
_HELD_OUT: Final = 10
"""Every tenth file is read for measuring only."""
_MEASURED: Final = 64
"""Windows a measurement reads."""
_SAY_EVERY: Final = 10
_SAMPLES: Final = 1_000_000
_PLACES: Final = 2**31 - 1


def train(
    *,
    steps: int = 150,
    seed: int = 0,
    wait_ratio: float = 0.0,
    export_to: str | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> dict[str, int | float | str]:
    """Train for `steps` steps in all; about 0.1 s a step on one core.

    `wait_ratio` is the share of the time that goes by waiting for data, as with a slow source (0 ≤ wait_ratio < 1).
    The trained model is published in Hugging Face's format, ready to be served, and written to the folder `export_to` if
    that is named. `directory` is where checkpoints go outside the fabric.

    Returns:
        What came of it: `bits_per_byte_before`, `bits_per_byte_after` (on files it never trained on), `steps`,
        `parameters`, `bytes_per_s`, `waited_s`, `resumed_at_step`, `device`, `ranks` and `weights_sha256`.
    """
    if not 0 <= wait_ratio < 1:
        raise ValueError(f"wait_ratio is {wait_ratio}: it must be at least 0 and less than 1")
    torch.set_num_threads(1)
    device = _device()
    model = _new_model(seed).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARMUP_STEPS))
    noted = {"bits_before": 0.0}
    source = Windows(seed=seed, wait_ratio=wait_ratio)
    with session(
        model=model, opt=optimizer, sched=warm_up, extra={"noted": noted}, directory=directory, clip_norm=1.0
    ) as run:
        if run.done == 0:
            noted["bits_before"] = measure(model)
        started, first_step = time.monotonic(), run.done
        batches = run.batches(source, global_batch=BATCH, epochs=None, virtual=VIRTUAL, seed=seed)
        for windows in batches if run.done < steps else ():
            loss = _loss(model, windows)
            run.step(loss)
            if run.done % _SAY_EVERY == 0 or run.done >= steps:
                run.log(loss=loss)
            if run.done >= steps:
                break
    took_s = max(time.monotonic() - started, 1e-9)
    if context.current().rank == 0:
        _export(model, export_to)
    return {
        "steps": run.done,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "bits_per_byte_before": noted["bits_before"],
        "bits_per_byte_after": measure(model),
        "bytes_per_s": round((run.done - first_step) * BATCH * CONTEXT / took_s),
        "waited_s": round(source.waited_s, 3),
        "resumed_at_step": first_step,
        "device": str(device),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "weights_sha256": digest(model),
    }


class Windows:
    """Windows of CONTEXT + 1 bytes, read from the files at places that only the seed and their number decide.

    A slow source lets whoever asks wait `wait_ratio` of the time, however fast it works.
    """

    def __init__(self, *, seed: int, wait_ratio: float = 0.0, held_out: bool = False) -> None:
        self.waited_s = 0.0
        self._seed, self._files = seed, _modules(held_out=held_out)
        self._wait = wait_ratio / (1 - wait_ratio)
        self._left: float | None = None

    def __len__(self) -> int:
        return _SAMPLES

    def __getitem__(self, number: int) -> Tensor:
        """Window `number` as int64 of shape (CONTEXT + 1,)."""
        if self._wait and self._left is not None:
            self._dawdle((time.monotonic() - self._left) * self._wait)
        digits = hashlib.sha256(f"{self._seed}/{number}".encode()).digest()
        path, size = self._files[int.from_bytes(digits[:8]) % len(self._files)]
        with path.open("rb") as file:
            file.seek(int.from_bytes(digits[8:16]) % (size - CONTEXT))
            window = torch.frombuffer(bytearray(file.read(CONTEXT + 1)), dtype=torch.uint8).long()
        self._left = time.monotonic()
        return window

    def _dawdle(self, seconds: float) -> None:
        began = time.monotonic()
        context.current().wait_for_stop(seconds)
        self.waited_s += time.monotonic() - began


def _modules(*, held_out: bool) -> list[tuple[Path, int]]:
    """The standard library's own modules with their sizes, in order of name; long enough for a window."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = [(path, path.stat().st_size) for path in sorted(library.glob("*.py"))]
    long = [module for module in modules if module[1] > CONTEXT]
    return [module for at, module in enumerate(long) if (at % _HELD_OUT == 0) == held_out]


def _export(model: Llama, export_to: str | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = export_llama(Path(export_to or place), model)
        context.current().publish(packed(folder))


def measure(model: Llama) -> float:
    """Bits per byte on held-out files: 8.0 is knowing nothing."""
    source = Windows(seed=7, held_out=True)
    with torch.inference_mode():
        loss: float = _loss(model, torch.stack([source[at] for at in range(_MEASURED)])).item()
    return round(loss / math.log(2), 4)


def digest(model: nn.Module) -> str:
    """The sha256 of all weights: two runs that agree on it agree on every bit."""
    whole = hashlib.sha256()
    for name, weight in model.state_dict().items():
        whole.update(name.encode())
        whole.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def _loss(model: Llama, windows: Tensor) -> Any:
    windows = windows.to(next(model.parameters()).device)
    logits = model(windows[:, :-1])
    return functional.cross_entropy(logits.reshape(-1, VOCABULARY), windows[:, 1:].reshape(-1))


def _new_model(seed: int) -> Llama:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Llama(Shape(vocabulary=VOCABULARY))
        model.begin()
    return model


def _device() -> torch.device:
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(train(steps=int(sys.argv[1]) if len(sys.argv) > 1 else 150), indent=2) + "\n")
