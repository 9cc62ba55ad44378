"""The learning rate of a run whose batch grows and shrinks with its gang.

`run.batches(dataset, global_batch=N)` needs nothing of this: a step sees N samples on any number of devices. In a loop of one's
own over a loader of each rank's, a step sees as many as there are ranks, and whoever wants the rate to follow says so:

    from training.learning_rate import ScaledRate

    batch = loader.batch_size * world
    sched = ScaledRate(cosine, batch=batch, base_batch=256, rule="linear", warmup_steps=500)
    run = session(model=model, opt=opt, sched=sched)

The rate is the schedule's times a factor: with "linear" the ratio of the batches (Goyal et al. 2017, "Accurate, Large Minibatch SGD",
arXiv 1706.02677, with their gradual warm-up; meant for SGD), with "square-root" its root (Krizhevsky 2014, "One weird trick for
parallelizing convolutional neural networks", arXiv 1404.5997; Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive
Gradient Algorithms", arXiv 2205.10287, for Adam). At the start and whenever the batch is another one, the factor goes to its new
value in a straight line over `warmup_steps`. It depends on nothing but the steps at which the batch changed, which are kept in
checkpoints: evictions between them change no bit. No rule makes a run with another batch the same run.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from fabric.errors import InvalidRequest

_POWERS: Final = {"linear": 1.0, "square-root": 0.5}
_SETTINGS: Final = ("batch", "base_batch", "rule", "warmup_steps")


class ScaledRate:
    """A schedule of torch's, or an optimizer's constant rate, that follows the batch. `session(sched=...)` takes it as any other."""

    def __init__(self, schedule: Any, *, batch: int, base_batch: int, rule: str, warmup_steps: int) -> None:
        """The rates that the optimizer's groups have now are those for `base_batch`.

        Args:
            schedule: an `LRScheduler`, or an optimizer whose rate is constant.
            batch: samples that a step sees now, over all ranks.
            base_batch: samples that the schedule's rate is meant for.
            rule: "linear" or "square-root".
            warmup_steps: steps until a new factor is reached; 0 = at once.

        Raises:
            InvalidRequest: `rate_rule_invalid`.
        """
        self._settings = _checked(batch=batch, base_batch=base_batch, rule=rule, warmup_steps=warmup_steps)
        self.optimizer = getattr(schedule, "optimizer", schedule)
        self._schedule = None if schedule is self.optimizer else schedule
        self._steps, self._since, self._from = 0, 0, 1.0
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._apply()

    @property
    def factor(self) -> float:
        """What the schedule's rate is multiplied with now."""
        aim = (self._settings["batch"] / self._settings["base_batch"]) ** _POWERS[self._settings["rule"]]
        passed, warmup = self._steps - self._since, self._settings["warmup_steps"]
        return float(aim if passed >= warmup else self._from + (aim - self._from) * (passed / warmup))

    def step(self, *args: Any, **kwargs: Any) -> None:
        """A step is done: the schedule's own `step`, and one step of a warm-up."""
        groups = self.optimizer.param_groups
        self._rates += [float(group["lr"]) for group in groups[len(self._rates) :]]
        self._set(self._rates)
        if self._schedule is not None:
            self._schedule.step(*args, **kwargs)
        self._rates = [float(group["lr"]) for group in groups]
        self._steps += 1
        self._apply()

    def resize(self, batch: int) -> None:
        """From now on a step sees so many samples; the same as going on from a checkpoint with another `batch`."""
        if batch != self._settings["batch"]:
            self._from, self._since = self.factor, self._steps
            self._settings = _checked(**self._settings | {"batch": batch})
            self._apply()

    def get_last_lr(self) -> list[Any]:
        """The rates now, by group of the optimizer."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Also the batch, so that another one is noticed."""
        inner = None if self._schedule is None else self._schedule.state_dict()
        told = {"steps": self._steps, "since": self._since, "from": self._from, "rates": list(self._rates)}
        return told | self._settings | {"schedule": inner}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there, with the settings of now: what they change begins with a warm-up."""
        now, self._settings = self._settings, {name: state[name] for name in _SETTINGS}
        if self._schedule is not None and state["schedule"] is not None:
            self._schedule.load_state_dict(state["schedule"])
        self._steps, self._since, self._from = state["steps"], state["since"], state["from"]
        self._rates = list(state["rates"])
        if now != self._settings:
            self._from, self._since, self._settings = self.factor, self._steps, now
        self._apply()

    def _apply(self) -> None:
        factor = self.factor
        self._set([rate * factor for rate in self._rates])

    def _set(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            if hasattr(group["lr"], "fill_"):  # a tensor, as compiled optimizers want it
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def _checked(**settings: Any) -> dict[str, Any]:
    if settings["rule"] not in _POWERS:
        raise _invalid(f"rule {settings['rule']!r}: use {' or '.join(_POWERS)}")
    for name, least in (("batch", 1), ("base_batch", 1), ("warmup_steps", 0)):
        value = settings[name]
        if type(value) is not int or value < least:
            raise _invalid(f"{name} is {value!r}: use a whole number, at least {least}")
    if not math.isfinite(settings["batch"] / settings["base_batch"]):
        raise _invalid(f"a batch of {settings['batch']} for one of {settings['base_batch']} has no ratio")
    return settings


def _invalid(why: str) -> InvalidRequest:
    return InvalidRequest(f"the learning rate can't follow the batch: {why}", code="rate_rule_invalid")
