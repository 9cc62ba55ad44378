"""A Ray cluster that somebody else runs: two labelled nodes, until its standard input ends."""

import sys

from fabric.cluster.local import LocalCluster, LocalNode

NODES = (
    LocalNode(node_id="h100-1", accelerator="H100", devices=4),
    LocalNode(node_id="910b-1", accelerator="910B", devices=8),
)

if __name__ == "__main__":
    cluster = LocalCluster.start(nodes=NODES, namespace="theirs", loopback=False)
    print(cluster.address, cluster.dashboard_url, cluster.folder, flush=True)
    sys.stdin.read()
    cluster.stop()
