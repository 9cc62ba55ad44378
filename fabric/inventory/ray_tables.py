"""Ray's own tables, asked and changed where they are: in the control store of the cluster, and in the raylets.

No dashboard between, no rows left out, no actor's class loaded: milliseconds for a cluster. Nothing else can end an actor or
a Ray job that another process has started. Every call has a deadline, and raises `grpc.RpcError` where Ray doesn't answer.
It does not know what a lease is.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol, Self

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import (
    common_pb2,
    core_worker_pb2,
    core_worker_pb2_grpc,
    gcs_pb2,
    gcs_service_pb2,
    gcs_service_pb2_grpc,
    node_manager_pb2,
    node_manager_pb2_grpc,
)

_CALL_S: Final = 5.0
_NODE_S: Final = 1.0
"""A raylet asks all of its workers; one that stands still keeps it waiting."""
_WORKER_S: Final = 0.5
_WORKERS_AT_ONCE: Final = 32
_ALL: Final = 2**31 - 1
_OPTIONS: Final = (("grpc.max_receive_message_length", 512 * 2**20), ("grpc.enable_http_proxy", 0))
_IN_GROUP: Final = "_group_"


class GroupRow(NamedTuple):
    """A placement group that is not removed."""

    id: str
    name: str
    job_id: str
    bundles: tuple[tuple[str, Mapping[str, float]], ...]
    """(Ray's id of the node, "" where it has none yet; what the bundle holds there)"""
    is_placed: bool


class GoneGroup(NamedTuple):
    """A placement group that is removed, as its raylets may not know yet."""

    id: str
    bundles: tuple[tuple[int, str, Mapping[str, float]], ...]
    """(its number, Ray's id of the node or "", what the bundle held there)"""


class ActorRow(NamedTuple):
    """An actor that is not dead."""

    id: str
    name: str
    class_name: str
    job_id: str
    group_id: str
    node_id: str
    pid: int
    is_alive: bool
    required: Mapping[str, float]


class WorkerRow(NamedTuple):
    """A worker's process on one node."""

    pid: int
    job_id: str
    actor_id: str
    """"" of one that runs tasks."""
    runs: bool
    """Whether it runs a task now."""
    held: Mapping[str, float]
    """What it holds: as Ray calls it outside of placement groups."""
    group_ids: frozenset[str]
    """The placement groups that it holds this of; empty = of none."""
    listens_at: str = ""
    """Its own address and port."""


class JobRow(NamedTuple):
    """A Ray job: one driver and what it has started."""

    id: str
    driver_pid: int
    driver_address: str
    is_over: bool
    started_at_s: float = 0.0
    """When the driver connected, by the control store's clock: seconds of the epoch."""


class Tables(Protocol):
    """What is asked of Ray to find what runs without a lease, and to end it: see `RayTables`."""

    def groups(self) -> list[GroupRow]: ...
    def actors(self) -> list[ActorRow]: ...
    def dead_actors(self) -> list[ActorRow]: ...
    def free(self) -> dict[str, Mapping[str, float]]: ...
    def whole(self) -> dict[str, Mapping[str, float]]: ...
    def gone_groups(self) -> list[GoneGroup]: ...
    def return_bundles(self, address: str, port: int, group: GoneGroup) -> None: ...
    def shut_down(self, address: str, port: int) -> None: ...
    def workers(self, address: str, port: int) -> list[WorkerRow]: ...
    def workers_apart(self, node_id: str) -> tuple[list[WorkerRow], list[int]]: ...
    def end_worker(self, row: WorkerRow) -> None: ...
    def jobs(self) -> dict[str, JobRow]: ...
    def kill_actor(self, actor_id: str) -> None: ...
    def remove_group(self, group_id: str) -> None: ...
    def end_job(self, job_id: str) -> None: ...
    def tell_job(self, job_id: str, text: str) -> None: ...
    def put(self, key: str, value: bytes) -> None: ...


class RayTables:
    """One cluster's. Any thread may ask. Blocks."""

    def __init__(self, address: str) -> None:
        channel = init_grpc_channel(address, options=_OPTIONS)
        self._actors = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
        self._groups = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(channel)
        self._workers = gcs_service_pb2_grpc.WorkerInfoGcsServiceStub(channel)
        self._jobs = gcs_service_pb2_grpc.JobInfoGcsServiceStub(channel)
        self._resources = gcs_service_pb2_grpc.NodeResourceInfoGcsServiceStub(channel)
        self._values = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)
        self._news = gcs_service_pb2_grpc.ObservabilityPubSubServiceStub(channel)
        self._nodes: dict[str, Any] = {}

    @classmethod
    def here(cls) -> Self:
        """Of the cluster that this process is connected to.

        Raises:
            ConnectionError: it is connected to none: Ray would start one.
        """
        if not ray.is_initialized():
            raise ConnectionError("this process is not connected to a Ray cluster")
        return cls(str(ray.get_runtime_context().gcs_address))

    def groups(self) -> list[GroupRow]:
        """All placement groups that aren't removed."""
        table = gcs_pb2.PlacementGroupTableData
        answer = self._groups.GetAllPlacementGroup(gcs_service_pb2.GetAllPlacementGroupRequest(), timeout=_CALL_S)
        return [
            GroupRow(
                id=row.placement_group_id.hex(),
                name=row.name,
                job_id=row.creator_job_id.hex(),
                bundles=tuple((bundle.node_id.hex(), dict(bundle.unit_resources)) for bundle in row.bundles),
                is_placed=row.state == table.CREATED,
            )
            for row in answer.placement_group_table_data
            if row.state != table.REMOVED
        ]

    def gone_groups(self) -> list[GoneGroup]:
        """The placement groups that were removed, as far as Ray remembers them."""
        table = gcs_pb2.PlacementGroupTableData
        answer = self._groups.GetAllPlacementGroup(gcs_service_pb2.GetAllPlacementGroupRequest(), timeout=_CALL_S)
        return [
            GoneGroup(
                id=row.placement_group_id.hex(),
                bundles=tuple(
                    (bundle.bundle_id.bundle_index, bundle.node_id.hex(), dict(bundle.unit_resources))
                    for bundle in row.bundles
                ),
            )
            for row in answer.placement_group_table_data
            if row.state == table.REMOVED
        ]

    def actors(self) -> list[ActorRow]:
        """All actors that aren't dead, detached ones and those of ended Ray jobs among them."""
        return self._actor_rows(are_dead=False)

    def dead_actors(self) -> list[ActorRow]:
        """Those that are, as far as Ray remembers them. A process that was only being started for one may still hold what it
        was to have.
        """
        return self._actor_rows(are_dead=True)

    def _actor_rows(self, *, are_dead: bool) -> list[ActorRow]:
        table = gcs_pb2.ActorTableData
        answer = self._actors.GetAllActorInfo(gcs_service_pb2.GetAllActorInfoRequest(), timeout=_CALL_S)
        return [
            ActorRow(
                id=row.actor_id.hex(),
                name=row.name,
                class_name=row.class_name,
                job_id=row.job_id.hex(),
                group_id=row.placement_group_id.hex(),
                node_id=(row.node_id or row.address.node_id).hex(),
                pid=row.pid,
                is_alive=row.state == table.ALIVE,
                required=dict(row.required_resources),
            )
            for row in answer.actor_table_data
            if (row.state == table.DEAD) == are_dead
        ]

    def free(self) -> dict[str, Mapping[str, float]]:
        """By node: what nobody holds there, neither a placement group nor anybody without one. A moment old."""
        request = gcs_service_pb2.GetAllAvailableResourcesRequest()
        answer = self._resources.GetAllAvailableResources(request, timeout=_CALL_S)
        return {row.node_id.hex(): dict(row.resources_available) for row in answer.resources_list}

    def whole(self) -> dict[str, Mapping[str, float]]:
        """By node: all that there is, with what its placement groups' resources are called."""
        request = gcs_service_pb2.GetAllTotalResourcesRequest()
        answer = self._resources.GetAllTotalResources(request, timeout=_CALL_S)
        return {row.node_id.hex(): dict(row.resources_total) for row in answer.resources_list}

    def return_bundles(self, address: str, port: int, group: GoneGroup) -> None:
        """Have the raylet that listens there give back what it holds for a placement group that is gone, and end who is in
        it by Ray's own word. One that holds nothing for it does nothing; one that can't, as somebody is in it by its
        resources' names alone, dies.
        """
        group_id = bytes.fromhex(group.id)
        specs = [
            common_pb2.Bundle(
                bundle_id=common_pb2.Bundle.BundleIdentifier(placement_group_id=group_id, bundle_index=index),
                unit_resources=resources,
            )
            for index, _, resources in group.bundles
        ]
        request = node_manager_pb2.RemovePlacementGroupBundlesRequest(placement_group_id=group_id, bundle_specs=specs)
        self._raylet(address, port).RemovePlacementGroupBundles(request, timeout=_CALL_S)

    def shut_down(self, address: str, port: int) -> None:
        """End the raylet that listens there, at once, and with it all that runs on its node."""
        request = node_manager_pb2.ShutdownRayletRequest(graceful=False)
        with suppress(grpc.RpcError):  # it ends without an answer
            self._raylet(address, port).ShutdownRaylet(request, timeout=_CALL_S)

    def workers(self, address: str, port: int) -> list[WorkerRow]:
        """The workers of the raylet that listens there, as they say themselves."""
        answer = self._raylet(address, port).GetNodeStats(node_manager_pb2.GetNodeStatsRequest(), timeout=_NODE_S)
        return [_worker(row) for row in answer.core_workers_stats if row.worker_type == common_pb2.WORKER]

    def _raylet(self, address: str, port: int) -> Any:
        key = f"{address}:{port}"
        if key not in self._nodes:
            self._nodes[key] = node_manager_pb2_grpc.NodeManagerServiceStub(init_grpc_channel(key, options=_OPTIONS))
        return self._nodes[key]

    def workers_apart(self, node_id: str) -> tuple[list[WorkerRow], list[int]]:
        """The same of a node whose raylet waits for one of its workers: each is asked by itself. And those that are silent."""
        request = gcs_service_pb2.GetAllWorkerInfoRequest(
            filters=gcs_service_pb2.GetAllWorkerInfoRequest.Filters(is_alive=True)
        )
        found = [
            row
            for row in self._workers.GetAllWorkerInfo(request, timeout=_CALL_S).worker_table_data
            if row.worker_address.node_id.hex() == node_id and row.worker_type == common_pb2.WORKER
        ]
        with ThreadPoolExecutor(_WORKERS_AT_ONCE) as pool:
            answers = list(pool.map(_asked, found))
        rows = [answer for answer in answers if answer is not None]
        return rows, [row.pid for row, answer in zip(found, answers, strict=True) if answer is None]

    def end_worker(self, row: WorkerRow) -> None:
        """Have a worker end at once, whatever it does; one that stands still, or is gone, hears nothing."""
        request = core_worker_pb2.ExitRequest(force_exit=True)
        with suppress(grpc.RpcError), init_grpc_channel(row.listens_at, options=_OPTIONS) as channel:
            core_worker_pb2_grpc.CoreWorkerServiceStub(channel).Exit(request, timeout=_WORKER_S)

    def jobs(self) -> dict[str, JobRow]:
        """All Ray jobs by their ids, those that have ended among them."""
        request = gcs_service_pb2.GetAllJobInfoRequest(
            skip_submission_job_info_field=True, skip_is_running_tasks_field=True, limit=_ALL
        )
        found = self._jobs.GetAllJobInfo(request, timeout=_CALL_S).job_info_list
        rows = (
            JobRow(row.job_id.hex(), row.driver_pid, row.driver_address.ip_address, row.is_dead, row.start_time / 1_000)
            for row in found
        )
        return {row.id: row for row in rows}

    def kill_actor(self, actor_id: str) -> None:
        """End an actor, whoever's it is: it is not started again."""
        request = gcs_service_pb2.KillActorViaGcsRequest(
            actor_id=bytes.fromhex(actor_id), force_kill=True, no_restart=True
        )
        self._actors.KillActorViaGcs(request, timeout=_CALL_S)

    def remove_group(self, group_id: str) -> None:
        """Remove a placement group and all that runs in it."""
        request = gcs_service_pb2.RemovePlacementGroupRequest(placement_group_id=bytes.fromhex(group_id))
        self._groups.RemovePlacementGroup(request, timeout=_CALL_S)

    def end_job(self, job_id: str) -> None:
        """End all that a driver has started, but for what is detached. The driver's process gets no new worker."""
        self._jobs.MarkJobFinished(
            gcs_service_pb2.MarkJobFinishedRequest(job_id=bytes.fromhex(job_id)), timeout=_CALL_S
        )

    def tell_job(self, job_id: str, text: str) -> None:
        """Have a driver print a line."""
        error = gcs_pb2.ErrorTableData(
            job_id=bytes.fromhex(job_id), type="unleased_use", error_message=text, timestamp=time.time()
        )
        self._news.ReportJobError(gcs_service_pb2.ReportJobErrorRequest(job_error=error), timeout=_CALL_S)

    def put(self, key: str, value: bytes) -> None:
        """Keep a small value where whoever knows the cluster finds it."""
        self._values.InternalKVPut(
            gcs_service_pb2.InternalKVPutRequest(key=key.encode(), value=value, overwrite=True, namespace=_NAMESPACE),
            timeout=_CALL_S,
        )

    def get(self, key: str) -> bytes:
        """What is kept under a key; b"" = nothing."""
        request = gcs_service_pb2.InternalKVGetRequest(key=key.encode(), namespace=_NAMESPACE)
        return bytes(self._values.InternalKVGet(request, timeout=_CALL_S).value)


_NAMESPACE: Final = b"fabric"


def _asked(row: Any) -> WorkerRow | None:
    """What one worker says of itself; None if it says nothing."""
    at = row.worker_address
    request = core_worker_pb2.GetCoreWorkerStatsRequest(intended_worker_id=at.worker_id)
    try:
        with init_grpc_channel(f"{at.ip_address}:{at.port}", options=_OPTIONS) as channel:
            stub = core_worker_pb2_grpc.CoreWorkerServiceStub(channel)
            return _worker(stub.GetCoreWorkerStats(request, timeout=_WORKER_S).core_worker_stats)
    except grpc.RpcError:
        return None


def _worker(row: Any) -> WorkerRow:
    held: dict[str, float] = {}
    group_ids = set()
    for name, allocated in row.used_resources.items():
        # GPU_group_0_<id> and GPU_group_<id> are one and the same device of a placement group.
        plain, in_group, rest = name.partition(_IN_GROUP)
        if in_group:
            group_ids.add(rest.rpartition("_")[2])
        held[plain] = max(held.get(plain, 0.0), sum(slot.allocation for slot in allocated.resource_slots))
    actor_id = row.actor_id.hex()
    return WorkerRow(
        pid=row.pid,
        job_id=row.job_id.hex(),
        actor_id="" if actor_id.strip("f") == "" else actor_id,
        runs=row.num_running_tasks > 0,
        held=held,
        group_ids=frozenset(group_ids),
        listens_at=f"{row.ip_address}:{row.port}",
    )
