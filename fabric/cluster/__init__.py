"""The gate's hands on Ray: leases are built, run, stopped and reported."""
