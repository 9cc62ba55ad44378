"""A cluster file: what it may say, read strictly.

One YAML file describes one fabric: its nodes or the Ray cluster it joins, where the journal and the archive live, how it
is reached. Unknown keys, doubled keys and wrong types are refused with the file, the path inside it, what was found and
what is allowed. `${NAME}` in a value is taken from the environment, so that secrets stay out of files; a path is
relative to the file that names it, and `${FABRIC_STATE_DIR}` is where state lives. Knows neither Ray nor any store.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PositiveInt,
    SecretStr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fabric.config.files import read_sections
from fabric.config.notices import NoticesConfig
from fabric.config.payments import AlipayConfig, StripeConfig
from fabric.config.scheduling import SchedulingSection
from fabric.config.sections import (
    FilePath,
    ListenAddress,
    Name,
    Port,
    Seconds,
    Section,
    Settings,
    TlsFiles,
    host_and_port,
    is_loopback,
)
from fabric.config.serving import ServingConfig
from fabric.config.witnesses import WitnessConfig
from fabric.errors import InvalidConfig
from fabric.gate.caps import CAP_MAX
from fabric.gate.events import Pool
from fabric.parts import HOW, parts_of

_SIMULATED_NODES_MAX: Final = 32
"""Each is a process of some 0.4 GB."""
FOR_MONEY: Final = "write payments: operator into the cluster file, and book what was paid with its reference"


def shipped(name: str) -> Path:
    """A file of `cluster-configs/`, from the installed package or from the checkout."""
    package = Path(__file__).parents[1]
    places = (package / "cluster-configs" / name, package.parent / "cluster-configs" / name)
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise InvalidConfig(f"{name} is not among the files this package ships: reinstall token-fabric", file=name)
    return found


def load_cluster(path: Path | str | None = None, *, environ: Mapping[str, str] | None = None) -> "ClusterConfig":
    """The cluster a file describes; without a path, the one-machine cluster that comes with the package.

    Raises:
        InvalidConfig: the file is not there, is not YAML, or says something it may not. `facts` has `file` and `path`.
    """
    file = Path(path) if path is not None else shipped("local.yaml")
    return read_sections(file, model=ClusterConfig, environ=_environment(environ))


def _environment(environ: Mapping[str, str] | None) -> dict[str, str]:
    return {"FABRIC_STATE_DIR": str(Settings().state_dir), **(os.environ if environ is None else environ)}


def _postgres_address(dsn: SecretStr) -> SecretStr:
    if not dsn.get_secret_value().startswith(("postgresql://", "postgres://")):
        raise PydanticCustomError("dsn", "an address that begins with postgresql://, best as ${FABRIC_PG_DSN}")
    return dsn


def _parts_word(word: str) -> str:
    if word and parts_of(word) is None:
        raise PydanticCustomError("parts", "{how}", {"how": HOW})
    return word


class NodeConfig(Section):
    """A simulated node of a one-machine cluster."""

    node: Name
    accelerator: Name
    """A type the tariffs know, such as H100, A100 or 910B."""
    devices: Annotated[int, Field(ge=1, le=64)]
    pool: Annotated[Pool, Field(strict=False)] = Pool.SPOT
    dedicated_to: Name | None = None
    """The account whose cell it is; only and always in the dedicated pool."""
    cpus: PositiveInt = 4
    notice_s: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """How long before it goes it says so; None = as long as any job needs."""
    parts: Annotated[str, AfterValidator(_parts_word)] = ""
    """How its devices are divided: `time-slice.4`, each whole or in four; `mig.7.1g.10gb`, or `vnpu.4.vir05_1c_16g`: they are
    instances, so many of a device. "" = they are had whole.
    """

    @model_validator(mode="after")
    def _dedicated_to_somebody(self) -> "NodeConfig":
        if (self.pool is Pool.DEDICATED) != (self.dedicated_to is not None):
            raise PydanticCustomError("dedicated", "dedicated_to exactly on nodes of the pool 'dedicated'")
        return self


class RayLocal(Section):
    """An embedded Ray cluster of simulated nodes on this machine."""

    mode: Literal["local"]
    namespace: Name = "fabric"
    nodes: Annotated[tuple[NodeConfig, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _name_nodes_apart(self) -> "RayLocal":
        names = [node.node for node in self.nodes]
        if not 1 <= len(names) <= _SIMULATED_NODES_MAX:
            raise PydanticCustomError("nodes", "1 to {most} nodes", {"most": _SIMULATED_NODES_MAX})
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PydanticCustomError("twice", "every node name once; twice is {names}", {"names": ", ".join(twice)})
        return self


class RayJoin(Section):
    """A Ray cluster that runs already; its nodes say what they are through labels."""

    mode: Literal["join"]
    address: Annotated[str, Field(pattern=r"^(auto|ray://\S+:\d+|[^\s:/]+:\d+)$")] = "auto"
    """`auto`, `host:port` of the GCS, or `ray://host:port`."""
    namespace: Name = "fabric"


class SqliteJournal(Section):
    kind: Literal["sqlite"]
    path: FilePath = Path("${FABRIC_STATE_DIR}/journal.sqlite")


class PostgresJournal(Section):
    kind: Literal["postgres"]
    dsn: Annotated[SecretStr, AfterValidator(_postgres_address)]
    """Never printed: write `${FABRIC_PG_DSN}` and set it where the gate runs."""


class DirectoryArchive(Section):
    kind: Literal["directory"]
    path: FilePath = Path("${FABRIC_STATE_DIR}/archive")


class S3Credentials(Section):
    """Never printed: write `${AWS_ACCESS_KEY_ID}` and so on, and set them where `fabric up` runs."""

    access_key_id: SecretStr
    secret_access_key: SecretStr
    session_token: SecretStr | None = None


class S3Archive(Section):
    """A bucket that is there."""

    kind: Literal["s3"]
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
    endpoint: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    prefix: str = ""
    region: str | None = None
    """None = what each machine's environment says."""
    credentials: S3Credentials | None = None
    """Handed on to the gate, its agents and runners. None = each machine has a role, or `AWS_...`, of its own."""
    sse: Literal["", "AES256", "aws:kms"] = ""
    """Encryption at rest by the bucket. "" = the bucket's own setting."""
    kms_key_id: str = ""
    """Of the key, with `sse: aws:kms`. "" = the account's default key."""


class StagingConfig(Section):
    """Where nodes keep checkpoints that are on their way to the archive, and the newest to resume from."""

    path: FilePath = Path("/dev/shm")  # noqa: S108 - a folder in it is made, readable by its owner alone
    """Memory, or a disk of the node's own, on every node. At most half of it is used."""


class RpcConfig(Section):
    """The gRPC door."""

    listen: ListenAddress = "127.0.0.1:7433"
    tls: Annotated[
        Annotated[Literal["auto"], Tag("word")] | Annotated[TlsFiles, Tag("files")],
        Discriminator(lambda given: "files" if isinstance(given, dict | TlsFiles) else "word"),
    ] = "auto"
    """`auto` makes a certificate in the state directory. There is no door without TLS."""

    @property
    def host(self) -> str:
        return host_and_port(self.listen)[0]

    @property
    def port(self) -> int:
        """0 = any free port."""
        return host_and_port(self.listen)[1]


class DashboardConfig(Section):
    """Ray's dashboard, on loopback; reach it from elsewhere through your own proxy."""

    port: Port = 8265


class MeteringConfig(Section):
    tick_s: Seconds = 1.0
    """How often the node agents sample and the gate's clock ticks."""


class ClockConfig(Section):
    ahead_max_h: PositiveInt = 24
    """How far a start may find the clock ahead of the journal's last entry. Beyond, `fabric up` asks whether the clock is
    right: what falls due by a wrong one has fallen due for ever.
    """

    @property
    def ahead_max_us(self) -> int:
        return self.ahead_max_h * 3_600_000_000


class LimitsConfig(Section):
    """What one caller may ask for, so that a mistake of one doesn't stop the others."""

    requests_per_s: PositiveInt = 200
    """For each customer, however many keys it makes, and for each operator key."""
    connections_per_address: PositiveInt = 256
    """To the gRPC door, at once; more where clients come through a load balancer. One in four may be without a key."""
    request_bytes: Annotated[int, Field(ge=65_536, le=2**31 - 1)] = 2 * 2**20
    """Of one message on the wire."""
    blob_bytes: Annotated[int, Field(ge=65_536, le=2**40)] = 512 * 2**20
    """A pickled function, a working directory or a result."""
    blobs_bytes: Annotated[int, Field(ge=2**20, le=2**50)] = 16 * 2**30
    """All that an account keeps of those; one without tokens or credit 64 MiB at most."""
    keys: Annotated[int, Field(ge=1, le=CAP_MAX)] = 256
    """Of one account, that still count."""
    members: Annotated[int, Field(ge=1, le=CAP_MAX)] = 1_000
    """Of one organisation."""
    projects: Annotated[int, Field(ge=1, le=CAP_MAX)] = 200
    """Of one organisation, that are open."""
    queued_jobs: Annotated[int, Field(ge=1, le=CAP_MAX)] = 100_000
    """Of one account, that wait for devices."""


class StorageConfig(Section):
    """What the jobs of one account may keep in the archive, together, and on nodes' disks. Where there is no more room, what was saved before
    stays, and the job is parked when it ends.
    """

    account_bytes: Annotated[int, Field(ge=2**20, le=2**60)] = 2**40
    """Checkpoints, results, logs, what was published."""
    account_values: Annotated[int, Field(ge=1_000, le=10**9)] = 500_000
    """In how many values."""
    checkpoint_bytes: Annotated[int, Field(ge=2**20, le=2**50)] = 256 * 2**30
    """Of one checkpoint, as it is stored: holes in files are not."""
    attempt_bytes: Annotated[int, Field(ge=2**20, le=2**50)] = 2**40
    """What one attempt may have on one node's disk: one that has more, or the most where the disk is nearly full, is asked to
    save, and parked.
    """
    attempt_files: Annotated[int, Field(ge=1_000, le=10**9)] = 2_000_000


class ClusterConfig(Section):
    """One fabric. Paths are absolute once it is loaded."""

    name: Name
    operator: Name = "op"
    ray: Annotated[RayLocal | RayJoin, Field(discriminator="mode")]
    journal: Annotated[SqliteJournal | PostgresJournal, Field(discriminator="kind")] = Field(
        default={"kind": "sqlite"}, validate_default=True
    )
    archive: Annotated[DirectoryArchive | S3Archive, Field(discriminator="kind")] = Field(
        default={"kind": "directory"}, validate_default=True
    )
    staging: StagingConfig | None = None
    """None = checkpoints go straight to the archive."""
    rpc: RpcConfig = RpcConfig()
    dashboard: DashboardConfig = DashboardConfig()
    tariffs: FilePath = Field(default_factory=lambda: shipped("tariffs.yaml"))
    plans: FilePath = Field(default_factory=lambda: shipped("plans.yaml"))
    metering: MeteringConfig = MeteringConfig()
    clock: ClockConfig = ClockConfig()
    signing_key: FilePath = Path("${FABRIC_STATE_DIR}/signing.key")
    """The Ed25519 key that signs checkpoints; made on the first start."""
    witnesses: Annotated[tuple[WitnessConfig, ...], Field(strict=False, max_length=16)] = ()
    """Who cosigns checkpoints, so that everybody is shown one history."""
    limits: LimitsConfig = LimitsConfig()
    scheduling: SchedulingSection = SchedulingSection()
    storage: StorageConfig = StorageConfig()
    notices: NoticesConfig = NoticesConfig()
    serving: ServingConfig | None = None
    """Metered inference; None = none here."""
    free_tokens_for_everyone: bool = False
    """Says once more, where others than this machine reach the fabric, that `payments: sandbox` is meant."""
    stripe: StripeConfig | None = None
    alipay: AlipayConfig | None = None
    payments: Annotated[Literal["operator", "sandbox", "stripe", "alipay"] | None, Field(validate_default=True)] = None
    """Who says that something was paid. `operator`: an operator books each payment by its reference, and customers book
    nothing. `sandbox`: every customer is believed, so tokens cost nothing. `stripe`, `alipay`: customers pay there, by the
    section of that name; an operator still books what comes another way. None = `sandbox` where every listener is on
    loopback, `operator` elsewhere; it is never None once the file is loaded.
    """

    @field_validator("payments")
    @classmethod
    def _is_meant(cls, given: str | None, info: ValidationInfo) -> str | None:
        """Judged last, by the sections before it; nothing to judge where one of those is wrong."""
        judged_by = {"ray", "rpc", "free_tokens_for_everyone", "serving", "stripe", "alipay"}
        if not judged_by <= set(info.data):
            return given
        freely: bool = info.data["free_tokens_for_everyone"]
        if freely and given != "sandbox":
            raise PydanticCustomError(
                "payments", "'sandbox', where free_tokens_for_everyone is true: write both, or none"
            )
        if given in ("stripe", "alipay") and info.data.get(given) is None:
            raise PydanticCustomError("payments", "a section '{given}' beside it", {"given": given})
        if given in ("operator", "stripe", "alipay") or freely:
            return given
        reached = _reached_at(info.data["rpc"], info.data["serving"], info.data["ray"])
        if given == "sandbox" and reached:
            raise PydanticCustomError(
                "payments",
                "'operator' where others than this machine reach it ({reached}): in the sandbox every customer takes"
                " tokens for nothing. Where that is meant, add free_tokens_for_everyone: true",
                {"reached": ", ".join(reached)},
            )
        return "operator" if reached else "sandbox"

    @property
    def reached_at(self) -> tuple[str, ...]:
        """Where others than this machine reach the fabric, as the keys of this file and what they say; () = nowhere."""
        return _reached_at(self.rpc, self.serving, self.ray)

    @property
    def giveaway(self) -> str:
        """What is to be said loudly where somebody beyond this machine can have tokens for nothing; "" where nobody can."""
        reached = self.reached_at if self.payments == "sandbox" else ()
        return f"TOKENS COST NOTHING for every customer who reaches {', '.join(reached)}" if reached else ""


def _reached_at(rpc: RpcConfig, serving: ServingConfig | None, ray: RayLocal | RayJoin) -> tuple[str, ...]:
    found = [] if is_loopback(rpc.host) else [f"rpc.listen {rpc.listen}"]
    if serving is not None:
        found += [] if is_loopback(serving.host) else [f"serving.listen {serving.listen}"]
        if serving.endpoint is not None and not is_loopback(urlsplit(serving.endpoint).hostname or ""):
            found.append(f"serving.endpoint {serving.endpoint}")
        found += ["serving, on the nodes of the Ray cluster that is joined"] if isinstance(ray, RayJoin) else []
    return tuple(found)
