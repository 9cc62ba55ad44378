"""What a lot of tokens may be spent on.

A `Scope` restricts a lot; a `Use` says what a hold is for. An empty tuple means "anything". A use may name several
accelerators or operators because it is not yet known where the work will run: the scope must then admit all of them.
"""

from enum import StrEnum

import msgspec


class Service(StrEnum):
    """The class of service that tokens buy."""

    TRAINING = "training"
    BATCH = "batch"
    INFERENCE = "inference"


class Use(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a hold is for: one service, and every accelerator, model or operator that it may end up on."""

    service: Service
    accelerators: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()


class Scope(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a lot may be spent on; () is no restriction."""

    services: tuple[Service, ...] = ()
    accelerators: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()

    def admits(self, use: Use) -> bool:
        """Whether every place that `use` names lies within this scope. A use that names none needs no restriction."""
        return (
            (not self.services or use.service in self.services)
            and _covers(self.accelerators, use.accelerators)
            and _covers(self.models, use.models)
            and _covers(self.operators, use.operators)
        )

    @property
    def narrowness(self) -> int:
        """How many of the four ways to be restricted this scope uses: narrower lots burn first."""
        return sum(1 for allowed in (self.services, self.accelerators, self.models, self.operators) if allowed)

    @property
    def text(self) -> str:
        """For people: "anything", or what is allowed, as in "inference on H100|A100 for qwen3"."""
        services, accelerators = "|".join(self.services), "|".join(self.accelerators)
        models, operators = "|".join(self.models), "|".join(self.operators)
        words = (
            services,
            accelerators and f"on {accelerators}",
            models and f"for {models}",
            operators and f"at {operators}",
        )
        return " ".join(word for word in words if word) or "anything"


def _covers(allowed: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    return not allowed or (bool(wanted) and all(name in allowed for name in wanted))


ANYTHING = Scope()
