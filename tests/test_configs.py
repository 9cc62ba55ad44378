"""Every file under cluster-configs/ says what its reader understands.

Ray's launcher file is held to the schema that Ray ships. The KubeRay manifests are held to `RayCluster` below: the part
of KubeRay's v1 API that we use, written down by hand and closed against typos. Where KUBERAY_CRD names the operator's own
CRD (ray.io_rayclusters.yaml of its Helm chart), they are held to that as well.
"""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from ray._private.ray_constants import LABELS_ENVIRONMENT_VARIABLE
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.util.accelerators import accelerators as ray_accelerators

from fabric.accelerators import TYPE_LABEL
from fabric.config.cluster import load_cluster
from fabric.config.files import read_yaml
from fabric.config.prices import load_tariffs
from fabric.gate.events import Pool
from fabric.inventory.nodes import DEDICATED_LABEL, NODE_LABEL, NOTICE_LABEL, POOL_LABEL

CONFIGS = Path(__file__).parent.parent / "cluster-configs"
ENVIRON = {
    "FABRIC_PG_DSN": "postgresql://fabric:very-secret@db/fabric",
    "RAY_ADDRESS": "ray-head:6379",
    "AWS_ACCESS_KEY_ID": "AKIA",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
    "FABRIC_STATE_DIR": "/state",
}
FABRIC_FILES = ["local.yaml", "demo.yaml", "lab.yaml", "mixed-h100-a100-910b.yaml", "parts.yaml", "kuberay/fabric.yaml"]
MANIFESTS = ["kuberay/namespace.yaml", "kuberay/raycluster.yaml", "kuberay/tenant-isolated.yaml"]


@pytest.mark.parametrize("name", FABRIC_FILES)
def test_every_cluster_file_we_ship_loads(name):
    assert load_cluster(CONFIGS / name, environ=ENVIRON).name


def test_tokens_cost_money_in_every_file_that_others_can_reach():
    found = {name: load_cluster(CONFIGS / name, environ=ENVIRON) for name in FABRIC_FILES}
    assert {name: each.payments for name, each in found.items()} == {
        "local.yaml": "sandbox",
        "demo.yaml": "sandbox",
        "lab.yaml": "operator",
        "mixed-h100-a100-910b.yaml": "operator",
        "parts.yaml": "sandbox",
        "kuberay/fabric.yaml": "operator",
    }
    assert not any(each.giveaway for each in found.values())


def test_every_file_under_cluster_configs_is_tested():
    prices = {"tariffs.yaml", "plans.yaml", "tariffs-market.yaml", "plans-market.yaml"}  # tests/config/test_prices.py
    other = {*prices, "ray-mixed-on-prem.yaml"}
    ours = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    assert ours - other == {*FABRIC_FILES, *MANIFESTS}


# -- Ray's launcher ----------------------------------------------------------------------------------------------------


@pytest.fixture
def launcher():
    return read_yaml(CONFIGS / "ray-mixed-on-prem.yaml")


def test_the_launcher_file_passes_rays_own_schema(launcher):
    validate_config(prepare_config(launcher))


def test_a_launcher_file_with_a_typo_does_not_pass(launcher):
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**launcher, "worker_start_ray_command": []}))


def test_the_launcher_labels_every_worker_with_its_accelerator_and_pool(launcher):
    command = launcher["worker_start_ray_commands"][-1]
    for label in (NODE_LABEL, POOL_LABEL, TYPE_LABEL, DEDICATED_LABEL, NOTICE_LABEL):
        assert f"{label}=$" in command


# -- KubeRay -----------------------------------------------------------------------------------------------------------

Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(m|Mi|Gi|Ti)?$")]
LabelKey = Annotated[str, StringConstraints(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
Labels = dict[LabelKey, LabelValue]
DnsName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """Closed: what isn't written here, a manifest of ours may not say."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Part):
    name: DnsName
    namespace: DnsName


class PodMetadata(Part):
    labels: Labels = {}
    annotations: dict[LabelKey, str] = {}


class Port(Part):
    name: DnsName
    containerPort: Annotated[int, Field(ge=1, le=65535)]  # noqa: N815


class Mount(Part):
    name: DnsName
    mountPath: Annotated[str, StringConstraints(pattern="^/")]  # noqa: N815
    subPath: str | None = None  # noqa: N815
    readOnly: bool = False  # noqa: N815


class Named(Part):
    name: DnsName


class FieldRef(Part):
    fieldPath: Literal["metadata.name"]  # noqa: N815


class ValueFrom(Part):
    fieldRef: FieldRef  # noqa: N815


class Env(Part):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Z_]+$")]
    value: str | None = None
    valueFrom: ValueFrom | None = None  # noqa: N815


class EnvFrom(Part):
    secretRef: Named  # noqa: N815


class Resources(Part):
    requests: dict[LabelKey, Quantity | Count]
    limits: dict[LabelKey, Quantity | Count]

    @model_validator(mode="after")
    def _guaranteed(self):
        assert self.requests == self.limits, "devices can't be overcommitted, and what is metered is what is reserved"
        return self


class Container(Part):
    name: DnsName
    image: Annotated[
        str, StringConstraints(pattern=r"^[a-z0-9.-]+\.[a-z]+/[a-z0-9./-]+:[a-z0-9.-]+(@sha256:[0-9a-f]{64})?$")
    ]
    command: list[str] = []
    args: list[str] = []
    env: list[Env] = []
    envFrom: list[EnvFrom] = []  # noqa: N815
    ports: list[Port] = []
    resources: Resources
    volumeMounts: list[Mount] = []  # noqa: N815


class Secret(Part):
    secretName: DnsName  # noqa: N815
    defaultMode: Annotated[int, Field(ge=0, le=0o777)] = 0o644  # noqa: N815


class EmptyDir(Part):
    medium: Literal["Memory"]
    sizeLimit: Quantity  # noqa: N815


class Volume(Part):
    name: DnsName
    configMap: Named | None = None  # noqa: N815
    secret: Secret | None = None
    emptyDir: EmptyDir | None = None  # noqa: N815


class Toleration(Part):
    key: LabelKey
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class PodSpec(Part):
    schedulerName: Literal["volcano"] | None = None  # noqa: N815
    nodeSelector: Labels = {}  # noqa: N815
    tolerations: list[Toleration] = []
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []

    @model_validator(mode="after")
    def _mounts_are_volumes(self):
        mounted = {mount.name for container in self.containers for mount in container.volumeMounts}
        assert mounted == {volume.name for volume in self.volumes}
        return self


class Template(Part):
    metadata: PodMetadata = PodMetadata()
    spec: PodSpec


class Group(Part):
    labels: Labels
    resources: dict[str, Quantity]
    rayStartParams: dict[str, str]  # noqa: N815
    template: Template

    @model_validator(mode="after")
    def _say_it_once(self):
        assert not {"labels", "resources", "num-cpus", "num-gpus", "memory"} & set(self.rayStartParams)
        return self


class WorkerGroup(Group):
    groupName: DnsName  # noqa: N815
    replicas: Count
    minReplicas: Count  # noqa: N815
    maxReplicas: Count  # noqa: N815

    @model_validator(mode="after")
    def _between(self):
        assert self.minReplicas <= self.replicas <= self.maxReplicas
        return self


class AuthOptions(Part):
    mode: Literal["token"]


class ClusterSpec(Part):
    rayVersion: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    headGroupSpec: Group  # noqa: N815
    workerGroupSpecs: Annotated[list[WorkerGroup], Field(min_length=1)]  # noqa: N815


class RayCluster(Part):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


def documents(name):
    return list(yaml.load_all((CONFIGS / name).read_text(), Loader=yaml.SafeLoader))


def ray_clusters():
    return [document for name in MANIFESTS for document in documents(name) if document["kind"] == "RayCluster"]


@pytest.mark.parametrize("document", ray_clusters(), ids=lambda document: document["metadata"]["namespace"])
def test_a_ray_cluster_says_only_what_kuberay_knows(document):
    cluster = RayCluster.model_validate(document)
    names = [group.groupName for group in cluster.spec.workerGroupSpecs]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("document", ray_clusters(), ids=lambda document: document["metadata"]["namespace"])
def test_what_kubernetes_reserves_is_what_ray_counts_and_what_the_gate_is_told(document):
    device_of = {
        "H100": ("GPU", "nvidia.com/gpu"),
        "A100": ("GPU", "nvidia.com/gpu"),
        "910B": ("NPU", "huawei.com/Ascend910"),
    }
    for group in RayCluster.model_validate(document).spec.workerGroupSpecs:
        ray_name, kubernetes_name = device_of[group.labels[TYPE_LABEL]]
        (container,) = group.template.spec.containers
        assert str(container.resources.limits[kubernetes_name]) == group.resources[ray_name]
        (override,) = (env.value for env in container.env if env.name == LABELS_ENVIRONMENT_VARIABLE)
        assert json.loads(override) == {NODE_LABEL: "$(POD_NAME)"}
        pool = Pool(group.labels[POOL_LABEL])
        assert (DEDICATED_LABEL in group.labels) == (pool is Pool.DEDICATED)


def test_kuberay_serves_all_three_kinds_of_accelerator():
    groups = [group for document in ray_clusters() for group in document["spec"]["workerGroupSpecs"]]
    assert {group["labels"][TYPE_LABEL] for group in groups} == {"H100", "A100", "910B"}


def test_kubernetes_runs_the_ray_that_is_installed():
    pinned = re.search(r"ray\[[a-z,]+\]==([0-9.]+)", (CONFIGS.parent / "pyproject.toml").read_text())
    assert {document["spec"]["rayVersion"] for document in ray_clusters()} == {pinned[1]}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "headGroupSpec", "rayStartParams", "labels"), "a=b"),
        (("spec", "workerGroupSpec"), []),
        (("spec", "rayVersion"), "latest"),
        (("spec", "workerGroupSpecs", 0, "replicas"), 99),
        (("spec", "workerGroupSpecs", 0, "labels", "fabric.io/pool"), "not a label!"),
    ],
)
def test_a_ray_cluster_with_a_mistake_does_not_pass(path, value):
    document = ray_clusters()[0]
    *inside, last = path
    part = document
    for step in inside:
        part = part[step]
    part[last] = value
    with pytest.raises(ValidationError):
        RayCluster.model_validate(document)


def closed(schema):
    """A CRD's schema that refuses unknown fields, as the API server does with strict validation."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {key: closed(part) for key, part in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


@pytest.mark.skipif("KUBERAY_CRD" not in os.environ, reason="KUBERAY_CRD does not name the operator's CRD")
def test_a_ray_cluster_passes_the_operators_own_crd():
    crd = yaml.load(Path(os.environ["KUBERAY_CRD"]).read_text(), Loader=yaml.CSafeLoader)
    (schema,) = (part["schema"]["openAPIV3Schema"] for part in crd["spec"]["versions"] if part["name"] == "v1")
    strict = closed(schema) | {"properties": closed(schema)["properties"] | {"metadata": {"type": "object"}}}
    for document in ray_clusters():
        jsonschema.validate(document, strict)


def test_every_accelerator_we_ship_has_a_weight():
    groups = [group for document in ray_clusters() for group in document["spec"]["workerGroupSpecs"]]
    used = {node.accelerator for node in load_cluster().ray.nodes} | {group["labels"][TYPE_LABEL] for group in groups}
    assert used <= {weight.accelerator for weight in load_tariffs(CONFIGS / "tariffs.yaml").weights}


def test_accelerators_are_named_as_ray_names_them_or_are_ours():
    known = {value for value in vars(ray_accelerators).values() if isinstance(value, str)}
    assert {node.accelerator for node in load_cluster().ray.nodes} - known == {"910B"}
