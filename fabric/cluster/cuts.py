"""What the machines of one lease say of its use, as one sample."""

from collections.abc import Iterable

from fabric.gate.events import Sample
from fabric.node.agent import Cut
from fabric.units import LeaseId


def merged(cuts: Iterable[Cut]) -> list[Sample]:
    """The samples of a lease's machines, those of one seq together: device time adds up, wall time doesn't."""
    by_seq: dict[int, list[Cut]] = {}
    for cut in cuts:
        by_seq.setdefault(cut.seq, []).append(cut)
    return [
        Sample(
            lease_id=LeaseId(same[0].lease_id),
            seq=seq,
            window_us=max(cut.window_us for cut in same),
            busy_us=sum(cut.busy_us for cut in same),
            estimated=any(cut.estimated for cut in same),
        )
        for seq, same in sorted(by_seq.items())
    ]
