"""What is done for a job on its nodes before its devices are held and burn."""

import asyncio

from fabric.adapters.environments import environment_folder
from fabric.adapters.payload import Payload
from fabric.adapters.surroundings import Surroundings
from fabric.adapters.wheels import PREPARE_S, is_plain
from fabric.errors import InvalidRequest
from fabric.gate.instructions import Lease


async def prepared(lease: Lease, payload: Payload, around: Surroundings) -> None:
    """Have the job's packages installed, where that runs nobody's code and takes no longer than it may.

    Raises:
        InvalidRequest: `runtime_env_failed`: one of them can't be had.
    """
    wanted = payload.environment
    if wanted is None or not is_plain(wanted, {**payload.runtime_env.get("env_vars", {}), **payload.env}):
        return
    folder = str(environment_folder(around.settings.work_dir, lease.account_id, wanted.digest))
    within_s, agents = min(PREPARE_S, wanted.within_s), around.agents
    addresses = dict.fromkeys(around.nodes[share.node_id].address for share in lease.shares)
    there = await asyncio.gather(*(agents.has_environment(address, folder) for address in addresses))
    lacking = [address for address, is_there in zip(addresses, there, strict=True) if not is_there]
    found = await asyncio.gather(*(agents.prepare(each, folder, wanted, within_s=within_s) for each in lacking))
    if missing := next((each.missing for each in found if each.missing), ""):
        raise InvalidRequest(missing, code="runtime_env_failed")
