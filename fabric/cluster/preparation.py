"""What is done for a job on its nodes before its devices burn. They are held meanwhile: for nothing, so not for long."""

import asyncio
from typing import Final

from fabric.cluster.services import Services
from fabric.errors import InvalidRequest
from fabric.gate.instructions import Lease
from fabric.worker.environments import environment_folder
from fabric.worker.payload import Payload
from fabric.worker.wheels import PREPARE_S, is_plain

_LEAST_S: Final = 1.0
"""In less nothing is installed."""


async def prepared(lease: Lease, payload: Payload, around: Services) -> None:
    """Have the job's packages installed, where that runs nobody's code and takes no longer than it may (`free_waits`): else the
    lease's own processes do it.

    Raises:
        InvalidRequest: `runtime_env_failed`: one of them can't be had.
    """
    wanted = payload.environment
    if wanted is None or not is_plain(wanted, {**payload.runtime_env.get("env_vars", {}), **payload.env}):
        return
    folder = str(environment_folder(around.settings.work_dir, lease.account_id, wanted.digest))
    agents = around.agents
    addresses = dict.fromkeys(around.nodes[share.node_id].address for share in lease.shares)
    there = await asyncio.gather(*(agents.has_environment(address, folder) for address in addresses))
    lacking = [address for address, is_there in zip(addresses, there, strict=True) if not is_there]
    if not lacking:
        return
    devices = sum(share.devices for share in lease.shares)
    within_s = min(PREPARE_S, wanted.within_s)
    with around.free_waits.waiting(str(lease.account_id), devices=devices, within_s=within_s) as left_s:
        if left_s < _LEAST_S:
            return
        found = await asyncio.gather(*(agents.prepare(each, folder, wanted, within_s=left_s) for each in lacking))
    if missing := next((each.missing for each in found if each.missing), ""):
        raise InvalidRequest(missing, code="runtime_env_failed")
