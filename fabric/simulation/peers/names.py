"""Peers by the names that `fabric simulate --policy` takes."""

from collections.abc import Callable
from typing import Final

from fabric.simulation.peers.easy import Easy, NoisyEasy
from fabric.simulation.peers.in_line import BestEffort, Fifo, ShortestFirst
from fabric.simulation.peers.least_loss import LeastLoss
from fabric.simulation.peers.preempting import KueueClassic, YoungestFirst
from fabric.simulation.peers.tiresias import Tiresias
from fabric.simulation.world import Policy

PEERS: Final[dict[str, Callable[[], Policy]]] = {
    "fifo": Fifo,
    "best-effort": BestEffort,
    "sjf": ShortestFirst,
    "easy": Easy,
    "easy-noisy": NoisyEasy,
    "kueue": KueueClassic,
    "youngest-first": YoungestFirst,
    "least-loss": LeastLoss,
    "tiresias": Tiresias,
}
