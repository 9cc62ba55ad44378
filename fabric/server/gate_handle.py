"""The gate's actor, seen from a door: found where it runs, started where none does, stopped when it is asked for.

All that the gate needs goes to it as arguments of its actor: the cluster file's sections, with the secrets in them, the
signing key, the prices. So it may run on any node, and be started again by Ray on another, without a file or a variable
of the operator's machine. Ray keeps an actor's arguments where every process of the cluster can read them, so they are
sealed: they open with the gate's secret, which comes from the signing key and is shown with every call. Who doesn't show
it is refused (`fabric.system.guarded`), and before it is sent, whatever is called the gate must prove that it is.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import ray
import structlog
from pydantic import SecretBytes
from ray.exceptions import RayActorError
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fabric.api.gate_port import GatePort
from fabric.api.remote_gate import call
from fabric.audit.signing import load_or_create_key
from fabric.config.cluster import ClusterConfig, RayJoin, SqliteJournal
from fabric.config.prices import load_catalogue, load_tariffs
from fabric.errors import Conflict, FabricError, NotFound, Unavailable, error_of
from fabric.gate.caps import Caps
from fabric.gate.events import AnyEvent, Configure
from fabric.gate.instructions import Outcome, Refusal
from fabric.gate.payments import OPERATOR
from fabric.server.actor import ACTOR_NAME
from fabric.server.gate_server import GatehouseActor
from fabric.server.start_terms import StartTerms
from fabric.system.guarded import Admitted, Stranger, ask_who, end_actor, sealed, secret_of
from fabric.system.unpickling import Refused

START_S: Final = 120.0
"""What a gate has for a step of its start; one that decides its journal again has it anew as long as it gets on."""
LOOK_S: Final = 10.0
STOP_S: Final = 30.0
AILMENT_S: Final = 5.0
CALLS_AT_ONCE: Final = 10_000

log = structlog.get_logger()


async def find_or_start(
    config: ClusterConfig, terms: StartTerms | None = None, *, say: Callable[[str], None] = lambda _: None
) -> tuple[Admitted, str]:
    """The one gate, ready to answer, with the prices of the cluster file; and the key that its checkpoints verify with.

    Args:
        config: the cluster file.
        terms: what the operator says about its start; None = nothing, it may run already.
        say: is told how far it has come with its journal, where that takes long.

    Raises:
        Conflict: the gate that runs was started with another journal, archive, ...: the message says what to do.
        FabricError: it did not come up, and why; one that was started here is not left behind.
    """
    prices = Configure(
        tariffs=load_tariffs(config.tariffs),
        catalogue=load_catalogue(config.plans),
        operator=config.operator,
        payments=config.payments or OPERATOR,
        policy=config.scheduling.policy,
        caps=Caps(
            keys=config.limits.keys,
            members=config.limits.members,
            projects=config.limits.projects,
            queued_jobs=config.limits.queued_jobs,
        ),
    )
    found = await _found(config)
    actor = found or _start(config, prices)
    try:
        if terms is not None:
            await _answer(actor.prepare.remote(terms), within_s=START_S)
        verifier_key = await _come_up(actor, say)
        if found is not None:
            await _check_same(actor, config)
        outcome: Outcome = await _answer(actor.price.remote(prices), within_s=START_S)
        check(outcome)
    except BaseException:
        if found is None:
            ray.kill(actor.actor, no_restart=True)
        raise
    return actor, verifier_key


async def _come_up(actor: Any, say: Callable[[str], None]) -> str:
    """The gate's key when it is up. All of its journal may have to be decided again: it is waited for as long as it gets on."""
    coming = asyncio.ensure_future(call(actor.ready.remote()))
    decided, still_s = 0, 0.0
    try:
        while not (await asyncio.wait((coming,), timeout=LOOK_S))[0]:
            before, (decided, entries) = decided, await _answer(actor.replayed.remote(), within_s=START_S)
            still_s = 0.0 if decided > before else still_s + LOOK_S
            if still_s >= START_S:
                raise _silent()
            if decided > before:
                say(f"the gate decides its journal again: {decided:,} of {entries:,} entries")
        key: str = coming.result()
        return key
    finally:
        coming.cancel()


async def revive(actor: Admitted, config: ClusterConfig) -> None:
    """Start the gate again where Ray doesn't, because it was ended for good; `actor` leads to it from now on."""
    found, _ = await find_or_start(config)
    actor.actor = found.actor


def is_there(config: ClusterConfig) -> bool:
    """Whether anything is called the gate in Ray's namespace, whether or not it answers or is ours."""
    return {"name": ACTOR_NAME, "namespace": config.ray.namespace} in list_named_actors(all_namespaces=True)


async def _found(config: ClusterConfig) -> Admitted | None:
    """The gate that runs there; None if there is none.

    One with our secret that nobody has told it since it was started has nothing open: it is ended, and so is what a job has
    put in its place.

    Raises:
        Conflict: what runs there was made with another secret, or is no gate at all.
    """
    if not is_there(config):
        return None
    secret = _secret(config)
    try:
        actor = Admitted(ray.get_actor(ACTOR_NAME, namespace=config.ray.namespace), secret)
        said, nonce = await ask_who(actor, within_s=START_S)
        if actor.is_proven(said, nonce):
            return actor
        is_mine = actor.is_ours(said)
    except ValueError:
        return None
    except RayActorError as error:
        raise Unavailable("the gate is restarting: try again", code="gate_restarting") from error
    except (Stranger, Refused):
        is_mine = False
    except TimeoutError:
        raise _silent() from None
    if not is_mine:
        raise Conflict(
            f"what is called {ACTOR_NAME} in Ray's namespace {config.ray.namespace} can't prove to be this fabric's gate: it"
            f" was started with another signing key than {config.signing_key}, or by somebody else. Use the key it was"
            " started with; to end it whatever it is, which loses nothing that a gate has journaled: fabric down --gate"
            " --config FILE; for a second fabric, set another ray.namespace",
            code="other_gate",
            sections="signing_key",
        )
    log.warning("gate_replaced", told="nobody had told it its secret: it was just started again, or it is none")
    await asyncio.to_thread(end_actor, ACTOR_NAME, config.ray.namespace)
    return None


async def end(config: ClusterConfig) -> None:
    """Have the gate keep a snapshot and let go of its journal, then end it for good. Jobs go on without it.

    Raises:
        NotFound: no gate runs there.
    """
    if not is_there(config):
        raise NotFound(f"no gate runs in Ray's namespace {config.ray.namespace}", code="no_gate")
    try:
        actor = await _found(config)
    except (Conflict, Unavailable) as error:
        log.warning("gate_ended_without_a_word", code=error.code, error=error.message)
        actor = None
    if actor is not None:
        await close(actor)
    else:
        await asyncio.to_thread(end_actor, ACTOR_NAME, config.ray.namespace)


async def ailment(actor: Admitted) -> str:
    """What is wrong with the gate, in a sentence; "" if nothing is. Answers soon, whatever the gate does."""
    try:
        said: str = await _answer(actor.ailment.remote(), within_s=AILMENT_S)
    except Exception as error:  # noqa: BLE001 - whatever it is, that is what is wrong
        return error.message if isinstance(error, FabricError) else f"{type(error).__name__}: {error}"
    return said


async def close(actor: Admitted) -> str:
    """End an actor in order; killed where it doesn't, which loses nothing. Returns what went wrong, or ""."""
    wrong = ""
    try:
        await _answer(actor.close.remote(), within_s=STOP_S)
    except Exception as error:  # noqa: BLE001 - the journal has everything
        wrong = f"{type(error).__name__}: {error}"
    ray.kill(actor.actor, no_restart=True)
    return wrong


async def decide(port: GatePort, event: AnyEvent) -> None:
    """Have one event decided; a refusal is raised as the error it is."""
    (outcome,) = await port.decide([event])
    check(outcome)


def check(outcome: Outcome) -> None:
    """Raise a refusal as the error it is."""
    if isinstance(outcome, Refusal):
        raise error_of(outcome.code, outcome.http_status, outcome.message, outcome.facts)


def _secret(config: ClusterConfig) -> bytes:
    return secret_of(load_or_create_key(config.signing_key), f"gate {config.ray.namespace}")


def _start(config: ClusterConfig, prices: Configure) -> Admitted:
    """On this node, so that its door is here. One whose journal is no file of this machine may be started again elsewhere."""
    elsewhere = isinstance(config.ray, RayJoin) and not isinstance(config.journal, SqliteJournal)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=elsewhere)
    secret = _secret(config)
    signing_key = SecretBytes(load_or_create_key(config.signing_key))
    closed, digest = sealed(secret, config, signing_key=signing_key, prices=prices)
    actor = (
        ray.remote(GatehouseActor)
        .options(
            name=ACTOR_NAME,
            namespace=config.ray.namespace,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=CALLS_AT_ONCE,
            num_cpus=0,
            scheduling_strategy=here,
        )
        .remote(closed, digest)
    )
    return Admitted(actor, secret)


async def _check_same(actor: Admitted, config: ClusterConfig) -> None:
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
        raise _silent(within_s) from None


def _silent(within_s: float = START_S) -> Unavailable:
    return Unavailable(
        f"the gate has not answered for {within_s:.0f} s: see `ray list actors`, and whether its journal can be reached",
        code="gate_silent",
    )
