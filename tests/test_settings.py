"""What a cluster file may say, and how it is told what it may not."""

import pickle

import pytest

from fabric.config.cluster import load_cluster, shipped
from fabric.errors import InvalidConfig
from fabric.gate.events import Pool

ENVIRON = {"FABRIC_PG_DSN": "postgresql://fabric:very-secret@db/fabric", "FABRIC_STATE_DIR": "/state"}
JOIN = "name: lab\nray: {mode: join}\n"


@pytest.fixture
def refused(tmp_path):
    """The error a file's text leads to, without the file's name."""

    def read(text, *, environ=ENVIRON):
        file = tmp_path / "cluster.yaml"
        file.write_text(text)
        with pytest.raises(InvalidConfig) as error:
            load_cluster(file, environ=environ)
        assert error.value.facts["file"] == str(file)
        return str(error.value).replace(f"{file}: ", "")

    return read


@pytest.fixture
def accepted(tmp_path):
    def read(text, *, environ=ENVIRON):
        file = tmp_path / "cluster.yaml"
        file.write_text(text)
        return load_cluster(file, environ=environ)

    return read


def test_without_a_path_it_is_one_machine_with_mixed_simulated_nodes():
    ray = load_cluster().ray
    assert ray.mode == "local"
    assert 4 <= len(ray.nodes) <= 6
    assert {node.accelerator for node in ray.nodes} == {"H100", "A100", "910B"}
    assert {Pool.RESERVED, Pool.SPOT} <= {node.pool for node in ray.nodes}


def test_state_goes_where_xdg_says(monkeypatch, tmp_path):
    monkeypatch.delenv("FABRIC_STATE_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    cluster = load_cluster()
    assert cluster.journal.path == tmp_path / "token-fabric" / "journal.sqlite"
    assert cluster.archive.path == tmp_path / "token-fabric" / "archive"
    assert cluster.signing_key == tmp_path / "token-fabric" / "signing.key"


def test_the_environment_may_name_the_state_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("FABRIC_STATE_DIR", str(tmp_path))
    assert load_cluster().journal.path == tmp_path / "journal.sqlite"


def test_a_path_is_relative_to_the_file_that_names_it(accepted, tmp_path):
    cluster = accepted(JOIN + "tariffs: mine/tariffs.yaml\njournal: {kind: sqlite, path: ../journal.sqlite}\n")
    assert cluster.tariffs == tmp_path / "mine" / "tariffs.yaml"
    assert cluster.journal.path.resolve() == (tmp_path.parent / "journal.sqlite").resolve()


def test_prices_default_to_those_we_ship(accepted):
    cluster = accepted(JOIN)
    assert (cluster.tariffs, cluster.plans) == (shipped("tariffs.yaml"), shipped("plans.yaml"))


def test_a_secret_is_never_printed(accepted, refused):
    cluster = accepted(JOIN + "journal: {kind: postgres, dsn: '${FABRIC_PG_DSN}'}")
    assert "very-secret" not in f"{cluster!r} {cluster} {cluster.model_dump_json()}"
    assert cluster.journal.dsn.get_secret_value() == ENVIRON["FABRIC_PG_DSN"]
    for dsn in ("mysql://u:very-secret@db", "'${SECRET}'"):
        said = refused(JOIN + f"journal: {{kind: postgres, dsn: {dsn}}}", environ={"SECRET": "very-secret"})
        assert "very-secret" not in said
        assert "postgresql://" in said


def test_an_archives_credentials_are_never_printed(accepted, refused):
    s3 = JOIN + "archive: {kind: s3, bucket: abc, credentials: {access_key_id: '${ID}', secret_access_key: %s}}"
    cluster = accepted(s3 % "'${SECRET}'", environ={"ID": "AKIA", "SECRET": "very-secret"})
    assert cluster.archive.credentials.secret_access_key.get_secret_value() == "very-secret"
    assert "very-secret" not in f"{cluster!r} {cluster} {cluster.model_dump_json()}"
    assert "12345" not in refused(s3 % "12345", environ={"ID": "AKIA"})


STRIPE = "payments: stripe\nstripe: {api_key: %s, webhook_secret: '${HOOK}', return_url: 'https://op.example'}\n"


def test_a_providers_secrets_come_from_the_environment_or_a_file_and_are_never_printed(accepted, refused, tmp_path):
    (tmp_path / "key").write_text("sk_very-secret\n")
    cluster = accepted(JOIN + STRIPE % "file:key", environ={"HOOK": "whsec_very-secret"})
    assert cluster.stripe.api_key.get_secret_value() == "sk_very-secret"
    assert cluster.stripe.webhook_secret.get_secret_value() == "whsec_very-secret"
    for said in (f"{cluster!r} {cluster} {cluster.model_dump_json()}", repr(pickle.loads(pickle.dumps(cluster)))):
        assert "very-secret" not in said
    assert "file that can be read" in refused(JOIN + STRIPE % "file:none", environ={"HOOK": "very-secret"})
    said = refused(JOIN + (STRIPE % "'${HOOK}'").replace("https:", "ftp:"), environ={"HOOK": "very-secret"})
    assert "stripe.return_url" in said
    assert "very-secret" not in said


def test_what_the_environment_filled_in_is_never_printed(refused):
    said = refused(JOIN + "archive: {kind: s3, bucket: '${TOKEN}'}", environ={"TOKEN": "NOT A BUCKET"})
    assert "NOT A BUCKET" not in said
    assert "${TOKEN}" in said


def test_a_cluster_file_crosses_processes(accepted):
    cluster = accepted(JOIN + "journal: {kind: postgres, dsn: '${FABRIC_PG_DSN}'}")
    assert pickle.loads(pickle.dumps(cluster)) == cluster


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found nothing; allowed: a mapping of sections"),
        ("- name", "found list; allowed: a mapping of sections"),
        ("name: [", "is not valid YAML"),
        ("name: a\nname: b", "found the key 'name' twice"),
        ("ray: {mode: join, mode: local}", "found the key 'mode' twice"),
        ("1: a", "found the key '1'; allowed: keys that are strings"),
        ("ray: {mode: join}", "name: found nothing; allowed: a value"),
        ("name: lab", "ray: found nothing; allowed: a value"),
        ("name: a b\nray: {mode: join}", "name: found 'a b'; allowed: text that matches"),
        ("name: 7\nray: {mode: join}", "name: found 7; allowed: a valid string"),
        ("name: a\nray: {}", "ray.mode: found nothing; allowed: the kind of this section"),
        ("name: a\nray: {mode: jion}", "ray.mode: found 'jion'; allowed: 'local', 'join'"),
        (JOIN + "rya: 1", "the file: found rya; allowed: alipay, archive, clock, dashboard"),
        (
            JOIN + "limits: {request_per_s: 1}",
            "limits: found request_per_s; allowed: blob_bytes, blobs_bytes, connections_per_",
        ),
        (JOIN + "limits: {requests_per_s: '5'}", "limits.requests_per_s: found '5'; allowed: a valid integer"),
        (JOIN + "limits: {requests_per_s: 0}", "limits.requests_per_s: found 0; allowed: greater than 0"),
        (JOIN + "metering: {tick_s: .inf}", "metering.tick_s: found inf"),
        (JOIN + "metering: {tick_s: 0}", "metering.tick_s: found 0; allowed: greater than 0"),
        (JOIN + "archive: {kind: s3}", "archive.bucket: found nothing"),
        (JOIN + "archive: {kind: directory, path: 3}", "archive.path: found 3; allowed: a path"),
        (JOIN + "journal: {kind: postgres, dsn: '${NOT_SET}'}", "journal.dsn: found ${NOT_SET}, which the environment"),
        (JOIN + "payments: paypal", "payments: found 'paypal'; allowed: 'operator', 'sandbox', 'stripe' or 'alipay'"),
        (JOIN + "payments: stripe", "payments: found 'stripe'; allowed: a section 'stripe' beside it"),
        (JOIN + "free_tokens_for_everyone: true", "payments: found nothing; allowed: 'sandbox'"),
        (JOIN + "free_tokens_for_everyone: yes please", "free_tokens_for_everyone: found 'yes please'; allowed"),
        (JOIN + "rpc: {listen: '[]:7433'}", "rpc.listen: found '[]:7433'; allowed: an address such as"),
        (JOIN + "dashboard: {port: 65536}", "dashboard.port: found 65536; allowed: less than or equal to 65535"),
        (JOIN + "rpc: {listen: '7433'}", "rpc.listen: found '7433'; allowed: an address such as"),
        (JOIN + "rpc: {listen: 'h:99999'}", "rpc.listen: found 'h:99999'; allowed: an address such as"),
        (JOIN + "rpc: {tls: off}", "rpc.tls: found False; allowed: 'auto'"),
        (JOIN + "rpc: {tls: {cert: a}}", "rpc.tls.key: found nothing"),
        ("name: a\nray: {mode: local, nodes: []}", "allowed: 1 to 32 nodes"),
        (
            "name: a\nray: {mode: local, nodes: [{node: a, accelerator: H100, devices: 0}]}",
            "ray.nodes[0].devices: found 0",
        ),
        (
            "name: a\nray: {mode: local, nodes: [{node: a, accelerator: H100, devices: 1, pool: spots}]}",
            "ray.nodes[0].pool: found 'spots'; allowed: 'reserved', 'dedicated' or 'spot'",
        ),
        (
            "name: a\nray: {mode: local, nodes: [{node: a, accelerator: H100, devices: 1, pool: dedicated}]}",
            "allowed: dedicated_to exactly on nodes of the pool 'dedicated'",
        ),
        ("name: a\nray: {mode: local, nodes: [" + 2 * "{node: a, accelerator: A100, devices: 1}," + "]}", "twice is a"),
    ],
)
def test_a_mistake_names_where_it_is_what_was_found_and_what_is_allowed(refused, text, said):
    assert said in refused(text)


def test_all_mistakes_are_named_at_once(refused):
    said = refused(JOIN + "payments: paypal\ndashboard: {port: -1}")
    assert said.splitlines() == [
        "dashboard.port: found -1; allowed: greater than or equal to 0",
        "payments: found 'paypal'; allowed: 'operator', 'sandbox', 'stripe' or 'alipay'",
    ]


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.yaml", "binary.yaml", "."):
        with pytest.raises(InvalidConfig, match="can't be read"):
            load_cluster(tmp_path / name)


@pytest.mark.parametrize("listen", ["0.0.0.0:7433", "[::1]:0", "fabric.example:7433"])
def test_there_is_no_door_without_tls(refused, accepted, listen):
    assert "rpc.tls: found 'none'; allowed: 'auto'" in refused(JOIN + f"rpc: {{listen: '{listen}', tls: none}}")
    assert accepted(JOIN + f"rpc: {{listen: '{listen}'}}").rpc.tls == "auto"


# -- who says that something was paid ----------------------------------------------------------------------------------

LOCAL = "name: one\nray: {mode: local, nodes: [{node: n, accelerator: H100, devices: 1}]}\n"
HERE_ONLY = ["127.0.0.1:7433", "127.9.9.9:0", "[::1]:7433", "::1:7433", "localhost:7433", "[::ffff:127.0.0.1]:7433"]
FROM_ELSEWHERE = [
    "0.0.0.0:7433",
    "[::]:7433",
    ":::7433",
    "0:7433",
    "10.1.2.3:7433",
    "[fe80::1%eth0]:7433",
    "[::ffff:0.0.0.0]:7433",
    "fabric.example:7433",
    "unix:7433",
]
ENDPOINT = "serving: {listen: '127.0.0.1:0', endpoint: 'https://models.example/v1'}"


@pytest.mark.parametrize("listen", HERE_ONLY)
@pytest.mark.parametrize("section", ["rpc", "serving"])
def test_customers_are_believed_only_where_every_listener_is_on_loopback(accepted, section, listen):
    found = accepted(LOCAL + f"{section}: {{listen: '{listen}'}}")
    assert (found.payments, found.reached_at, found.giveaway) == ("sandbox", (), "")


@pytest.mark.parametrize(
    "section",
    [f"{name}: {{listen: '{listen}'}}" for name in ("rpc", "serving") for listen in FROM_ELSEWHERE] + [ENDPOINT],
)
def test_where_anybody_else_reaches_a_listener_customers_book_nothing(accepted, refused, section):
    assert accepted(LOCAL + section).payments == "operator"
    said = refused(LOCAL + section + "\npayments: sandbox")
    assert said.startswith("payments: found 'sandbox'; allowed: 'operator' where others")
    assert "free_tokens_for_everyone: true" in said
    for key in (True, False):
        assert "payments: found" in refused(LOCAL + section + f"\npayments: {'operator' if key else 'sandbox'}"
                                            f"\nfree_tokens_for_everyone: {str(key).lower()}")  # fmt: skip
    meant = accepted(LOCAL + section + "\npayments: sandbox\nfree_tokens_for_everyone: true")
    assert meant.payments == "sandbox"
    assert meant.giveaway.startswith("TOKENS COST NOTHING for every customer who reaches ")


def test_replicas_on_other_nodes_are_listeners_too(accepted):
    assert accepted(JOIN + "serving: {}").payments == "operator"
    assert accepted(JOIN).payments == "sandbox"


def test_a_name_counts_by_everything_it_resolves_to(accepted, monkeypatch):
    """A machine's own name is often in /etc/hosts as 127.0.1.1, and on the network as something else."""
    answers = {
        "both.example": ["127.0.1.1", "10.0.0.7"],
        "here.example": ["127.0.1.1", "::1"],
        "localhost": ["10.0.0.7"],
    }

    def resolve(name, *_):
        return [(None, None, None, "", (address, 0)) for address in answers[name]]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    found = {name: accepted(LOCAL + f"rpc: {{listen: '{name}:1'}}").payments for name in answers}
    assert found == {"both.example": "operator", "here.example": "sandbox", "localhost": "operator"}


def test_the_endpoint_is_without_tls_only_where_nobody_else_reaches_it(accepted, refused):
    assert accepted(LOCAL + "serving: {listen: '127.1.2.3:0', tls: plain}").serving.tls == "plain"
    for listen in ("0.0.0.0:0", "localhost.example:0"):
        assert "tls: plain only where" in refused(LOCAL + f"serving: {{listen: '{listen}', tls: plain}}")
