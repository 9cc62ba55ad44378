"""The placement gate: where tokens and placement meet. Pure; knows no Ray, no clock, no journal and no network."""

from fabric.gate.gate import Gate

__all__ = ["Gate"]
