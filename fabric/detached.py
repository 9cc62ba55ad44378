"""The gate's actor, seen from a door: found where it runs, started where none does, stopped when it is asked for.

All that the gate needs goes to it as arguments of its actor: the cluster file's sections, with the secrets in them, the
signing key, the prices. So it may run on any node, and be started again by Ray on another, without a file or a variable
of the operator's machine. Arguments of an actor are in no environment, page or log of Ray's; what can read Ray's control
store or the gate's memory can read them, which is why a tenant who is not trusted needs a Ray cluster of their own.
"""

import asyncio
from typing import Any, Final

import ray
from pydantic import SecretBytes
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fabric.actor import ACTOR_NAME
from fabric.adapters.price_files import load_catalogue, load_tariffs
from fabric.adapters.signing import load_or_create_key
from fabric.api.port import GatePort
from fabric.api.remote_gate import call
from fabric.errors import Conflict, NotFound, Unavailable, error_of
from fabric.gate.events import AnyEvent, Configure
from fabric.gate.instructions import Outcome, Refusal
from fabric.gate.treasury import OPERATOR
from fabric.gatehouse import Gatehouse
from fabric.settings import ClusterConfig, RayJoin, SqliteJournal

START_S: Final = 120.0
STOP_S: Final = 30.0
CALLS_AT_ONCE: Final = 10_000


async def find_or_start(config: ClusterConfig) -> tuple[Any, str]:
    """The one gate, ready to answer, with the prices of the cluster file; and the key that its checkpoints verify with.

    Raises:
        Conflict: the gate that runs was started with another journal, archive, ...: the message says what to do.
        FabricError: it did not come up, and why; one that was started here is not left behind.
    """
    prices = Configure(
        tariffs=load_tariffs(config.tariffs),
        catalogue=load_catalogue(config.plans),
        operator=config.operator,
        payments=config.payments or OPERATOR,
    )
    found = find(config)
    actor = found or _start(config, prices)
    try:
        verifier_key = await _answer(actor.ready.remote(), within_s=START_S)
        if found is not None:
            await _check_same(actor, config)
        outcome: Outcome = await _answer(actor.price.remote(prices), within_s=START_S)
        check(outcome)
    except BaseException:
        if found is None:
            ray.kill(actor, no_restart=True)
        raise
    return actor, verifier_key


def find(config: ClusterConfig) -> Any | None:
    """The gate that runs in Ray's namespace, whether or not it answers; None if there is none."""
    try:
        return ray.get_actor(ACTOR_NAME, namespace=config.ray.namespace)
    except ValueError:
        return None


async def end(config: ClusterConfig) -> None:
    """Have the gate keep a snapshot and let go of its journal, then end it for good. Jobs go on without it.

    Raises:
        NotFound: no gate runs there.
    """
    actor = find(config)
    if actor is None:
        raise NotFound(f"no gate runs in Ray's namespace {config.ray.namespace}", code="no_gate")
    await close(actor)


async def close(actor: Any) -> str:
    """End an actor in order; killed where it doesn't, which loses nothing. Returns what went wrong, or ""."""
    wrong = ""
    try:
        await _answer(actor.close.remote(), within_s=STOP_S)
    except Exception as error:  # noqa: BLE001 - the journal has everything
        wrong = f"{type(error).__name__}: {error}"
    ray.kill(actor, no_restart=True)
    return wrong


async def decide(port: GatePort, event: AnyEvent) -> None:
    """Have one event decided; a refusal is raised as the error it is."""
    (outcome,) = await port.decide([event])
    check(outcome)


def check(outcome: Outcome) -> None:
    """Raise a refusal as the error it is."""
    if isinstance(outcome, Refusal):
        raise error_of(outcome.code, outcome.http_status, outcome.message, outcome.facts)


def _start(config: ClusterConfig, prices: Configure) -> Any:
    """On this node, so that its door is here. One whose journal is no file of this machine may be started again elsewhere."""
    elsewhere = isinstance(config.ray, RayJoin) and not isinstance(config.journal, SqliteJournal)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=elsewhere)
    return (
        ray.remote(Gatehouse)
        .options(
            name=ACTOR_NAME,
            namespace=config.ray.namespace,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=CALLS_AT_ONCE,
            num_cpus=0,
            scheduling_strategy=here,
        )
        .remote(config, signing_key=SecretBytes(load_or_create_key(config.signing_key)), prices=prices)
    )


async def _check_same(actor: Any, config: ClusterConfig) -> None:
    other: list[str] = await _answer(actor.differences.remote(config), within_s=START_S)
    if other:
        raise Conflict(
            f"the gate in Ray's namespace {config.ray.namespace} was started with another {', '.join(other)}. To give it"
            " this one, stop it first: fabric down --gate --config FILE. To keep it, use the file it was started with;"
            " for a second fabric, set another ray.namespace",
            code="other_gate",
            sections=", ".join(other),
        )


async def _answer(reference: Any, *, within_s: float) -> Any:
    try:
        return await asyncio.wait_for(call(reference), within_s)
    except TimeoutError:
        raise Unavailable(
            f"the gate has not answered for {within_s:.0f} s: see `ray list actors`, and whether its journal can be reached",
            code="gate_silent",
        ) from None
