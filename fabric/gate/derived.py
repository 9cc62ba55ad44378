"""What the gate keeps beside its state, and what each of these follows from: the one list of them.

The state alone is in a snapshot. Everything else is an index, a cache or a key that follows from it, and a gate that goes
on must have the same of it as one that is restored at this moment, or the two decide differently and the journal can't be
decided again. So each either is changed at the one place where what it follows from changes, or carries the version of
that. `assert_same` compares all of it with what is made anew from the state; a test sees to it that no attribute of these
classes is missing here.
"""

from typing import Any, Final

from fabric.gate import idempotency
from fabric.gate.core import Core
from fabric.placement.derived import assert_same as assert_same_views
from fabric.units import JobId

STATE: Final = "the state, or a part of it"
FIXED: Final = "set once"
EVENT: Final = "of the event in hand: empty before the next one"
WATCHERS: Final = "for whoever watches or counts; no decision reads it"

DERIVED: Final[dict[str, dict[str, str]]] = {
    "Core": {
        "state": STATE,
        "book": STATE,
        "planner": "the state's placement: see Planner",
        "now_us": "the state's now_us, which `begin` sets with it",
        "instructions": EVENT,
        "records": EVENT,
        "freed": EVENT,
        "held": EVENT,
        "replan": EVENT,
        "silence_us": FIXED,
        "price_list": "tariffs and operator: made anew by `note_prices` when they are set",
        "prices": "the same",
        "coming": "announced tariffs and operator: made anew by `note_prices` when these change",
        "plans": "the catalogue: made anew by `note_prices` when it is set",
        "behind": EVENT,
        "renewals": "when subscriptions are due: `note_renewal` is told of each change; what no longer stands is passed over when it comes up",
        "dunning_due_us": "the invoices and the plans: reckoned anew by `note_dunning` when either has changed",
        "placeable": "nodes' sizes and pools, and the policy: forgotten when `placeable_in` is another layout",
        "placeable_in": "the version of `placeable`",
        "jobs_of": "the jobs: `keep` is the one place where one is added, `forget` where some go",
        "held_by_jobs": "what jobs hold: `note_held` is told of each change of it",
        "unfinished": "the payments: `note_payment` is told of each that was made, or of which something has come",
        "unrun_of": "the jobs: `settle` and `forget` are the two places where one more, or fewer, has ended unrun",
        "subscribed_by": "the subscriptions: `keep_subscription` is the one place where one is added, `renew` where some end",
        "keys_of": "the keys: `keep_key` is the one place where one is added",
        "answers_of": "the answers, in their order: `idempotency` is the one place where one comes or goes",
        "answers_until_us": "the oldest answer: never later than when that is forgotten, and looked up anew then",
        "backing_off": "set-back jobs, by until when; what no longer stands is passed over when it comes up",
        "watch": "leases and what is due of them: never later than that, and asked for the rest when it comes up",
        "changed": WATCHERS,
        "begun": WATCHERS,
        "starts": WATCHERS,
    },
    "PriceList": {
        "_tariffs": FIXED,
        "_operator": FIXED,
        "_varies_by_hour": FIXED,
        "_found": "the tariffs, by all that a weight depends on",
        "_dearest": "the tariffs, by all that a weight depends on",
        "_terms": "the tariffs, by all that a weight depends on",
        "_worst": "the tariffs, by all that a weight depends on",
        "accelerators": FIXED,
        "curve": FIXED,
    },
    "Deadlines": {
        "_holds": STATE,
        "_lapsed": STATE,
        "_lots": STATE,
        "heap": "open and lapsed holds, and lots with something free; what no longer stands is passed over when it comes up",
    },
    "OwnHolds": {
        "standing": "open and lapsed holds: changed where a hold begins or ends",
        "over": "ended and expired holds: changed where one ends or is forgotten",
    },
    "Planner": {
        **dict.fromkeys(
            ("_state", "_cluster", "_fairness", "_queue", "_pins", "_preemption", "_lending", "_waiting", "_decisions"),
            FIXED,
        ),
        "shortest_grace_us": "the state's policy, which is set with it",
        "owners": "the queue's, which is changed in place",
    },
    "Cluster": {
        "_state": STATE,
        "groups": "the state's groups, in their order",
        "divided": FIXED,
        "version": "a version: of where requests may go",
        "pins_version": "a version: of the pins, and of how many devices are up",
        "layout": "a version: of what nodes there are, up or not, and of the policy",
        "guarantees": FIXED,
    },
    "Guarantees": {
        "_state": STATE,
        "types": "the policy's quotas",
        "_accounts": "the policy's quotas",
        "_cohorts": "the policy's quotas",
        "_payers": "the policy's quotas and the accounts' cohorts: reckoned anew by `regroup` when these change",
        "_parts": "running jobs and claims of types with quotas: `note` is told of each change of one",
        "_uses": "the same by account",
        "_freed": "accounts with less than at the last plan, which empties it; a gate at rest has none",
        "_kept": "quotas, uses and cohorts: forgotten with each change of these",
        "_levels": "quotas, uses and cohorts: forgotten with each change of these",
    },
    "Group": {
        "pool": FIXED,
        "accelerator": FIXED,
        "owner": FIXED,
        "fraction": FIXED,
        "name": FIXED,
        "units": FIXED,
        "nodes": "nodes by their slots",
        "ids": "nodes by their slots",
        "bits": "the slots",
        "fit": "nodes that are up, by what is free: changed by `show`, `hide` and `shift` alone",
        "sizes": "nodes' devices, of those that are down, too",
        "standing": "nodes that are up: changed by `show` and `hide` alone",
        "free": "what `fit` says",
        "notices": "nodes that aren't down: changed by `hear` alone",
        "notice_us": "what `notices` says",
        "pinned": "the pins: made anew by `mark`",
        "reservations": "the pins: made anew by `mark`",
        "loose": "running jobs: changed by `enter` and `leave` alone",
        "loose_devices": "running jobs and their shares",
        "leaving": "running jobs that are evicted",
        "leaving_devices": "running jobs and their shares",
        "reporters": "running jobs that have saved",
        "kept": "nodes that say until when they are kept, but for those whose time was over at the last plan",
        "wanted": "parked lanes that are at home in it",
        "typed": "parked lanes that name their types",
        "typed_devices": "running jobs that name their types",
        "touched": "set since the last plan, which clears it; a gate at rest has none",
    },
    "Units": {
        "nodes": "nodes by into how many units their devices can be divided",
        "opened": "nodes' divided devices, of those that are up: changed by `note` alone",
    },
    "DividedDevices": {"_state": STATE},
    "Queue": {
        "_queued": STATE,
        "_fairness": FIXED,
        "_fallen": "accounts whose keys have become less: each lane takes from it what it has not heard yet",
        "_forgotten": "how many fell before those: a lane that has heard less makes its heads anew",
        "_needing": "parked lanes by what they need: changed where one is parked or woken",
        "_order": "the lanes of the class that is planned: made anew by `begin`",
        "_woken": "lanes that `_order` doesn't know yet: emptied by `next`",
        "_policy": "the state's policy, which is set with it",
        "_guarantees": FIXED,
        "_shortest_us": "the policy",
        "owners": "the owners of the state's groups",
        "fresh": "a waiting job that isn't in line yet: put there, or placed, by the next plan; a gate at rest has none",
        "lanes": "waiting jobs by what is alike; an empty one may be kept",
        "named": "the same lanes by name",
        "_lanes_max": "how many lanes there were when empty ones were forgotten last",
        "active": "lanes to be looked at by the next plan; a gate at rest has none",
        "parked": "lanes that the state says are blocked, with somebody in line",
    },
    "Lane": {
        "rank": FIXED,
        "name": FIXED,
        "shape": FIXED,
        "mixes": FIXED,
        "fraction": FIXED,
        "typed": FIXED,
        "account_id": FIXED,
        "jobs": "waiting jobs of its key, in the order of the queue",
        "heard": "how many of the queue's keys that became less `heads` knows",
        "heads": "the first of each line; what no longer stands is passed over when it comes up",
        "lines": "waiting jobs without a claim",
        "ages": "waiting jobs by who came first; what no longer stands is passed over when it comes up",
        "parked": "see Queue",
        "groups": "the cluster's groups: found anew when `seen` is another version",
        "seen": "the version of `groups`",
    },
    "Fairness": {
        "_accounts": STATE,
        "_cohorts": STATE,
        "_started": STATE,
        "_policy": STATE,
        "epoch_us": "the state's epoch_us, which is set with it",
        "keys": "what each account has used, and its weight",
        "cohort_keys": "what each cohort has used, and its weight",
        "members": "the accounts' cohorts: changed where one is given another",
        "present": "waiting and running jobs: changed where one comes or goes",
        "_factor": "the time, by `_factor_step`",
        "_factor_step": "the version of `_factor`",
    },
    "Waiting": {
        "_state": STATE,
        "_cluster": FIXED,
        "_fairness": FIXED,
        "queue": FIXED,
        "pins": FIXED,
        "_retries": "blocked lanes: set where one is parked, loses a job, or is sorted anew",
        "_overdue": "the oldest jobs of blocked lanes, those that have waited too long already left out",
        "_passings": "starts at which parked lanes may have been passed too often; never later than they are",
        "_ripe": FIXED,
        "_starts": "a version: of the groups' counts of starts",
        "_noted": "versions of these in which lanes were looked for that may be passed too often",
        "_seen": "versions of the cluster's groups in which all lanes of a class were looked at, or sorted anew",
    },
    "Ripe": {
        "_named": FIXED,
        "_lanes": "lanes that may be overdue, all that are parked and are among them",
        "_full": "versions of the cluster's pins: forgotten where a lane is parked, or may be overdue, and with another policy",
    },
    "Alarms": {"times": "see Waiting", "_heap": "`times`; what no longer stands is passed over when it comes up"},
    "Reservations": {"_state": STATE, "_cluster": FIXED},
    "Preemption": {"_state": STATE, "_cluster": FIXED, "_budget": FIXED, "spent": "counts within one plan"},
    "EvictionBudget": {"_evictions": STATE},
    "Lending": {"_state": STATE, "_cluster": FIXED},
    "Decisions": {
        **dict.fromkeys(("_state", "_cluster", "_fairness", "_waiting", "_queue", "_preemption", "_lending"), FIXED),
        **dict.fromkeys(("_is_put_off", "_holds_until_us"), "set and taken within one plan"),
    },
}


def view(core: Core) -> dict[str, Any]:
    """All that is derived and that a decision may read, so that two gates can be compared by it."""
    deadlines, lapsed, own_holds = core.book.derived()
    return {
        "now_us": core.now_us,
        "prices": core.price_list and (core.price_list.accelerators, core.price_list.curve),
        "coming": [(since_us, each.accelerators, each.curve) for since_us, each in core.coming],
        "plans": core.plans,
        "renewals": sorted({each for each in core.renewals if core.renewal_of(each) is not None}),
        "dunning_due_us": core.dunning_due_us,
        "jobs_of": {account_id: [job.job_id for job in jobs] for account_id, jobs in core.jobs_of.items()},
        "held_by_jobs": dict(core.held_by_jobs),
        "unfinished": dict(core.unfinished),
        "unrun_of": dict(core.unrun_of),
        "subscribed_by": {
            account_id: [record.subscription for record in records]
            for account_id, records in core.subscribed_by.items()
        },
        "keys_of": {account_id: [key.key_id for key in keys] for account_id, keys in core.keys_of.items()},
        "answers_of": {account_id: list(names) for account_id, names in core.answers_of.items()},
        "backing_off": sorted({each for each in core.backing_off if _stands(core, *each)}),
        "deadlines": deadlines,
        "lapsed": lapsed,
        "own_holds": own_holds,
    } | core.planner.derived()


def _stands(core: Core, until_us: int, job_id: JobId) -> bool:
    job = core.state.jobs.get(job_id)
    return job is not None and job.set_back_until_us == until_us


def assert_same(core: Core, other: Core | None = None) -> None:
    """Raise AssertionError if what is derived isn't what it is in `other`, or (None) in one made anew from the state."""
    made = other or Core(core.state)
    if other is None:
        idempotency.index(made)
    anew = view(made)
    if other is None:
        anew["deadlines"], anew["lapsed"], anew["own_holds"] = core.book.derive()
    assert_same_views(view(core), anew, at_rest=core.planner.at_rest)
    for gang in core.placeable if core.placeable_in == core.planner.layout else ():
        assert gang[0] is None or gang[0] in core.planner.owners, f"{gang} has an owner without nodes"
