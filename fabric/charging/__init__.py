"""From what ran to what it costs: tariffs, the burn curve, rating, charging sessions, plans, charging records.

Pure and integer. Does not know accounts, lots or holds (that is the ledger), nor what a job is.
"""
