"""Lanes: waiting jobs that are alike, so that one that doesn't fit says the same of all others."""

from collections import OrderedDict

from fabric.placement.fitting import Group, Shape
from fabric.placement.jobs import Request
from fabric.placement.state import Queued
from fabric.units import AccountId, Fraction, JobId, NodeId

Head = tuple[int, tuple[int, int], AccountId]
"""Who is next of an account: its payer's key, the job's order, and whose it is."""
_Elastic = tuple[int, tuple[tuple[str, int], ...]] | None
_Patient = tuple[NodeId, ...]
_Choosy = tuple[int, tuple[tuple[str, ...], ...]] | None
_Barred = tuple[str, ...]
_Wishing = tuple[()] | tuple[str, tuple[tuple[str, int], ...]]
LaneKey = tuple[
    int,
    int,
    int | None,
    tuple[str, ...],
    bool,
    bool,
    str,
    _Elastic,
    _Choosy,
    _Patient,
    _Barred,
    Fraction | None,
    _Wishing,
]
_ALWAYS_TOLD = 7
"""Parts of a lane's key that its name always has; what few jobs ask for is only named where they do."""


class Lane:
    """Waiting jobs that are alike."""

    __slots__ = (
        "account_id",
        "ages",
        "fraction",
        "groups",
        "heads",
        "heard",
        "jobs",
        "lines",
        "mixes",
        "name",
        "parked",
        "rank",
        "seen",
        "shape",
        "typed",
    )

    def __init__(self, key: LaneKey, request: Request) -> None:
        self.rank = key[0]
        self.typed = bool(key[3])
        """Whether its jobs name their types."""
        self.account_id = AccountId(key[6])
        """Whose its jobs are, if that has nodes of its own, or a quota; else ""."""
        told: tuple[object, ...] = key
        while len(told) > _ALWAYS_TOLD and not told[-1]:
            told = told[:-1]
        self.name = "|".join(map(str, told))
        self.shape = Shape.of(request)
        self.mixes = bool(request.mixtures)
        """Whether its gangs may be of several groups, so that any room counts."""
        self.fraction = request.fraction
        """What its jobs have of one device, which may be free where no whole one is."""
        self.jobs: OrderedDict[JobId, Queued] = OrderedDict()
        """All of them, in order of arrival, those with a claim included."""
        self.heads: list[Head] = []
        self.heard = 0
        """Of how many keys that became less `heads` knows."""
        self.lines: dict[AccountId, list[tuple[tuple[int, int], JobId]]] = {}
        self.ages: list[tuple[tuple[int, int], JobId]] = []
        """Those in line by who came first, whatever their accounts have used; and some that have left it."""
        self.parked = False
        self.groups: tuple[Group, ...] = ()
        """Where its jobs may go, best first."""
        self.seen = -1
        """The version of the cluster's groups that `groups` was made from."""

    @property
    def least(self) -> int:
        """With fewer free devices in a group than this, none of its jobs can have anything there."""
        return 0 if self.mixes or self.fraction else self.shape.devices

    @property
    def wants(self) -> int:
        """How many devices all its jobs have at the least, each on as full ones as there can be."""
        if self.fraction is not None:
            return -(-len(self.jobs) * self.fraction[0] // self.fraction[1])
        return len(self.jobs) * self.shape.devices

    def is_at_home(self, group: Group) -> bool:
        """Whether its jobs have a right to what the group lends."""
        return group.pool != "spot" and group.is_home_of(self.account_id, self.rank)

    def weigh_on_groups(self, change: int) -> None:
        """It is parked, or isn't any more."""
        for group in self.groups:
            group.wanted += change * self.is_at_home(group)
            group.typed += change * self.typed
