"""A part of a device on a bill: anybody reckons it again as that part, and another part than was asked for is found."""

import pytest

from fabric.audit.verify import verify_export
from fabric.gate.events import NodeUp, Pool
from tests.audit.conftest import opening
from tests.audit.test_cheats import TRUSTED, account_export, entries, packed, record_of
from tests.audit.test_verify import leaves_of

QUARTER = (1, 4)
LASTED = 602_000_000


async def leaves_with_a_part(log):
    await log.write(opening("acme"))
    await log.write([NodeUp(node_id="n2", accelerator="H100", devices=1, pool=Pool.SPOT, units=4)])
    await log.run_job("acme", job_id="j1", fraction=QUARTER)
    return leaves_of(await log.export())


async def test_the_charge_of_a_part_is_reckoned_again(log):
    leaves = await leaves_with_a_part(log)
    record = record_of(entries(leaves))
    assert (record["fraction"], record["charged_uhs"]) == ([1, 4], LASTED // 4)
    assert verify_export(account_export(leaves), trusted_key=TRUSTED).ok


@pytest.mark.parametrize("said", [[1, 2], [1, 1], [1, 0], [-1, 4], None])
async def test_a_bill_for_another_part_is_found(log, said):
    """Charged by all other counters as that part would be."""
    changed = entries(await leaves_with_a_part(log))
    record = record_of(changed)
    record["fraction"] = said
    over, under = said or (1, 1)
    record["charged_uhs"] = LASTED * over // max(under, 1)
    found = verify_export(account_export(packed(changed)), trusted_key=TRUSTED)
    assert not found.ok
    assert "part of a device that can't be" in found.problem or "its job asked for [1, 4]" in found.problem
