"""Peers by the names that `fabric simulate --policy` takes."""

from collections.abc import Callable
from typing import Final

from fabric.simulation.peers.easy import Easy, NoisyEasy
from fabric.simulation.peers.fair import KaiLike, KueueFair
from fabric.simulation.peers.gfs import Gfs
from fabric.simulation.peers.in_line import BestEffort, Fifo, ShortestFirst
from fabric.simulation.peers.least_loss import LeastLoss
from fabric.simulation.peers.preempting import KueueClassic, YoungestFirst
from fabric.simulation.peers.shares_of_time import Gavel, Themis
from fabric.simulation.peers.slurm import Slurm
from fabric.simulation.peers.tiresias import Tiresias
from fabric.simulation.world import Policy

KINDS: Final[tuple[Callable[[], Policy], ...]] = (
    Fifo, BestEffort, ShortestFirst, Easy, NoisyEasy, Slurm, KueueClassic, KueueFair, KaiLike, YoungestFirst, LeastLoss,
    Gfs, Tiresias, Gavel, Themis,
)  # fmt: skip
PEERS: Final = {make().name: make for make in KINDS}
