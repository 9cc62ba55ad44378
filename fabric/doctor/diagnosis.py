"""All checks in order: the machine first, then what a cluster file needs beyond it."""

import asyncio
import datetime as dt
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from fabric.api.limits import Limits
from fabric.audit.signing import load_or_create_key
from fabric.config.cluster import (
    FOR_MONEY,
    ClusterConfig,
    DirectoryArchive,
    PostgresJournal,
    RayJoin,
    RayLocal,
    SqliteJournal,
    StorageConfig,
)
from fabric.config.prices import load_catalogue, load_tariffs
from fabric.config.sections import Settings, TlsFiles
from fabric.config.serving import ServingConfig
from fabric.doctor import dependencies, machine, software
from fabric.doctor.findings import Finding, Health, fail, ok, warn
from fabric.doctor.witnesses import check_witnesses
from fabric.errors import FabricError, InvalidConfig
from fabric.gate.keys import GOOD_MAX
from fabric.journal.place import InFiles
from fabric.journal.process import place_of
from fabric.notifications.store import Standing, file_of, open_store
from fabric.server.wiring import open_journal_of, providers_of

_MIB: Final = 2**20
_GIB: Final = 2**30


def diagnose(config: ClusterConfig | None = None) -> list[Finding]:
    """Look at this machine and, with a cluster file, at everything it names. Takes seconds; blocks; changes nothing."""
    findings = _look_at_machine()
    return findings + (_look_at_cluster(config) if config is not None else [_state_dir(), *_look_at_local()])


def _look_at_machine() -> list[Finding]:
    found = software.installed()
    tools = machine.ask_tools()
    return [
        software.tell_release(),
        software.check_python(sys.version_info[:3]),
        *software.check_packages(found, pinned=software.wanted()),
        software.check_torch_build(found.get("torch"), has_gpu=bool(tools["nvidia-smi"])),
        software.check_sqlite(apsw.sqlite_lib_version()),
        machine.check_shared_memory(machine.free_shared_memory()),
        *machine.check_accelerators(tools),
        *machine.check_meters(tools, machine.ask_counters()),
    ]


def _look_at_cluster(config: ClusterConfig) -> list[Finding]:
    now = dt.datetime.now(dt.UTC)
    findings = [
        machine.check_clock(now, last_written=_last_written(config)),
        machine.check_port(config.rpc.host, config.rpc.port, name="rpc.listen"),
        machine.check_signing_key(config.signing_key),
        _check_prices(config.tariffs, name="tariffs", load=load_tariffs),
        _check_prices(config.plans, name="plans", load=load_catalogue),
        _check_payments(config),
        _tell_limits(config),
        _tell_storage(config.storage),
    ]
    if isinstance(config.rpc.tls, TlsFiles):
        findings.append(machine.check_tls(config.rpc.tls, now=now))
    if config.serving is not None:
        findings += _look_at_serving(config.serving, now)
    match config.journal:
        case SqliteJournal(path=path):
            findings.append(machine.check_disk(path.parent, name="journal.path"))
        case PostgresJournal(dsn=dsn):
            findings.append(dependencies.check_postgres(dsn.get_secret_value()))
    findings += _look_at_rules(config) + _look_at_notices(config)
    findings += check_witnesses(config.witnesses, origin=config.name, signing_key=_signing_key(config))
    if isinstance(config.archive, DirectoryArchive):
        findings.append(machine.check_disk(config.archive.path, name="archive.path"))
    else:
        findings.append(dependencies.check_s3(config.archive))
    return findings + _look_at_ray(config.ray, dashboard=config.dashboard.port)


def _look_at_notices(config: ClusterConfig) -> list[Finding]:
    """Whether accounts are told what they are to hear of; nothing where nobody wants to be, and of a database, in which looking
    would make tables: there metrics tell.
    """
    place = place_of(config)
    if not isinstance(place, InFiles) or not file_of(place).exists():
        return []
    try:
        standing, size = asyncio.run(_standing(place))
    except Exception as error:  # noqa: BLE001 (whatever keeps it from answering is the finding)
        said = str(error).partition("\n")[0] or type(error).__name__
        return [warn("notices", said, remedy="look at what the gate's log says of notices")]
    if standing.followed is None:
        return []
    behind = size - standing.followed
    said = f"{behind} entries behind, {standing.waiting} wait, {standing.failing} endpoints fail, {standing.ended} have ended"
    if standing.failing or standing.ended:
        remedy = "fabric notices ls --account ACCOUNT shows which: its owner mends it, or removes it"
        return [warn("notices", said, remedy=remedy)]
    return [ok("notices", said)]


async def _standing(place: InFiles) -> tuple[Standing, int]:
    store, journal = open_store(place), place.journal()
    try:
        return await store.standing(), (await journal.head()).size
    finally:
        await store.close()
        await journal.close()


def _look_at_serving(serving: ServingConfig, now: dt.datetime) -> list[Finding]:
    """The endpoint's port and certificate; with models, the engine and the folders that they are read from."""
    findings = [machine.check_port(serving.host, serving.port, name="serving.listen")]
    if isinstance(serving.tls, TlsFiles):
        findings.append(machine.check_tls(serving.tls, now=now))
    findings += [software.check_haproxy(software.ask_haproxy())] if serving.has_ingress else []
    findings += (
        [software.check_engine(software.installed(), {each.engine_name for each in serving.models})]
        if serving.models
        else []
    )
    sources = [(model.name, Path(model.source)) for model in serving.models if model.source.startswith("/")]
    return findings + [machine.check_model(name, folder) for name, folder in sources]


def _look_at_ray(ray: RayLocal | RayJoin, *, dashboard: int) -> list[Finding]:
    if isinstance(ray, RayLocal):
        return [
            machine.check_memory(machine.free_memory(), nodes=len(ray.nodes)),
            machine.check_port("127.0.0.1", dashboard, name="dashboard.port"),
        ]
    reached = dependencies.check_ray_address(ray.address)
    if reached.health is Health.FAIL:
        return [reached]
    try:
        nodes, control_store = dependencies.ask_ray(ray.address)
        looks = dependencies.check_reconciler(dependencies.ask_reconciler(control_store), now_s=time.time())
        return [reached, *dependencies.check_labels(nodes), *dependencies.check_declared(nodes), *looks]
    except Exception as error:  # noqa: BLE001 (whatever keeps Ray from answering is the finding)
        remedy = "check that it is the same Ray and Python, and that `ray get-auth-token` says the cluster's token here"
        return [reached, fail("ray cluster", str(error).partition("\n")[0] or type(error).__name__, remedy=remedy)]


def _look_at_local() -> list[Finding]:
    """The local fabric that is up here, if one is."""
    try:
        run = json.loads((Settings().state_dir / "run.json").read_bytes())
        said = dependencies.ask_reconciler(run["ray_address"], token_file=Path(run["ray_token"]))
        return dependencies.check_reconciler(said, now_s=time.time())
    except Exception:  # noqa: BLE001 (it isn't up, or not to be reached: that is for `fabric status` to say)
        return []


def _check_prices(path: Path, *, name: str, load: Callable[[Path], object]) -> Finding:
    try:
        load(path)
    except InvalidConfig as error:
        return fail(name, error.message, remedy=f"let {name} name a file like those in cluster-configs/")
    return ok(name, str(path))


def _check_payments(config: ClusterConfig) -> Finding:
    if config.giveaway:
        return warn("payments", f"sandbox: {config.giveaway}", remedy=FOR_MONEY)
    if config.payments == "sandbox":
        return ok("payments", "sandbox: every customer on this machine is believed; nobody else reaches it")
    if config.payments in ("stripe", "alipay"):
        return _check_provider(config)
    return ok("payments", "operator: customers book nothing, operators book each payment by its reference")


def _check_provider(config: ClusterConfig) -> Finding:
    """Whether its keys are keys; whether they count, only its provider knows."""
    try:
        providers_of(config, now_us=lambda: 0)
    except FabricError as error:
        return fail(
            "payments", error.message, remedy=f"set it right in the section {config.payments} of the cluster file"
        )
    said = f"{config.payments}: customers pay there, and its notices come in at POST /payments/{config.payments}"
    if config.serving is None:
        return warn(
            "payments",
            f"{said}, but there is no HTTP port: payments are asked about, which takes longer",
            remedy="serving:",
        )
    return ok("payments", said)


def _tell_limits(config: ClusterConfig) -> Finding:
    """What one customer, and one address, may ask for here."""
    limits, others = config.limits, Limits()
    said = [
        f"an account: {limits.requests_per_s} requests a second, {others.calls} calls, {others.streams} streams",
        f"{others.log_bytes_per_s // _MIB} MiB of logs a second",
        f"{limits.blobs_bytes // _MIB} MiB of blobs ({others.blobs_bytes_without_tokens // _MIB} MiB without tokens)",
        f"{GOOD_MAX} keys",
    ]
    if config.serving is not None:
        said.append(f"{config.serving.limits.requests_per_s} requests a second of models at each gateway")
    return ok("limits", f"{', '.join(said)}; an address: {limits.connections_per_address} connections")


def _tell_storage(storage: StorageConfig) -> Finding:
    """What the jobs of one customer may keep here."""
    return ok(
        "storage",
        f"an account's jobs keep {storage.account_bytes / _GIB:,.6g} GiB in {storage.account_values:,} values, and"
        f" {storage.checkpoint_bytes / _GIB:,.6g} GiB in one checkpoint; an attempt has {storage.attempt_bytes / _GIB:,.6g} GiB"
        f" in {storage.attempt_files:,} files on a node",
    )


def _last_written(config: ClusterConfig) -> dt.datetime | None:
    if not isinstance(config.journal, SqliteJournal) or not config.journal.path.exists():
        return None
    return dt.datetime.fromtimestamp(config.journal.path.stat().st_mtime, tz=dt.UTC)


def _look_at_rules(config: ClusterConfig) -> list[Finding]:
    """Of a journal that is there: whether this version can go on with it. One out of reach has been told of."""
    if isinstance(config.journal, SqliteJournal) and not config.journal.path.exists():
        return []
    found = dependencies.check_journal(open_journal_of(config))
    return [found] if found is not None else []


def _signing_key(config: ClusterConfig) -> bytes | None:
    """The log's, if it is there and can be used; else another finding says so."""
    try:
        return load_or_create_key(config.signing_key) if config.signing_key.exists() else None
    except (InvalidConfig, OSError):
        return None


def _state_dir() -> Finding:
    return machine.check_disk(Settings().state_dir, name="state directory")
