"""One replica: an engine in its lease, its listener, what it was told and what it loads."""
