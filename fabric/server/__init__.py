"""The gate's process: the actor, its gRPC server, its handle, and the stores it is wired to."""
