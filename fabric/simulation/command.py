"""What `fabric simulate` does, for the command line to print."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fabric.config.cluster import load_cluster, shipped
from fabric.config.prices import load_catalogue, load_tariffs
from fabric.errors import InvalidRequest
from fabric.gate.state import GateState
from fabric.ledger import Book
from fabric.placement import PlacementState
from fabric.simulation import html, journals, options, report, traces
from fabric.simulation.experiment import Outcome, Plan, Tell, simulate
from fabric.simulation.measures import measure
from fabric.simulation.money import Prices
from fabric.simulation.offers import read_offers
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
    spot: Path | None = None
    notice: str = "0s"
    prices: Path | None = None
    plans: Path | None = None


def run(trace: journals.Source, asked: Asked, *, tell: Tell | None = None) -> Outcome:
    """Play a trace, or what a journal says was asked for, beside what happened.

    Raises:
        InvalidRequest, InvalidConfig: the trace, an option or the cluster file can't be read as such.
    """
    config = load_cluster(asked.cluster_file) if asked.cluster_file is not None else None
    policies = options.policies(asked.policies, numbers=config.scheduling.policy if config is not None else None)
    behaviour, tiers = behaviour_of(asked), options.tiers(asked.tiers)
    cluster = options.nodes(asked.nodes) if asked.nodes else None
    if cluster is None and config is not None:
        cluster = options.cluster_of(config)
    past = journals.read_journal(trace, tell=tell) if journals.is_journal(trace) else None
    works = (past.works if past is not None else traces.read(Path(trace)))[: asked.first]
    if cluster is None:
        cluster = past.cluster if past is not None else options.large_enough(works)
    was = measure(past, seed=1, money=past.sums.money()) if past is not None else None
    prices = _prices(asked, past.prices if past is not None else None)
    plan = Plan(
        works=works, cluster=cluster, behaviour=behaviour, tiers=tiers, users=asked.users, load=asked.load,
        seeds=asked.seeds, prices=prices, was=was,
    )  # fmt: skip
    return simulate(plan, policies, tell=tell)


def replay(journal: journals.Source, *, tell: Tell | None = None) -> journals.Replayed:
    """Decide a journal again.

    Raises:
        InvalidRequest, JournalCorrupt: it can't be read.
    """
    return journals.replay(journal, tell=tell)


def _prices(asked: Asked, known: Prices | None) -> Prices | None:
    """Those of the files that are named, else the journal's own."""
    if asked.prices is None and asked.plans is None:
        return known
    tariffs = load_tariffs(asked.prices or shipped("tariffs.yaml"))
    state = GateState(book=Book(), placement=PlacementState(), tariffs=tariffs)
    state.catalogue = load_catalogue(asked.plans or shipped("plans.yaml"))
    if asked.plans is None and known is not None:
        return Prices(tariffs=tariffs, microcny_per_ct=known.microcny_per_ct, operator=known.operator)
    found = Prices.of(state)
    if found is not None and asked.prices is None and known is not None:
        return Prices(tariffs=known.tariffs, microcny_per_ct=found.microcny_per_ct, operator=known.operator)
    return found


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
        offers=read_offers(asked.spot) if asked.spot is not None else (),
        notice_us=options.micros(asked.notice, what="--notice"),
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
    if any(run.money.burned_ct for run in outcome.runs):
        yield "tokens, money and energy", *report.money(outcome)
    for name, kind in report.KINDS:
        if wide or name in ("mean", "p99"):
            yield f"wait, {name}", *report.waits(outcome, kind)
    if wide:
        yield "part that started by the p90 that was told", *report.ranges(outcome)


def json_of(outcome: Outcome) -> dict[str, Any]:
    """All of it, for programs."""
    return report.as_json(outcome)


def html_of(outcome: Outcome, *, name: str) -> str:
    """All of it as one page, with plots."""
    return html.page(outcome, name=name)
