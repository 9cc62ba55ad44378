"""On every machine: the agent that meters leases, installs their packages and ends their processes."""
