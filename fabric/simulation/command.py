"""What `fabric simulate` does, for the command line to print."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fabric.config.cluster import load_cluster
from fabric.errors import InvalidRequest
from fabric.simulation import options, report, traces
from fabric.simulation.experiment import Outcome, Plan, Tell, simulate
from fabric.simulation.workload import Behaviour


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The words of the command."""

    nodes: list[str] = []
    cluster_file: Path | None = None
    policies: list[str] = []
    tiers: str = ""
    users: int = 100
    load: float | None = None
    seeds: int = 1
    checkpoint: str = "1h"
    write: str = "20s"
    restore: str = "40s/60s"
    grace: str = "0s"
    mtbf: str = ""
    first: int | None = None


def run(trace: Path, asked: Asked, *, tell: Tell | None = None) -> Outcome:
    """Play it.

    Raises:
        InvalidRequest, InvalidConfig: the trace, an option or the cluster file can't be read as such.
    """
    config = load_cluster(asked.cluster_file) if asked.cluster_file is not None else None
    policies = options.policies(asked.policies, numbers=config.scheduling.policy if config is not None else None)
    behaviour = behaviour_of(asked)
    tiers = options.tiers(asked.tiers)
    works = traces.read(trace)[: asked.first]
    if asked.nodes:
        cluster = options.nodes(asked.nodes)
    else:
        cluster = options.cluster_of(config) if config is not None else options.large_enough(works)
    plan = Plan(
        works=works,
        cluster=cluster,
        behaviour=behaviour,
        tiers=tiers,
        users=asked.users,
        load=asked.load,
        seeds=asked.seeds,
    )
    return simulate(plan, policies, tell=tell)


def behaviour_of(asked: Asked) -> Behaviour:
    """How jobs behave, as the words say."""
    restores = [options.micros(word, what="--restore") for word in asked.restore.split("/")]
    checkpoint_us = options.micros(asked.checkpoint, what="--checkpoint")
    if checkpoint_us <= 0:
        raise InvalidRequest(
            "--checkpoint: jobs save every so often, not all the time: give more than 0", code="invalid_duration"
        )
    return Behaviour(
        checkpoint_us=checkpoint_us,
        write_us=options.micros(asked.write, what="--write"),
        restore_us=(restores[0], restores[-1]),
        grace_us=options.micros(asked.grace, what="--grace"),
        node_mtbf_us=options.micros(asked.mtbf, what="--mtbf") if asked.mtbf else None,
    )


def title(outcome: Outcome) -> str:
    """What was played, in a line."""
    seeds = max(run.seed for run in outcome.runs)
    over = f", {seeds} seeds (mean ± half of the 95 % interval)" if seeds > 1 else ""
    return f"{outcome.jobs:,} jobs on {outcome.devices:,} devices at load {outcome.load:.2f}{over}; waits in hours"


def tables(outcome: Outcome, *, wide: bool) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Title, head and rows of each table."""
    yield "", *report.totals(outcome)
    for name, kind in report.KINDS:
        if wide or name in ("mean", "p99"):
            yield f"wait, {name}", *report.waits(outcome, kind)


def json_of(outcome: Outcome) -> dict[str, Any]:
    """All of it, for programs."""
    return report.as_json(outcome)
