"""Where modules have gone whose records travel by name between processes of two releases.

Ray pickles a record by the path of its module. A runner that outlives an upgrade goes on with the code it was started with,
and says what it says by the paths of then; here they are read as those of now. For one release after a move: then no runner
of before is left, as no job outlives two upgrades without an attempt that the code between them has started.
"""

from types import MappingProxyType
from typing import Final

_OLD: Final = "fabric.adapters."
MOVED: Final = MappingProxyType(
    {
        _OLD + old: f"fabric.{new}"
        for old, new in {
            "archive": "storage.archive",
            "archive_quota": "storage.quota",
            "bucket": "storage.s3",
            "cluster_settings": "cluster.settings",
            "disk_watch": "system.disk_watch",
            "environments": "worker.environments",
            "guarded": "system.guarded",
            "kept_log": "storage.log_ends",
            "line": "worker.channel",
            "meters": "node.meters.meter",
            "node_agent": "node.agent",
            "processes": "system.processes",
            "rank_order": "worker.rank_order",
            "runner": "worker.runner",
            "stage": "worker.stage",
            "watchdog": "enforcement.watchdog",
        }.items()
    }
    | {
        "fabric.actor": "fabric.server.actor",
        "fabric.gatehouse": "fabric.server.gate_server",
        "fabric.writer": "fabric.journal.writer",
    }
)
"""The module of 0.1 → that of now."""
