"""Where the gate's process is, as Ray calls it."""

from functools import cache

import ray


@cache
def own_address() -> str:
    """Of the machine."""
    return str(ray.util.get_node_ip_address())


@cache
def own_node() -> str:
    """The id of the node: a machine may have several."""
    return str(ray.get_runtime_context().get_node_id())
