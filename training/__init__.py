"""Training on preemptible leases. Knows torch; does not know how tokens are kept."""
