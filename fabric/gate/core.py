"""The engines behind the gate, and what the event in hand has led to so far.

One `Core` lives as long as the gate; `begin` clears the desk for the next event. The functions of the sibling modules
work on it, so that none of them owns the state and each can be read alone.
"""

from fabric.charging.catalogue import Catalogue
from fabric.charging.records import Cdr
from fabric.charging.tariffs import Tariffs
from fabric.gate.instructions import AnyInstruction
from fabric.gate.lifecycle import TRANSITIONS, Trigger
from fabric.gate.state import GateState, Job
from fabric.placement import Planner
from fabric.units import AccountId, JobId


class Core:
    """State, ledger and planner, with the instructions and records of the current event."""

    __slots__ = ("book", "changed", "freed", "instructions", "now_us", "planner", "records", "state")

    def __init__(self, state: GateState) -> None:
        self.state = state
        self.book = state.book
        self.planner = Planner(state.placement)
        self.now_us = state.now_us
        self.instructions: list[AnyInstruction] = []
        self.records: list[Cdr] = []
        self.freed: dict[AccountId, None] = {}
        """Accounts that have more free tokens than before this event: their waiting jobs may go on."""
        self.changed: dict[JobId, None] = {}
        """Jobs that changed since somebody last looked: for those who watch, not part of the state."""

    def begin(self, now_us: int) -> None:
        """Clear the desk. Time never runs backwards in here, whatever the caller's clock does."""
        self.now_us = self.state.now_us = max(now_us, self.state.now_us)
        self.instructions = []
        self.records = []
        self.freed = {}

    @property
    def tariffs(self) -> Tariffs:
        assert self.state.tariffs is not None, "the gate is configured before anything is submitted"
        return self.state.tariffs

    @property
    def catalogue(self) -> Catalogue:
        assert self.state.catalogue is not None, "the gate is configured before anything is sold"
        return self.state.catalogue

    def move(self, job: Job, trigger: Trigger, *, reason: str = "") -> None:
        """Take the one transition that the table allows, and say why."""
        job.state = TRANSITIONS[job.state, trigger]
        job.reason = reason
        self.touch(job)

    def touch(self, job: Job) -> None:
        """Whoever watches this job is told."""
        self.state.revision += 1
        job.revision = self.state.revision
        self.changed[job.job_id] = None
