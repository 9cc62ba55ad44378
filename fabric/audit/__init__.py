"""Proof: a tamper-evident tree over the journal, signed checkpoints, receipts, statements, and their offline verifier.

Works on leaves and hashes. Knows what a transfer and a charging record look like, but neither events, nor the gate, nor
where the journal is kept. `fabric.audit.verify` knows nothing of the rest at all: it is a second implementation.
"""
