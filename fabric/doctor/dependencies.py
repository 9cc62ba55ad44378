"""What a cluster file joins: PostgreSQL, an S3 store, Ray. Passwords are never part of a finding."""

import asyncio
import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from fabric.accelerators import DEVICE_RESOURCES, TYPE_LABEL
from fabric.config.cluster import S3Archive
from fabric.doctor.findings import Finding, fail, ok, warn
from fabric.errors import Conflict, FabricError
from fabric.gate.events import Pool
from fabric.inventory.nodes import (
    BY_CPU,
    DEDICATED_LABEL,
    METER_LABEL,
    NODE_LABEL,
    NOTICE_LABEL,
    POOL_LABEL,
    notice_us_of,
)
from fabric.journal.store import Journal
from fabric.journal.versions import check_rules

_TIMEOUT_S: Final = 5
_SILENT_LOOKS: Final = 12
_POSTGRES_MIN: Final = 130_000
_PRECONDITION_FAILED: Final = 412


def check_postgres(dsn: str) -> Finding:
    """Reached, new enough, durable, and tables may be made."""
    parts = urlsplit(dsn)
    where = f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"
    try:
        facts = asyncio.run(_ask_postgres(dsn))
    except Exception as error:  # noqa: BLE001 (whatever keeps it from being reached is the finding)
        remedy = "check FABRIC_PG_DSN, that the server runs, and that pg_hba.conf lets this user in from here"
        return fail(
            "postgresql", f"{where}: {_without(str(error) or type(error).__name__, parts.password)}", remedy=remedy
        )
    return judge_postgres(where, facts)


def check_journal(journal: Journal) -> Finding | None:
    """Whether this version knows the rules that have taken the journal over; None where it can't be read now."""

    async def look() -> int:
        try:
            return await check_rules(journal)
        finally:
            await journal.close()

    try:
        taken_by = asyncio.run(look())
    except Conflict as error:
        return fail("journal", error.message, remedy=f"install token-fabric {error.facts['release']} or later here")
    except FabricError:
        return None
    return ok(
        "journal",
        f"taken over by rules {taken_by}" if taken_by else "says of no rules: it is new, or from before 0.2.0",
    )


def judge_postgres(where: str, facts: Mapping[str, Any]) -> Finding:
    """What a server said of itself and of what we may do there."""
    found = f"{where}: version {facts['version']}"
    if int(facts["version_num"]) < _POSTGRES_MIN:
        return fail("postgresql", found, remedy="use PostgreSQL 13 or newer")
    if not facts["may_create"]:
        remedy = f"as its owner: GRANT CREATE ON SCHEMA {facts['schema'] or 'public'} TO {facts['who']}"
        return fail("postgresql", f"{found}, but {facts['who']} may not make tables", remedy=remedy)
    if facts["fsync"] != "on" or facts["synchronous_commit"] in {"off", "local"}:
        return fail("postgresql", f"{found}, but commits are not durable", remedy="set fsync and synchronous_commit on")
    return ok("postgresql", found)


def check_s3(archive: S3Archive) -> Finding:
    """A small object is put, read, refused a second time, and deleted again."""
    import boto3  # noqa: PLC0415 (slow to import, and needed only here)
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    where = f"s3://{archive.bucket}/{archive.prefix}"
    key = f"{archive.prefix.strip('/')}/doctor-{secrets.token_hex(8)}".lstrip("/")
    at = {"Bucket": archive.bucket, "Key": key}
    remedy = "check the endpoint and the bucket, and that AWS_ACCESS_KEY_ID may put, get and delete in it"
    try:
        config = Config(connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S, retries={"total_max_attempts": 1})
        client = boto3.client(
            "s3", endpoint_url=archive.endpoint, region_name=archive.region, config=config, **_credentials(archive)
        )
        client.put_object(**at, Body=b"fabric", IfNoneMatch="*")
        try:
            read = client.get_object(**at)["Body"].read()
            guarded = _refuses_second(client, at, error=ClientError)
        finally:
            client.delete_object(**at)
    except (BotoCoreError, ClientError) as error:
        return fail("s3", f"{where}: {error}", remedy=remedy)
    if read != b"fabric":
        return fail("s3", f"{where}: what was read is not what was put", remedy="use another store")
    if not guarded:
        return warn(
            "s3", f"{where}: ignores If-None-Match", remedy="use a store with conditional writes, or one gate alone"
        )
    return ok("s3", f"{where}: put, get, delete and conditional writes work")


def check_ray_address(address: str) -> Finding:
    """Whether something listens there. `auto` is looked up as Ray does, who would try for minutes to reach what is gone."""
    remedy = "check RAY_ADDRESS, and that Ray's head node runs: ray start --head"
    found = _found_by_ray() if address == "auto" else address
    if not found:
        return fail("ray address", "auto: no Ray runs on this machine, and RAY_ADDRESS isn't set", remedy=remedy)
    said = address if found == address else f"{address}, {found}"
    host, _, port = found.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S):
            return ok("ray address", said)
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        return fail("ray address", f"{said}: {what}", remedy=remedy)


def _found_by_ray() -> str:
    """Where Ray would look for `auto`: RAY_ADDRESS, else the cluster that was started here last, gone or not; "" = nowhere."""
    from ray._private.services import get_ray_address_from_environment  # noqa: PLC0415 (slow to import)

    try:
        return str(get_ray_address_from_environment("auto", None) or "")
    except ConnectionError:
        return ""


def check_labels(nodes: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Of `ray.nodes()`: every node with devices must say what it is and whom it is for, or it is never sold."""
    alive = [node for node in nodes if node["Alive"]]
    with_devices = [node for node in alive if any(node["Resources"].get(name, 0) >= 1 for name in DEVICE_RESOURCES)]
    if not with_devices:
        remedy = "start nodes with --num-gpus=8 or --resources='{\"NPU\": 8}' and labels: see cluster-configs/"
        return [fail("node labels", f"none of {len(alive)} nodes has a GPU or NPU", remedy=remedy)]
    findings = [finding for node in with_devices if (finding := _check_node(node)) is not None]
    return findings or [ok("node labels", f"{len(with_devices)} nodes with devices, all labelled")]


def check_declared(nodes: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Which nodes are declared to have no counters: right for simulated devices, and money lost for others."""
    said = [(node["Labels"].get(NODE_LABEL, ""), node["Labels"].get(METER_LABEL)) for node in nodes if node["Alive"]]
    odd = [f"{name}={word}" for name, word in said if word not in (None, BY_CPU)]
    findings = []
    if odd:
        remedy = f"write {METER_LABEL}={BY_CPU} on simulated nodes alone, and leave it out elsewhere"
        findings.append(warn("node meters", f"{METER_LABEL} means nothing on {', '.join(odd)}", remedy=remedy))
    if named := [name for name, word in said if word == BY_CPU]:
        found = f"charged by their processors' time, as their label {METER_LABEL} says: {', '.join(named)}"
        findings.append(ok("node meters", found))
    return findings


def ask_ray(address: str) -> tuple[list[Mapping[str, Any]], str]:
    """The nodes of a running cluster, and where its control store is; this process joins it only as long as that takes."""
    import ray  # noqa: PLC0415 (slow to import, and needed only here)

    if ray.is_initialized():
        return list(ray.nodes()), str(ray.get_runtime_context().gcs_address)
    ray.init(address=address, log_to_driver=False, logging_level="error")
    try:
        return list(ray.nodes()), str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()


def ask_reconciler(address: str, *, token_file: Path | None = None) -> bytes:
    """What the gate has last said of its looks for unleased use: b"" = nothing.

    Args:
        address: the cluster's control store.
        token_file: the token that it asks for; None = this process' own.
    """
    from fabric.cluster.local import token_from  # noqa: PLC0415 (slow to import, and needed only here)
    from fabric.enforcement.health import HEALTH_KEY  # noqa: PLC0415
    from fabric.inventory.ray_tables import RayTables  # noqa: PLC0415

    with token_from(token_file) if token_file is not None else nullcontext():
        return RayTables(address).get(HEALTH_KEY)


def check_reconciler(said: bytes, *, now_s: float) -> list[Finding]:
    """How the gate's looks for accelerators that are used without a lease go, by its own last word."""
    from fabric.enforcement.health import HEALTH_EVERY_S, Health  # noqa: PLC0415

    if not said:
        return []
    health = msgspec.json.decode(said, type=Health)
    silent_s = now_s - health.at_s
    remedy = (
        "look for unleased_use_not_looked_at in the gate's log; until it is mended, devices may be used without a lease"
    )
    if silent_s > _SILENT_LOOKS * HEALTH_EVERY_S:
        return [warn("unleased use", f"nobody has looked for it for {silent_s:.0f} s", remedy=remedy)]
    found = f"{health.removed} uses ended, {health.failures} failures in {health.looks} looks"
    stuck = [
        warn(
            f"node {name}",
            f"Ray holds {count} of its devices for nobody, and does not give them back: they are not sold",
            remedy=f"fabric ops drain {name}, wait until nothing runs there, and start Ray on it anew",
        )
        for name, count in sorted(health.stuck.items())
    ]
    if health.failing:
        return [warn("unleased use", f"{found}; the last: {health.last_failure}", remedy=remedy), *stuck]
    return [ok("unleased use", found), *stuck]


def _check_node(node: Mapping[str, Any]) -> Finding | None:
    labels = node["Labels"]
    name = f"node {labels.get(NODE_LABEL) or node['NodeManagerAddress']}"
    remedy = f'start it with ray start --labels="{NODE_LABEL}=n1,{TYPE_LABEL}=H100,{POOL_LABEL}=spot"'
    missing = [label for label in (NODE_LABEL, TYPE_LABEL, POOL_LABEL) if label not in labels]
    if missing:
        return warn(name, f"has no label {', '.join(missing)}: it is not sold", remedy=remedy)
    pool = labels[POOL_LABEL]
    if pool not in set(Pool):
        return warn(name, f"{POOL_LABEL}={pool}: it is not sold", remedy=f"label it one of {', '.join(Pool)}")
    if (pool == Pool.DEDICATED) != (DEDICATED_LABEL in labels):
        found = f"{POOL_LABEL}={pool}, {DEDICATED_LABEL}={labels.get(DEDICATED_LABEL, '')}"
        return warn(name, found, remedy=f"give dedicated nodes, and only them, {DEDICATED_LABEL}=<account>")
    if NOTICE_LABEL in labels and not notice_us_of(labels):
        found = f"{NOTICE_LABEL}={labels[NOTICE_LABEL]}: it counts as no notice at all"
        return warn(name, found, remedy="label it with the whole seconds between its notice and its going")
    return None


async def _ask_postgres(dsn: str) -> Mapping[str, Any]:
    import asyncpg  # noqa: PLC0415

    connection = await asyncpg.connect(dsn, timeout=_TIMEOUT_S, command_timeout=_TIMEOUT_S)
    try:
        row = await connection.fetchrow(
            "SELECT current_user AS who, current_schema() AS schema,"
            " coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_create,"
            " current_setting('server_version') AS version, current_setting('server_version_num') AS version_num,"
            " current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS synchronous_commit"
        )
    finally:
        await connection.close()
    return dict(row)


def _refuses_second(client: Any, at: dict[str, str], *, error: type[Exception]) -> bool:
    try:
        client.put_object(**at, Body=b"other", IfNoneMatch="*")
    except error as refused:
        status = getattr(refused, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
        return bool(status == _PRECONDITION_FAILED)
    return False


def _credentials(archive: S3Archive) -> dict[str, str]:
    """The file's, as boto3 calls them; none = this machine's own."""
    given = archive.credentials
    if given is None:
        return {}
    found = {
        "aws_access_key_id": given.access_key_id,
        "aws_secret_access_key": given.secret_access_key,
        "aws_session_token": given.session_token,
    }
    return {name: value.get_secret_value() for name, value in found.items() if value is not None}


def _without(text: str, secret: str | None) -> str:
    return text.replace(secret, "***") if secret else text
