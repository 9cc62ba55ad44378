"""The process that keeps replicas and gateways: leases for them, scaling, ingress."""
