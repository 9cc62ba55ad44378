"""A witness of other people's logs (C2SP tlog-witness): it cosigns a checkpoint of a log that has only grown.

Whoever runs one sees to it that an operator shows everybody one history: a witness remembers the newest checkpoint of each log,
durably, and cosigns another only if a proof shows that it goes on from there. It is built on the verifier and needs nothing
else of the product, so that a customer, an auditor or a peer runs it anywhere. `requests` has what a log asks of one.
"""

from fabric.audit.witness.cosigner import Cosigner
from fabric.audit.witness.kept import Kept
from fabric.audit.witness.server import WitnessServer
from fabric.audit.witness.witness import Witness

__all__ = ["Cosigner", "Kept", "Witness", "WitnessServer"]
