"""A lease held by the client itself: devices in which its own Ray tasks and actors run, for as long as tokens last.

This is the one place of the SDK that needs Ray, in a process connected to the cluster, and it imports it when used:

    ray.init(address="10.0.0.5:6379")  # a local cluster's address is `ray_address` in run.json of its state directory
    with fabric.lease(tokens="2", accelerators="H100:2") as lease:
        ray.get(step.options(**lease.options(devices=1)).remote(batch))

When its tokens end, or it is ended in another way, `ray.get` of what runs in it raises `LeaseEnded` (`fabric.sdk.lease_end`).

A cluster that was started with `RAY_AUTH_MODE=token` (as those of `cluster-configs` are, and a local one always) lets nobody
in without its token. Set `RAY_AUTH_MODE=token` as well; Ray then looks for the token in `RAY_AUTH_TOKEN`, in the file that
`RAY_AUTH_TOKEN_PATH` names (a local cluster's is `ray.token` in its state directory), then in `~/.ray/auth_token`. A local
cluster listens on its machine alone: for that set `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0` besides. The token lets
its holder do with Ray whatever Ray can, so only those get it who may.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

from fabric.client.client import Client
from fabric.errors import FabricError, JobFailed, Unavailable
from fabric.sdk.feed import ENDED
from fabric.sdk.job import Job
from fabric.wire import fabric_pb2 as pb

_START_S: Final = 600.0
_OVER: Final = frozenset({"parked", *ENDED})
_ENDING: Final = frozenset({"stopping", "parked", *ENDED})


class Lease:
    """Devices until the block ends: `with fabric.lease(...) as lease: fn.options(**lease.options()).remote()`."""

    def __init__(self, client: Client, job: Job, *, timeout_s: float = _START_S) -> None:
        self.job = job
        self._client = client
        self._timeout_s = timeout_s
        self._document: dict[str, Any] | None = None
        self._going: Any = None
        self._bound = True

    def __enter__(self) -> "Lease":  # noqa: PYI034  # as of Fabric
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self, *, bound: bool = True) -> None:
        """Wait until the devices are there.

        Args:
            bound: refuse this process what would run over Ray beside the lease. False is for a program that sees to it
                itself where all it starts has its place, as the host of Ray Serve's actors does.

        Raises:
            JobFailed: the lease ended before it began.
            Unavailable: the devices did not come free in time; the lease is given up.
        """
        self._bound = bound
        try:
            self._document = self._wait_for_devices()
        except BaseException:
            self.close()
            raise
        if "ray" in sys.modules:
            self._watch(self._document["placement_group_id"])

    def close(self) -> None:
        """Give the devices back. What runs in them ends."""
        self._document = None
        if self._going is not None:
            self._going.end("it was closed")
        try:
            self.job.cancel()
        except FabricError as error:
            if error.code not in {"conflict", "job_ended", "not_found"} and self.job.state not in ENDED:
                raise

    @property
    def stop_requested(self) -> bool:
        """Whether the lease is about to end: save what matters."""
        return self.job.state in _ENDING

    @property
    def document(self) -> Mapping[str, Any]:
        """What Ray has to be told to schedule into it: the placement group, its bundles, and the environment that
        meters know the lease's processes by.
        """
        return self._open_document()

    def options(self, *, bundle: int = 0, devices: int | None = None) -> Mapping[str, Any]:
        """What to hand to `.options(**...)` of a Ray task or actor: the lease, and devices of one of its bundles."""
        from ray.util.placement_group import PlacementGroup, PlacementGroupID  # noqa: PLC0415  # Ray only where used
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: PLC0415

        document = self._open_document()
        self._watch(document["placement_group_id"])
        bundles = document["bundles"]
        assert 0 <= bundle < len(bundles), f"the lease has bundles 0 to {len(bundles) - 1}"
        wanted = devices if devices is not None else bundles[bundle]["devices"]
        options: dict[str, Any] = {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=PlacementGroup(PlacementGroupID.from_hex(document["placement_group_id"])),
                placement_group_bundle_index=bundle,
            ),
            "runtime_env": {"env_vars": document["env_vars"]},
        }
        resources = bundles[bundle]["resources"]
        if "GPU" in resources:
            options["num_gpus"] = wanted
        if own := {name: wanted for name in resources if name != "GPU"}:  # a bundle names nothing but its devices
            options["resources"] = own
        return options

    def _watch(self, placement_group_id: str) -> None:
        """Have what this process runs in the lease end with it."""
        if self._going is None:
            from fabric.sdk import lease_end  # noqa: PLC0415  # Ray only where used

            types = {name for bundle in self._open_document()["bundles"] for name in bundle["resources"]}
            self._going = lease_end.opened(self.job.id, placement_group_id, bound=self._bound, types=types)
            threading.Thread(target=self._until_over, args=(lease_end.tell,), name="fabric-lease", daemon=True).start()

    def _until_over(self, tell: Callable[[Any, str], None]) -> None:
        try:
            for job in self.job.events():
                if self._going.over:
                    return
                if job.state in _OVER:
                    break
        except FabricError:  # nobody says any more: `stop_requested` will say so too
            return
        why = (job.reason or job.state).replace("_", " ")
        tell(
            self._going,
            f"lease {self.job.id} has ended, {why}: `fabric raise-limit` or a top-up gives the next one more tokens",
        )

    @property
    def bundles(self) -> int:
        """How many bundles, one for each node, the lease has."""
        return len(self._open_document()["bundles"])

    def _open_document(self) -> dict[str, Any]:
        assert self._document is not None, "the lease is open only within its block"
        return self._document

    def _wait_for_devices(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        for job in self.job.events(timeout=self._timeout_s):
            if job.state == "running":
                document: dict[str, Any] = json.loads(self._client.fetch(pb.ResultRequest(job_id=self.job.id)))
                return document
            if job.state in ENDED:
                raise JobFailed(f"lease {self.job.id} ended as {job.state}: {job.error or job.reason}", state=job.state)
            if time.monotonic() > deadline:
                break
        raise Unavailable(
            f"no devices came free for lease {self.job.id} in {self._timeout_s:g} s: ask for fewer or another type",
            code="no_capacity",
        )
