"""The process behind `fabric up`: brings the cluster, the gate and the door up, and takes them down again in order.

It is Ray's driver of an embedded cluster, or joins a running one; the gate itself is a detached actor, and so a process
that is started again finds it where it was.
"""

import argparse
import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import ray
import structlog

from fabric import daemon, logs
from fabric.api.gate_client import GateClient
from fabric.api.gate_port import GatePort
from fabric.api.remote_gate import RemoteGate
from fabric.api.tls import TlsFiles, ensure_certificate
from fabric.cluster.local import LocalCluster, LocalNode
from fabric.config.cluster import FOR_MONEY, ClusterConfig, RayLocal, load_cluster
from fabric.config.sections import Settings
from fabric.config.sections import TlsFiles as ConfiguredTls
from fabric.daemon import addresses, models, operator_keys, parking, recovery
from fabric.daemon.state_dir import HEALTH_S, announce, note_health, tell
from fabric.doctor import Finding, Health, dependencies, machine, software
from fabric.errors import FabricError, Unavailable
from fabric.gate.account_events import OpenAccount
from fabric.gate.key_scopes import OF_PROCESSES
from fabric.gate.questions import BalanceOf, NodesOf, PricesOf
from fabric.server import gate_handle
from fabric.server.keeper import Doorkeeper
from fabric.server.start_terms import StartTerms
from fabric.server.wiring import SOON_S, open_archive_of, with_bucket_keys, work_dir_of
from fabric.system.private_folder import IDLE
from fabric.system.unpickling import restrict_ray
from fabric.units import AccountId

OPERATOR: Final = AccountId("operator")
"""The operator's own account: its keys belong to it."""
LOCAL_ACCOUNT: Final = AccountId("local")
"""The customer that a one-machine fabric opens for whoever started it."""
INTERRUPTED: Final = 130

log = structlog.get_logger()


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; 0 after an orderly end."""
    parser = argparse.ArgumentParser(prog="python -m fabric.daemon", description=__doc__)
    parser.add_argument("--config", type=Path, help="cluster file; the one-machine cluster if not given")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--any-port", action="store_true", help="listen at free ports, not at those in the file")
    parser.add_argument(
        "--replay-from", type=int, help="start from a snapshot after at most so many entries; 0: from none"
    )
    parser.add_argument("--accept-time", action="store_true", help="the clock is right, however far ahead it is")
    parser.add_argument("--ports", type=int, nargs=3, help="of the door, the dashboard and the models: it begins again")
    parser.add_argument(
        "--lock", type=int, help="the state directory's, kept open by the process that this one was before"
    )
    parser.add_argument("--steps", type=Path, help="where to say how far the start has come, in lines of JSON")
    parser.add_argument(
        "--end-gate", action="store_true", help="stop the gate of the Ray cluster that is joined, and end"
    )
    given = parser.parse_args(argv)
    logs.begin(Settings().log_level)
    restrict_ray()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with daemon.held(given.state_dir, kept=given.lock) as given.lock, ExitStack() as stack:
            stack.enter_context(_nothing_left(given.state_dir))
            _Service(given, stack).run()
    except FabricError as error:
        log.error("ended", code=error.code, error=error.message)  # noqa: TRY400 - expected: no traceback
        step = daemon.Step(doing="", error=error.message, code=error.code, http_status=error.http_status)
        tell(given.steps, step)
        if given.ports is None or error.code == "already_up":
            return error.exit_code
    except KeyboardInterrupt:
        log.info("interrupted")
        return INTERRUPTED
    except Exception as error:
        log.exception("ended")
        tell(given.steps, daemon.Step(doing="", error=f"{type(error).__name__}: {error}"))
        if given.ports is None:
            return 1
    else:
        return 0
    with suppress(KeyboardInterrupt):
        recovery.try_again(given)
    return INTERRUPTED


class _Service:
    """One run of the process."""

    def __init__(self, given: argparse.Namespace, stack: ExitStack) -> None:
        self._given = given
        self._stack = stack
        self._state_dir: Path = given.state_dir
        self._config = _load(given.config, given.state_dir, any_port=given.any_port, ports=given.ports)
        self._cluster: LocalCluster | None = None
        """The Ray cluster that is ours."""
        self._recovery: recovery.Recovery | None = None

    def run(self) -> None:
        if isinstance(self._config.ray, RayLocal) and not self._given.end_gate:
            _check_ports(self._config)
        dashboard = self._join_or_start_ray()
        asyncio.run(gate_handle.end(self._config) if self._given.end_gate else self._serve(dashboard))

    def _join_or_start_ray(self) -> str:
        """The dashboard's address."""
        asked = self._config.ray
        if not isinstance(asked, RayLocal):
            self._tell(f"joining Ray at {asked.address}")
            _require(dependencies.check_ray_address(asked.address), code="ray_unreachable")
            return self._join(asked.address, namespace=asked.namespace)
        nodes = [
            LocalNode(
                node_id=node.node,
                accelerator=node.accelerator,
                devices=node.devices,
                pool=node.pool.value,
                dedicated_to=node.dedicated_to or "",
                notice_s=node.notice_s,
                parts=node.parts,
            )
            for node in asked.nodes
        ]
        cluster = LocalCluster.start(
            nodes=nodes,
            temp_dir=daemon.new_session_folder(self._state_dir),
            dashboard_port=self._config.dashboard.port or None,
            token_file=daemon.ray_token_file(self._state_dir),
            idle_dir=work_dir_of(self._config) / IDLE,
            namespace=asked.namespace,
            told=self._tell,
        )
        self._stack.callback(shutil.rmtree, work_dir_of(self._config), ignore_errors=True)
        self._stack.callback(cluster.stop)
        self._cluster, self._recovery = cluster, recovery.Recovery(cluster)
        return cluster.dashboard_url

    def _join(self, address: str, *, namespace: str) -> str:
        try:
            context = ray.init(address=address, namespace=namespace, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise Unavailable(
                f"can't join Ray at {address}: {error}. `fabric doctor --config FILE` says what is missing",
                code="ray_unreachable",
            ) from error
        self._stack.callback(ray.shutdown)
        return f"http://{context.dashboard_url}" if context.dashboard_url else ""

    async def _serve(self, dashboard: str) -> None:
        stopped, hurried = asyncio.Event(), asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(
                name, lambda: hurried.set() if stopped.is_set() else stopped.set()
            )
        opening = asyncio.create_task(self._open(dashboard))
        serving = asyncio.create_task(self._host(opening))
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait((opening, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            opening.cancel()
            await asyncio.wait((opening, serving))
            raise KeyboardInterrupt
        door, actor = opening.result()
        watching = asyncio.create_task(self._watch_health(actor))
        mending = [asyncio.create_task(self._recovery.run())] if self._recovery is not None else []
        await asyncio.wait((stopping, *mending), return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            self._begin_again(mending[0].result(), door=door.port, dashboard=urlsplit(dashboard).port or 0)
        for each in (watching, *mending):
            each.cancel()
        serving.cancel()
        await asyncio.wait((serving,))
        if isinstance(self._config.ray, RayLocal):
            await self._park(actor, hurried)
        await door.close()
        if not isinstance(self._config.ray, RayLocal):
            return
        if wrong := await gate_handle.close(actor):
            log.warning("gate_not_closed", error=wrong)
        await recovery.end_if_silent(self._state_dir, work_dir_of(self._config))

    async def _watch_health(self, actor: Any) -> None:
        """Keep in the state directory what is wrong with the gate, for a second start to say."""
        told = ""
        while True:
            wrong = self._recovery.wrong if self._recovery is not None else ""
            ailment = wrong or await gate_handle.ailment(actor)
            if ailment and not told:
                log.warning("gate_ails", what=ailment)
            told = ailment
            with suppress(OSError):
                note_health(self._state_dir, ailment)
            await asyncio.sleep(HEALTH_S)

    def _begin_again(self, why: str, *, door: int, dashboard: int) -> NoReturn:
        """Become a process, at the same addresses, that ends what is left and starts anew from journal and checkpoints."""
        log.error("begins_again", why=why)
        with suppress(OSError):
            told = f"{why}: everything is started again, and jobs go on from what they saved last"
            note_health(self._state_dir, told)
        assert self._cluster is not None
        self._cluster.leave()
        models_at = self._config.serving.port if self._config.serving else 0
        recovery.begin_again(self._given, ports=(door, dashboard, models_at))

    async def _park(self, actor: Any, hurried: asyncio.Event) -> None:
        """Have what runs on the cluster that is ours saved before it ends, unless whoever ends it can't wait."""

        def told(leases: int, within_s: float) -> None:
            doing = f"saving what runs: {leases} left, {within_s:.0f} s at most (Ctrl-C twice, or --now, doesn't wait)"
            tell(daemon.ending_file(self._state_dir), daemon.Step(doing=doing, within_s=within_s))

        port = GateClient(RemoteGate(actor), archive=open_archive_of(self._config, answers_s=SOON_S))
        saving = asyncio.create_task(parking.park(port, told=told))
        hurrying = asyncio.create_task(self._hurry(hurried))
        await asyncio.wait((saving, hurrying), return_when=asyncio.FIRST_COMPLETED)
        saving.cancel()
        hurrying.cancel()
        for each in await asyncio.gather(saving, hurrying, return_exceptions=True):
            if isinstance(each, Exception):
                log.warning("not_parked", error=f"{type(each).__name__}: {each}")

    async def _hurry(self, hurried: asyncio.Event) -> None:
        """Until told a second time to stop, or that nobody waits for jobs."""
        while not (hurried.is_set() or daemon.now_file(self._state_dir).exists()):
            with suppress(TimeoutError):
                await asyncio.wait_for(hurried.wait(), parking.POLL_S)

    async def _host(self, opening: "asyncio.Task[tuple[Doorkeeper, Any]]") -> None:
        """Models, once the door stands open: the host of their replicas, and the tokens it spends."""
        config = self._config.serving
        await asyncio.wait((opening,))
        if config is None or opening.cancelled() or opening.exception() is not None:
            return
        port = GateClient(RemoteGate(opening.result()[1]), archive=open_archive_of(self._config, answers_s=SOON_S))
        hosting = daemon.Hosting(
            self._state_dir, listen=config.listen, config=self._given.config, grace_s=config.grace_s
        )
        funding = asyncio.create_task(models.keep_funded(port, OPERATOR, config.funds))
        try:
            await hosting.run()
        finally:
            funding.cancel()
            await asyncio.wait((funding,))

    async def _open(self, dashboard: str) -> tuple[Doorkeeper, Any]:
        self._tell("starting the gate: reading its journal")
        if not isinstance(self._config.ray, RayLocal) and not gate_handle.is_there(self._config):
            _check_ports(self._config)
        given = self._given
        asked = given.accept_time or given.replay_from is not None
        terms = StartTerms(replay_from=given.replay_from, accept_time=given.accept_time) if asked else None
        actor, verifier_key = await gate_handle.find_or_start(self._config, terms, say=self._tell)
        self._tell("opening the door")
        tls, rpc = _tls(self._config, self._state_dir), self._config.rpc
        door = Doorkeeper(actor, self._config, tls=tls, revive=lambda: gate_handle.revive(actor, self._config))
        await door.open()
        port = GateClient(RemoteGate(actor), archive=open_archive_of(self._config, answers_s=SOON_S))
        await _settle_in(self._config, port, self._state_dir)
        serving = self._config.serving
        if serving is not None:
            await models.settle_in(port, serving, operator=OPERATOR)
        nodes: Any = await port.ask(NodesOf())
        is_local = isinstance(self._config.ray, RayLocal)
        found = daemon.Running(
            name=self._config.name,
            pid=os.getpid(),
            address=addresses.joined("localhost" if addresses.is_everywhere(rpc.host) else rpc.host, door.port),
            ca=str(tls.ca or ""),
            dashboard=dashboard,
            ray_address=ray.get_runtime_context().gcs_address,
            ray_token=str(daemon.ray_token_file(self._state_dir)) if is_local else "",
            verifier_key=verifier_key,
            state_dir=str(self._state_dir),
            nodes=len(nodes),
            account=LOCAL_ACCOUNT if is_local else "",
            config=str(self._given.config or ""),
            joined=not is_local,
            endpoint="" if serving is None else models.endpoint_of(serving),
            payments=self._config.payments or "",
            giveaway=self._config.giveaway,
        )
        if found.giveaway:
            log.error("tokens_cost_nothing", told=found.giveaway, remedy=FOR_MONEY)
        announce(self._state_dir, found)
        tell(self._given.steps, daemon.Step(doing="up", up=True))
        log.info("up", address=found.address, nodes=found.nodes, dashboard=dashboard)
        return door, actor

    def _tell(self, doing: str) -> None:
        tell(self._given.steps, daemon.Step(doing=doing))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _nothing_left(state_dir: Path) -> Iterator[None]:
    """Before: end what a fabric that was killed here has left. Afterwards: what Ray has not ended itself."""
    if ended := daemon.end_remains(state_dir):
        log.warning("ended_remains", processes=ended)
    daemon.now_file(state_dir).unlink(missing_ok=True)
    try:
        yield
    finally:
        daemon.end_remains(state_dir)


def _load(config: Path | None, state_dir: Path, *, any_port: bool, ports: Sequence[int] | None = None) -> ClusterConfig:
    """The cluster file, with its paths below the state directory; with `any_port`, at free ports; with `ports`, at those."""
    found = load_cluster(config, environ={**os.environ, "FABRIC_STATE_DIR": str(state_dir)})
    if isinstance(found.ray, RayLocal):
        found = with_bucket_keys(found)
    found = found.model_copy(update={"serving": models.located(found.serving, any_port=any_port)})
    if not any_port and ports is None:
        return found
    at, dashboard_at, models_at = ports or (0, 0, 0)
    rpc = found.rpc.model_copy(update={"listen": addresses.moved(found.rpc.listen, at)})
    dashboard = found.dashboard.model_copy(update={"port": dashboard_at})
    serving = found.serving
    if serving is not None and models_at:
        serving = serving.model_copy(update={"listen": addresses.moved(serving.listen, models_at)})
    return found.model_copy(update={"rpc": rpc, "dashboard": dashboard, "serving": serving})


def _check_ports(config: ClusterConfig) -> None:
    """Say that a port is taken before a cluster is started for nothing."""
    _require(machine.check_port(config.rpc.host, config.rpc.port, name="rpc.listen"), code="address_taken")
    if config.serving is not None:
        serving = config.serving
        _require(machine.check_port(serving.host, serving.port, name="serving.listen"), code="address_taken")
        if serving.has_ingress:
            _require(software.check_haproxy(software.ask_haproxy()), code="no_haproxy")
    if isinstance(config.ray, RayLocal):
        _require(machine.check_port("127.0.0.1", config.dashboard.port, name="dashboard.port"), code="address_taken")


def _require(finding: Finding, *, code: str) -> None:
    if finding.health is Health.FAIL:
        raise Unavailable(f"{finding.found}: {finding.remedy}", code=code)


def _tls(config: ClusterConfig, state_dir: Path) -> TlsFiles:
    if isinstance(config.rpc.tls, ConfiguredTls):
        return TlsFiles(cert=config.rpc.tls.cert, key=config.rpc.tls.key)
    host = config.rpc.host
    hosts = (socket.gethostname(), socket.getfqdn()) if addresses.is_everywhere(host) else (host,)
    return ensure_certificate(state_dir, hosts=hosts)


async def _settle_in(config: ClusterConfig, port: GatePort, state_dir: Path) -> None:
    """The operator's account and keys, and a customer for whoever runs it on one machine."""
    await _ensure_account(port, OPERATOR, name="The operator")
    if isinstance(config.ray, RayLocal):
        await _ensure_account(port, LOCAL_ACCOUNT, name="You, on this machine")
    await operator_keys.ensure_root(port, OPERATOR, file=daemon.operator_key_file(state_dir))
    for role in sorted(OF_PROCESSES):
        await operator_keys.renew(port, OPERATOR, role=role, file=daemon.role_key_file(state_dir, role))


async def _ensure_account(port: GatePort, account_id: AccountId, *, name: str) -> None:
    if await port.ask(BalanceOf(account_id=account_id)) is None:
        prices: Any = await port.ask(PricesOf())
        await gate_handle.decide(
            port, OpenAccount(account_id=account_id, name=name, plan=prices.catalogue.plans[0].name)
        )


if __name__ == "__main__":
    sys.exit(main())
