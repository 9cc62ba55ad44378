"""A Ray cluster whose nodes come and go by words on standard input, and which tells which devices are taken.

Reads `kill NODE` and `add NODE`, answers each with a line (`no` for the node that this process itself is connected by), and ends with its standard input. Writes to the file that it is
given, some times a second, the clock, how many devices of each node Ray has given to somebody outside any lease, and who that
is: nobody, where Ray has not seen yet that they are free.
"""

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import ray
from ray._private.state import available_resources_per_node, total_resources_per_node
from ray.util import placement_group_table

from fabric.accelerators import DEVICE_RESOURCES
from fabric.cluster.local import LocalCluster, LocalNode
from fabric.inventory.nodes import NODE_LABEL
from fabric.inventory.ray_tables import RayTables

NODES = {
    node.node_id: node
    for node in (
        LocalNode(node_id="h100-1", accelerator="H100", devices=4),
        LocalNode(node_id="h100-2", accelerator="H100", devices=2),
        LocalNode(node_id="serves-1", accelerator="H100", devices=1, pool="reserved"),
        LocalNode(node_id="a100-1", accelerator="A100", devices=4),
        LocalNode(node_id="910b-1", accelerator="910B", devices=8),
    )
}
SERVES = "serves-1"
EVERY_S = 0.25
OURS = "fabric/"
"""What the names of the gate's placement groups begin with."""


def names_of(node):
    """What Ray calls its devices."""
    return (*DEVICE_RESOURCES, node.accelerator)


def taken():
    """Devices by node that Ray has given to somebody in no group of the gate's, which keeps its groups a while."""
    names = {each["NodeID"]: each["Labels"].get(NODE_LABEL, "") for each in ray.nodes() if each["Alive"]}
    free, found = available_resources_per_node(), {}
    for node_id, total in total_resources_per_node().items():
        node = NODES.get(names.get(node_id, ""))
        if node is not None and node_id in free:
            found[node.node_id] = {name: total.get(name, 0) - free[node_id].get(name, 0) for name in names_of(node)}
    for group in placement_group_table().values():
        if group["state"] in {"CREATED", "RESCHEDULING"} and group["name"].startswith(OURS):
            for bundle, node_id in group["bundles_to_node_id"].items():
                node = NODES.get(names.get(node_id, ""))
                for name in found.get(node.node_id, ()) if node is not None else ():
                    found[node.node_id][name] -= group["bundles"][bundle].get(name, 0)
    most = {node_id: round(max(devices.values()), 3) for node_id, devices in found.items()}
    return {node_id: devices for node_id, devices in most.items() if devices > 0}


def holders(tables, nodes):
    """Whoever holds devices on these nodes in no group of the gate's: [node, what it is, who]."""
    kinds, found = {name for node in NODES.values() for name in names_of(node)}, []
    names = {each["NodeID"]: each["Labels"].get(NODE_LABEL, "") for each in ray.nodes() if each["Alive"]}
    groups = tables.groups()
    ours = {row.id for row in groups if row.name.startswith(OURS)}
    for row in groups:
        if row.id not in ours and any(not kinds.isdisjoint(bundle) for _, bundle in row.bundles):
            found += [[names.get(node_id, ""), "group", row.name or row.id] for node_id, _ in row.bundles]
    for row in tables.actors():
        if row.is_alive and row.group_id not in ours and not kinds.isdisjoint(row.required):
            found.append([names.get(row.node_id, ""), "actor", f"{row.class_name} {row.name} {row.pid}"])
    for each in ray.nodes():
        name = each["Labels"].get(NODE_LABEL, "")
        if each["Alive"] and name in nodes:
            rows = []
            with suppress(Exception):  # it was killed, and Ray doesn't know yet: the others are looked at all the same
                rows = tables.workers(each["NodeManagerAddress"], each["NodeManagerPort"])
            held = [row for row in rows if not kinds.isdisjoint(row.held) and ours.isdisjoint(row.group_ids)]
            found += [[name, "worker", f"{row.pid} {sorted(row.group_ids)}"] for row in held]
            if not any(node == name for node, _, _ in found):
                of = {key.rpartition("_")[2] for key in tables.whole().get(each["NodeID"], {}) if "_group_" in key}
                gone = of - {row.id for row in groups}
                found.append([name, "nobody", f"groups here: {sorted(of)}, gone are {sorted(gone)}"])
    return [each for each in found if each[0] in nodes]


def ended(cluster):
    """The nodes whose raylet has ended by itself, and with what."""
    found = {}
    for name, raylet in list(cluster._raylets.items()):
        (started,) = raylet.all_processes["raylet"]
        if started.process.poll() is not None:
            found[name] = started.process.returncode
    return found


def watch(cluster, file, over):
    tables, told = RayTables.here(), {}
    with file.open("a") as out:
        while not over.wait(EVERY_S):
            if (found := ended(cluster)) != told:
                told = found
                print(json.dumps([time.time(), None, {"ended": found}]), file=out, flush=True)
            try:
                nodes = taken()
                print(json.dumps([time.time(), nodes, holders(tables, nodes) if nodes else []]), file=out, flush=True)
            except Exception as error:  # noqa: BLE001 - the next look may go well
                print(json.dumps([time.time(), None, repr(error)[:300]]), file=out, flush=True)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints what it has to say of a dead node
    cluster = LocalCluster.start(nodes=list(NODES.values()), namespace="theirs", loopback=False)
    over = threading.Event()
    watching = threading.Thread(target=watch, args=(cluster, Path(sys.argv[1]), over), daemon=True)
    watching.start()
    print(cluster.address, cluster.folder, file=answers, flush=True)
    for line in sys.stdin:
        what, name = line.split()
        here = ray.get_runtime_context().get_node_id()
        mine = next(each["Labels"].get(NODE_LABEL) for each in ray.nodes() if each["NodeID"] == here)
        if what == "add":
            cluster.add(NODES[name])
        elif name != mine:
            cluster.kill(name)
        print("no" if (what, name) == ("kill", mine) else "done", file=answers, flush=True)
    over.set()
    watching.join()  # a question after `stop` would have Ray connect anew, and what is left would stay
    cluster.stop()
