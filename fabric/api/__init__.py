"""The doors: what the network may ask, who may ask it, and how a yes and a no are told. Knows the gate by its port alone."""

from fabric import quiet  # noqa: F401  # comes before whatever imports gRPC
