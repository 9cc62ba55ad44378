"""The life of a job as a table: which trigger leads from which state to which, and nothing else does.

            ┌────────────── lost, evicted ──────────────┐
            ▼                                           │
    submit ▸ QUEUED ─place▸ STARTING ─started▸ RUNNING ─stop▸ STOPPING ─saved▸ PARKED ─resume▸ QUEUED
                                                │                │
                                                └─ succeeded, failed, cancelled ─▸ (terminal)

A job that is asked to stop may still finish on its own: what it did counts, so STOPPING leads to SUCCEEDED too.
"""

from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    QUEUED = "queued"
    """Its tokens are held; it waits for devices."""
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    """Asked to checkpoint; it has until its deadline."""
    PARKED = "parked"
    """Saved and off its devices, waiting for tokens, a raised limit, or a word from its owner."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Trigger(StrEnum):
    PLACE = "place"
    STARTED = "started"
    STOP = "stop"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REQUEUE = "requeue"
    """The attempt is over, the job is not: evicted, lost with its node, or tried again."""
    PARK = "park"
    RESUME = "resume"


TERMINAL: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
ON_DEVICES: Final = frozenset({JobState.STARTING, JobState.RUNNING, JobState.STOPPING})

TRANSITIONS: Final[dict[tuple[JobState, Trigger], JobState]] = {
    (JobState.QUEUED, Trigger.PLACE): JobState.STARTING,
    (JobState.QUEUED, Trigger.PARK): JobState.PARKED,
    (JobState.QUEUED, Trigger.CANCELLED): JobState.CANCELLED,
    (JobState.STARTING, Trigger.STARTED): JobState.RUNNING,
    (JobState.PARKED, Trigger.RESUME): JobState.QUEUED,
    (JobState.PARKED, Trigger.CANCELLED): JobState.CANCELLED,
    **{
        (on_devices, trigger): target
        for on_devices in (JobState.STARTING, JobState.RUNNING, JobState.STOPPING)
        for trigger, target in (
            (Trigger.STOP, JobState.STOPPING),
            (Trigger.SUCCEEDED, JobState.SUCCEEDED),
            (Trigger.FAILED, JobState.FAILED),
            (Trigger.CANCELLED, JobState.CANCELLED),
            (Trigger.REQUEUE, JobState.QUEUED),
            (Trigger.PARK, JobState.PARKED),
        )
    },
}


class StopReason(StrEnum):
    """Why a job is asked to stop. All arrive at the job as one thing: checkpoint and end."""

    EVICTED = "evicted"
    RESIZED = "resized"
    """An elastic gang that begins anew with more devices, since some are idle and nobody waits for them."""
    LIMIT_REACHED = "limit_reached"
    OUT_OF_TOKENS = "out_of_tokens"
    TOKENS_EXPIRED = "tokens_expired"
    """What it held while it waited in the queue has expired, and nothing else covered it."""
    SPENDING_LIMIT = "spending_limit"
    """What a limit of its key or account leaves in this period is used up: it goes on in the next one."""
    CANCELLED = "cancelled"
    PAUSED = "paused"
    """Its owner paused it; nothing else does."""
    SUSPENDED = "suspended"
    """Its account was: it goes on when that is resumed."""
    DRAINED = "drained"
    FABRIC_DOWN = "fabric_down"
    """The whole fabric goes down: it goes on when that is up again."""
    TIME_LIMIT = "time_limit"
    IDLE = "idle"
    """It left its devices idle for longer than its owner wants to pay for."""
    NO_ROOM = "no_room"
    """It keeps more than its account may keep, or than its node's disk can spare."""
    ASKED = "asked"
    """It wanted to: it saved and ended, which nobody had asked it to, and is queued anew."""
    STOPPED_TOO_OFTEN = "stopped_too_often"
    """It did so again and again and got no farther: it goes on when its owner says so."""


AFTER_STOP: Final[dict[StopReason, Trigger]] = {
    StopReason.EVICTED: Trigger.REQUEUE,
    StopReason.RESIZED: Trigger.REQUEUE,
    StopReason.DRAINED: Trigger.REQUEUE,
    StopReason.FABRIC_DOWN: Trigger.REQUEUE,
    StopReason.ASKED: Trigger.REQUEUE,
    StopReason.LIMIT_REACHED: Trigger.PARK,
    StopReason.OUT_OF_TOKENS: Trigger.PARK,
    StopReason.TOKENS_EXPIRED: Trigger.PARK,
    StopReason.SPENDING_LIMIT: Trigger.PARK,
    StopReason.PAUSED: Trigger.PARK,
    StopReason.SUSPENDED: Trigger.PARK,
    StopReason.TIME_LIMIT: Trigger.PARK,
    StopReason.IDLE: Trigger.PARK,
    StopReason.NO_ROOM: Trigger.PARK,
    StopReason.STOPPED_TOO_OFTEN: Trigger.PARK,
    StopReason.CANCELLED: Trigger.CANCELLED,
}
"""What becomes of a job that stopped because it was asked to."""
