"""What of an environment reaches a job: what programs need, and no secret."""

import pytest

from fabric.system.inheritance import is_secret, passed_on, withheld

OPERATORS = {
    "FABRIC_API_KEY": "k",
    "FABRIC_STATE_DIR": "/var/lib/fabric",
    "FABRIC_PG_DSN": "postgresql://fabric:pw@db/fabric",
    "FABRIC_PROFILE": "operator",
    "AWS_SECRET_ACCESS_KEY": "s",
    "HF_TOKEN": "hf",
    "PGPASSWORD": "pw",
    "SSH_AUTH_SOCK": "/tmp/agent",
    "PIP_INDEX_URL": "https://me:pw@packages.example/simple",
    "DATABASE": "postgresql://fabric:pw@db/fabric",
    "XDG_CONFIG_HOME": "config",
}
NEEDED = {
    "PATH": "/bin",
    "LD_LIBRARY_PATH": "/usr/local/cuda/lib64",
    "CUDA_VISIBLE_DEVICES": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_AUTH_TOKEN_PATH": "/tmp/s/token",
    "https_proxy": "http://me:pw@proxy.example:3128",
    "LC_ALL": "C.UTF-8",
}


def test_a_cluster_of_ours_is_started_with_what_programs_need_and_no_more():
    assert passed_on(OPERATORS | NEEDED) == NEEDED


def test_what_may_be_a_secret_is_taken_from_a_job_and_what_it_needs_is_not():
    kept = {"AWS_SECRET_ACCESS_KEY"}
    assert set(withheld(OPERATORS | NEEDED, apart=False)) == OPERATORS.keys() - kept
    assert set(withheld(OPERATORS | NEEDED, apart=True)) == OPERATORS.keys()


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("STRIPE_KEY", True),
        ("github_token", True),
        ("Db-Password", True),
        ("KEYBOARD", False),
        ("MONKEY", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("RAY_AUTH_TOKEN", False),
    ],
)
def test_a_secret_is_known_by_a_word_of_its_name(name, secret):
    assert is_secret(name) is secret
