"""Why a job waits: what it lacks, who is ahead of it, what would let it start. Facts, which somebody else makes words of.

Looks and changes nothing. It reads every waiting job once, so it is for people who ask, not for planning.
"""

from collections.abc import Iterator

import msgspec

from fabric.placement import mixture
from fabric.placement.cluster import Cluster
from fabric.placement.fitting import Group, Shape
from fabric.placement.jobs import Request
from fabric.placement.quota_terms import Used
from fabric.placement.quotas import Fairness, Policy
from fabric.placement.state import Claim, PlacementState, Queued
from fabric.units import Fraction, JobId


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What one group of nodes, where the job may go, has for it."""

    pool: str
    accelerator: str
    devices: int
    """Of the nodes that are up."""
    free: int
    most: int
    """The most that are free on one node."""
    most_part: Fraction | None = None
    """For a job that wants a part of one: the most that is free of a device that is divided."""
    withheld: str = ""
    """Why what is free isn't for the job: quota (somebody's that isn't lent) | headroom | inference_waits | owner_waits | reserved (for somebody who waited longer); "" = it is."""


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """What would let the job start at this moment if it had been asked for."""

    code: str
    """accelerator {accelerator} | preemptible | grace {grace_us} | devices {devices} | devices_per_node"""
    accelerator: str = ""
    amount: int = 0


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps a job waiting."""

    code: str
    """leaving (its devices are being left) | warmth (it waits for a preferred node) | quota (its account has as much as it may) | nowhere (no node takes it now) | line
    (others go before it) | reserved (its devices are collected) | room (too little is free)"""
    rank: int
    """Its class, best first."""
    needs: int
    each: int | None
    """Devices on each node, if it says so."""
    ahead: int
    """How many go before it, of these:"""
    better: int
    """of a better class,"""
    poorer: int
    """of its class, of payers who have had less of their share,"""
    own: int
    """of its own payer."""
    rooms: tuple[Room, ...] = ()
    short: int = 0
    """How many devices more must come free where it lacks least; 0 where the nodes' shape is what it lacks."""
    owed: int = 0
    """Devices that it gets as soon as they are left,"""
    leaving: tuple[JobId, ...] = ()
    """by these."""
    until_us: int | None = None
    """When it takes any node; or when devices are reserved for it, at the latest."""
    remedies: tuple[Remedy, ...] = ()
    fraction: Fraction | None = None
    """Of its one device it wants such a part."""
    quotas: tuple[Used, ...] = ()
    """The quotas that don't let it start, one for each type that it could have."""


class Inquiry:
    """The planner's state, to be asked about one job."""

    def __init__(self, state: PlacementState, cluster: Cluster, fairness: Fairness) -> None:
        self._state = state
        self._cluster = cluster
        self._fairness = fairness

    def waits(self, job_id: JobId, *, now_us: int) -> Waits | None:
        """What keeps the job waiting; None if it doesn't wait."""
        queued = self._state.queue.get(job_id)
        if queued is None:
            return None
        request, policy = queued.request, self._state.policy
        claim = self._state.claims.get(job_id)
        groups = self._cluster.groups_for(request, preemptible=queued.preemptible)
        rooms = tuple(self._room(group, queued, policy) for group in groups)
        ahead = (0, 0, 0, 0) if claim is not None else self._ahead(queued)
        limiting = [self._cluster.guarantees.limiting(group, queued, request.least) for group in groups]
        quotas = tuple(dict.fromkeys(used for used in limiting if used is not None))
        code, until_us = self._reason(queued, claim, groups, ahead[0], now_us)
        if code not in {"leaving", "nowhere"} and groups and None not in limiting:
            code, until_us = "quota", None
        usable = [room for room in rooms if not room.withheld]
        lacking = min((request.least - room.free for room in usable), default=request.least)
        return Waits(
            code=code,
            rank=queued.rank,
            needs=request.least,
            each=request.devices_per_node,
            ahead=ahead[0],
            better=ahead[1],
            poorer=ahead[2],
            own=ahead[3],
            rooms=rooms,
            short=max(lacking, 0),
            owed=0 if claim is None else claim.owed,
            leaving=() if claim is None else self._leaving(claim),
            until_us=until_us,
            remedies=() if claim is not None else tuple(self._remedies(queued)),
            fraction=request.fraction,
            quotas=quotas if code == "quota" else (),
        )

    def _reason(
        self, queued: Queued, claim: Claim | None, groups: tuple[Group, ...], ahead: int, now_us: int
    ) -> tuple[str, int | None]:
        request = queued.request
        warm_until_us = queued.queued_at_us + request.patience_us
        reserved_us = queued.queued_at_us + self._state.policy.waits_us[queued.rank]
        if claim is not None:
            return "leaving", None
        if not any(any(group.fit) for group in groups):
            return "nowhere", None
        if request.job_id in self._state.pins:
            return "reserved", None
        fits = self._fits(queued, groups)
        if fits and request.patience_us and request.prefers and now_us < warm_until_us:
            return "warmth", warm_until_us
        return ("line" if fits and ahead else "room"), reserved_us if reserved_us > now_us else None

    def _ahead(self, queued: Queued) -> tuple[int, int, int, int]:
        """How many go before the job: all, of better classes, of payers with less of their share, and of its own payer."""
        key_of, payer_of = self._fairness.key, self._fairness.payer
        account_id = queued.request.account_id
        mine = (queued.rank, key_of(account_id), queued.order)
        payer = payer_of(account_id)
        every = better = poorer = own = 0
        for job_id, other in self._state.queue.items():
            key = key_of(other.request.account_id)
            if (other.rank, key, other.order) >= mine or job_id in self._state.claims:
                continue
            every += 1
            if other.rank < queued.rank:
                better += 1
            elif payer_of(other.request.account_id) == payer:
                own += 1
            elif key < mine[1]:
                poorer += 1
        return every, better, poorer, own

    def _leaving(self, claim: Claim) -> tuple[JobId, ...]:
        """Who is to leave the claim's nodes."""
        found: dict[JobId, None] = {}
        for node_id, _ in claim.shares:
            node = self._state.nodes[node_id]
            found |= {job_id: None for job_id in node.shares if node.owed and self._state.running[job_id].evicting}
        return self._cluster.divided.jobs_of(found)

    def _room(self, group: Group, queued: Queued, policy: Policy) -> Room:
        withheld = ""
        least = queued.request.least
        if group.free and not group.is_home_of(queued.request.account_id, queued.rank):
            if group.wanted:
                withheld = "inference_waits" if group.owner is None else "owner_waits"
            elif group.owner is None and least <= group.free and self._is_kept(group, queued, policy):
                withheld = "headroom"
        kept = 0 if withheld else self._cluster.guarantees.kept(group, queued.request.account_id)
        if kept and group.free - kept < least <= group.free:
            withheld = "quota"
        if not withheld and group.pinned[queued.rank] and group.free >= least and self._find(group, queued) is None:
            withheld = "reserved"
        return Room(
            pool=group.pool,
            accelerator=group.accelerator,
            devices=sum(node.node.devices for node in group.nodes if node is not None and node.status == "up"),
            free=group.free,
            most=max((free for free, bits in enumerate(group.fit) if bits), default=0),
            most_part=None if queued.request.fraction is None else group.units.most(),
            withheld=withheld,
        )

    def _is_kept(self, group: Group, queued: Queued, policy: Policy) -> bool:
        """Whether what is free is kept for inference: the headroom, or what inference has just left."""
        return group.free - policy.headroom_devices < queued.request.least or (
            bool(group.kept) and self._find(group, queued) is None
        )

    def _fits(self, queued: Queued, groups: tuple[Group, ...]) -> bool:
        if any(self._find(group, queued) is not None for group in groups):
            return True
        return mixture.find(self._cluster, groups, queued) is not None

    def _find(self, group: Group, queued: Queued) -> object:
        return self._cluster.find(group, Shape.of(queued.request), queued)

    def _would(self, queued: Queued, request: Request, *, preemptible: bool | None = None) -> Group | None:
        """Where the job would fit now if it had asked so."""
        movable = queued.preemptible if preemptible is None else preemptible
        asked = msgspec.structs.replace(queued, request=request, preemptible=movable)
        groups = self._cluster.groups_for(request, preemptible=movable)
        return next((group for group in groups if self._find(group, asked) is not None), None)

    def _remedies(self, queued: Queued) -> Iterator[Remedy]:
        request = queued.request
        if self._would(queued, request) is not None:
            return
        if request.accelerators:
            elsewhere = self._would(queued, msgspec.structs.replace(request, accelerators=()))
            if elsewhere is not None:
                yield Remedy(code="accelerator", accelerator=elsewhere.accelerator)
        if not queued.preemptible and self._would(queued, request, preemptible=True) is not None:
            yield Remedy(code="preemptible")
        policy = self._state.policy
        for longest_us in sorted(policy.graces_us, reverse=True) if request.is_movable(queued.preemptible) else ():
            shorter = msgspec.structs.replace(request, grace_us=longest_us)
            if longest_us < request.grace_us and self._would(queued, shorter) is not None:
                yield Remedy(code="grace", amount=longest_us)
                break
        loose = msgspec.structs.replace(request, devices_per_node=None)
        if request.devices_per_node is not None and self._would(queued, loose) is not None:
            yield Remedy(code="devices_per_node")
        if (fewer := self._fewer(queued)) is not None:
            yield Remedy(code="devices", amount=fewer)

    def _fewer(self, queued: Queued) -> int | None:
        """With how many devices it could start; None if with none. What fits with more fits with fewer, so halving finds it."""
        request = queued.request
        step = request.devices_per_node or 1
        low, high = 0, request.least // step - 1
        while low < high:
            middle = (low + high + 1) // 2
            fewer = msgspec.structs.replace(request, devices=middle * step, devices_least=None)
            low, high = (middle, high) if self._would(queued, fewer) is not None else (low, middle - 1)
        return low * step or None
