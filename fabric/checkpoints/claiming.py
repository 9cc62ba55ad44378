"""Who may append to a job's log: decided from what the log says, and from who asks. Pure."""

from dataclasses import dataclass, replace

from fabric.checkpoints.log import View
from fabric.checkpoints.records import Claim, Record
from fabric.errors import Conflict


@dataclass(frozen=True, slots=True)
class Writer:
    """One process of one attempt."""

    epoch: int
    """Of the lease; 0 = one more than the last."""
    attempt: str
    id: str

    def after(self, view: View) -> "Writer":
        """With the epoch that it claims."""
        return self if self.epoch else replace(self, epoch=_highest(view) + 1)


def claim_after(view: View, writer: Writer, *, prefix: str, yields: bool = False) -> Claim:
    """The claim to append, if the writer may. With `yields` it takes it over from nobody of its own attempt.

    Raises:
        Conflict: a newer attempt has begun (`fenced`), another of this epoch has (`already_claimed`), or this writer's
            own claim was followed by another rank's; or one of its attempt has claimed before, and it yields (`fenced`).
    """
    writer, highest = writer.after(view), _highest(view)
    if highest > writer.epoch:
        raise fenced(writer, f"attempt {highest} has begun")
    if any(found.writer == writer.id for found in view.standing):
        raise fenced(writer, "another rank of it has claimed")
    if yields and any(found.epoch == writer.epoch != 0 for found in view.standing):
        raise fenced(writer, "another process of it saves by itself")
    others = [found.attempt for found in view.standing if found.epoch == writer.epoch != 0]
    if by := next((attempt for attempt in others if attempt != writer.attempt), ""):
        raise Conflict(
            f"attempt {writer.epoch} is already claimed by {by}, so {writer.attempt} can't resume the job: of two that race"
            " one wins, end this one",
            code="already_claimed",
            epoch=writer.epoch,
            by=by,
        )
    return Claim(
        prefix=prefix,
        slot=view.head + 1,
        epoch=writer.epoch,
        attempt=writer.attempt,
        writer=writer.id,
        stands=tuple(sorted(found.slot for found in view.manifests)),
    )


def admitted(view: View, writer: Writer) -> Claim:
    """The writer's claim, if nothing was appended since but by itself.

    Raises:
        Conflict: somebody else has claimed, or rolled back, or may have (`fenced`).
    """
    claim = view.claim
    if claim is None or claim.writer != writer.id:
        raise fenced(writer, "its claim is gone" if claim is None else _begun(claim))
    for found in view.standing:
        if found.slot > claim.slot and found.writer != writer.id:
            raise fenced(writer, _begun(found))
    if view.damaged and view.damaged[0] > claim.slot:
        raise fenced(writer, f"record {view.damaged[0]} is damaged, and may say that a newer one has begun")
    return claim


def fenced(writer: Writer, why: str) -> Conflict:
    """The refusal of a writer whose time is over."""
    return Conflict(
        f"attempt {writer.epoch} ({writer.attempt}) can't save: {why}; what the newer one saves counts",
        code="fenced",
        epoch=writer.epoch,
    )


def _highest(view: View) -> int:
    return max((found.epoch for found in view.standing), default=0)


def _begun(found: Record) -> str:
    return f"{found.attempt} of attempt {found.epoch} has begun"
