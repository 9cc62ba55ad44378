"""What a plan's file says of invoices that aren't paid."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from fabric.charging.catalogue import Dunning
from fabric.config.sections import Section


class DunningSection(Section):
    """What becomes of invoices that aren't paid, in days."""

    due_days: Annotated[int, Field(ge=0, le=365)]
    remind_days: tuple[Annotated[int, Field(ge=0, le=365)], ...] = ()
    """After they were due."""
    stop_days: Annotated[int, Field(ge=0, le=365)] | None = None
    """After they were due: nothing more is held on credit."""
    park_days: Annotated[int, Field(ge=0, le=365)] | None = None
    """Their account is suspended, and what runs saves and is parked."""
    close_days: Annotated[int, Field(ge=0, le=3_650)] | None = None
    """Their account is closed; what is left of its tokens is forfeited."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        steps = [each for each in (self.stop_days, self.park_days, self.close_days) if each is not None]
        if steps != sorted(steps):
            raise ValueError(
                "an account has no more credit, then is parked, then closed: stop_days <= park_days <= close_days"
            )
        return self

    def built(self) -> Dunning:
        return Dunning(
            due_days=self.due_days,
            remind_days=tuple(sorted(set(self.remind_days))),
            stop_days=self.stop_days,
            park_days=self.park_days,
            close_days=self.close_days,
        )
