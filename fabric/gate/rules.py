"""By which rules version the gate decides (`fabric.versions`), and how it goes over to another."""

from fabric import versions
from fabric.gate import refusals
from fabric.gate.core import Core
from fabric.gate.events import AdoptRules
from fabric.gate.instructions import Accepted, Outcome


def adopt(core: Core, event: AdoptRules) -> Outcome:
    """Decide by these from the next event on."""
    if not core.state.rules <= event.rules <= versions.RULES:
        return refusals.conflict(
            f"the journal is decided by rules {core.state.rules}, and this version knows those up to {versions.RULES}, not"
            f" {event.rules}",
            code="unknown_rules",
            rules=event.rules,
            known=versions.RULES,
        )
    core.state.rules = event.rules
    return Accepted()
