"""Usage of a time is the statement of that time, to the µHs, whatever runs over its ends."""

import random
from collections import Counter
from itertools import pairwise

from fabric.audit.statements import moves_of
from fabric.audit.usage import RUNNING, Usage
from tests.audit.histories import history


def rows_of(entries, account, *, job_id=None):
    usage = Usage(account, job_id=job_id)
    rows = [row for entry in entries for row in usage.add(entry)]
    return [*rows, *usage.rest()]


def stated_uhs(entries, account):
    """What the statement's lines charge for use."""
    lines = [line for entry in entries for line, _ in moves_of(entry.transfers, account, seq=entry.seq)]
    return -sum(line.amount_uhs for line in lines if line.kind in {"capture", "refund"})


def periods_of(entries, dice):
    """Some times that follow each other, from before the first entry to after the last."""
    ends = sorted(dice.choice(entries).at_us for _ in range(3))
    edges = [0, *ends, 2**62]
    return [[each for each in entries if a <= each.at_us < b] for a, b in pairwise(edges)]


def test_usage_of_a_time_is_what_its_statement_charges_in_1000_random_histories():
    seen = Counter()
    for seed in range(500):
        found, dice = history(seed), random.Random(seed)
        for account in ("ada", "cyd"):
            entries = found.of(account)
            parts, charged = Counter(), {}
            for period in periods_of(entries, dice):
                rows = rows_of(period, account)
                assert sum(row.booked_uhs for row in rows) == stated_uhs(period, account)
                for row in rows:
                    if row.record.ended == RUNNING:
                        seen["of what runs"] += bool(row.record.job_id)
                        seen["of own holds"] += not row.record.job_id
                    else:
                        seen["over an end"] += row.booked_uhs != row.record.charged_uhs
                        charged[row.record.cdr_id] = row.record
                    parts[row.record.job_id or row.record.cdr_id] += row.booked_uhs
            for job_id in {record.job_id for record in charged.values()} - {""}:
                whole = sum(record.charged_uhs for record in charged.values() if record.job_id == job_id)
                running = sum(
                    row.booked_uhs for row in rows_of(entries, account, job_id=job_id) if row.record.ended == RUNNING
                )
                assert parts[job_id] == whole + running, "its parts of all times are its charge"
    assert min(seen["of what runs"], seen["of own holds"], seen["over an end"]) > 20, seen
