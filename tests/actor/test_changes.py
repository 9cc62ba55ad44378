"""Pages of what has changed, as watchers read them: by revision, and of an account nothing but its own."""

import pytest

from fabric.gate.account_events import OpenAccount
from fabric.gate.events import JobKind, JobSpec, NodeUp, Pool, RaiseLimit, Submit, TopUp
from fabric.server import actor as actor_module
from fabric.units import UHS_PER_CT

SPEC = JobSpec(name="train", kind=JobKind.FUNCTION, accelerators=("H100",), limit_uhs=UHS_PER_CT, payload="{}")


def submitted(account, job):
    return Submit(job_id=job, account_id=account, spec=SPEC, request_id=job)


@pytest.mark.parametrize("account", [None, "acme", "beta"])
@pytest.mark.parametrize("page", [1, 2, 3, 100])
async def test_pages_of_changes_miss_no_job_that_changed_again_in_the_same_commit(world, monkeypatch, account, page):
    monkeypatch.setattr(actor_module, "CHANGES_MAX", page)
    gate = world()
    await gate.decide([NodeUp(node_id="h1", accelerator="H100", devices=1, pool=Pool.SPOT)])
    for name in ("acme", "beta"):
        opened = OpenAccount(account_id=name, name=name, plan="starter", request_id=f"open-{name}")
        paid = TopUp(account_id=name, amount_uhs=100 * UHS_PER_CT, payment_ref=name, request_id=f"pay-{name}")
        await gate.decide([opened, paid])
    jobs = [submitted("acme" if number % 2 else "beta", f"job-{number}") for number in range(6)]
    again = [
        RaiseLimit(
            job_id=job.job_id, account_id=job.account_id, limit_uhs=2 * UHS_PER_CT, request_id=f"more-{job.job_id}"
        )
        for job in jobs[:3]
    ]
    await gate.decide([*jobs, *again])
    seen, revision = [], 0
    while found := await gate.changes(account, revision, 0):
        assert len(found) <= page
        seen += found
        revision = max(view.revision for view in found)
    assert [view.revision for view in seen] == sorted(view.revision for view in seen)
    by_change = sorted(gate._writer.core.state.jobs.values(), key=lambda job: job.revision)
    assert [view.job_id for view in seen] == [job.job_id for job in by_change if account in (None, job.account_id)]
    assert [job.job_id for job in by_change][-3:] == [job.job_id for job in jobs[:3]]
    await gate.close()
