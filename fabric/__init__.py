"""Compute tokens on Ray: submit a job, pay for it in tokens, watch it burn."""
