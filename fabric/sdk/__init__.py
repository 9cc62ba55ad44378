"""The Python SDK: connect, quote, submit, and a future-like `Job`. Knows only the wire.

    import fabric

    fabric.connect()
    job = fabric.submit(train, corpus, tokens="0.5", accelerators="H100:2")
    print(job.result(), job.cost().burned_ct)

`tokens=` is the most a job may burn: an integer, a decimal string or a Decimal, never a float.
"""

from fabric.sdk.answers import Balance, Cost, FetchedCheckpoint, Purchase, Quote
from fabric.sdk.fabric import Fabric, connect, current
from fabric.sdk.job import Job
from fabric.sdk.lease import Lease
from fabric.sdk.options import Limits, Resources
from fabric.sdk.payment import Payment

__all__ = [
    "Balance",
    "Cost",
    "Fabric",
    "FetchedCheckpoint",
    "Job",
    "Lease",
    "Limits",
    "Payment",
    "Purchase",
    "Quote",
    "Resources",
    "connect",
    "current",
]
