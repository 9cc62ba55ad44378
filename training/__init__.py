"""Training on preemptible leases. Knows torch; does not know how tokens are kept.

    from training import session

    run = session(model=model, opt=opt, sched=sched)
    for step in run.steps(600):
        ...

`training.session` says what it takes and what it promises.
"""

from training.session import session

__all__ = ["session"]
