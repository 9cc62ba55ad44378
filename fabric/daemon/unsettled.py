"""What replicas of this machine have served and the ledger has not heard of: it is in their outboxes, and told at the next
start.
"""

from pathlib import Path

from fabric.errors import Conflict, Unavailable


def unsettled_calls(state_dir: Path) -> int:
    """Calls in the outboxes that no replica has open."""
    from serving.metering.call_log import CallLog  # noqa: PLC0415 - most fabrics serve no models

    count = 0
    for file in sorted((state_dir / "serving").glob("*.outbox")):
        try:
            outbox = CallLog(file)
        except (Conflict, Unavailable):  # its replica lives, and settles it itself
            continue
        count += sum(len(each.calls) for each in outbox.unsettled)
        outbox.close()
    return count
