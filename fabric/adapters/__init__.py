"""The outside world behind the gate: the journal, the archive, Ray, meters and metrics.

Nothing is re-exported here, so that a job's own code can import the archive without bringing in Ray or a database.
"""
