"""What a job's process may inherit from whoever started it: never a secret, nor a way to the fabric's own files.

A node's processes hand their environment on to all that they start. So a cluster of ours is started with nothing but what
programs need to find their libraries, their devices and the network (`passed_on`), and of what a job's process has even so
what may be a secret is taken away before the job's code runs (`withheld`). What its owner gives a job with `env=` is the
job's own, and stays.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

_PLAIN: Final = frozenset((
    "PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TERM", "USER", "LOGNAME", "SHELL", "HOSTNAME", "TMPDIR", "VIRTUAL_ENV",
    "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "FABRIC_LOG_LEVEL", "FABRIC_GRACE_S", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "ALL_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "CC", "CXX", "NODE_NAME",
    "POD_NAME", "POD_IP", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL",
))  # fmt: skip
_FAMILIES: Final = (
    "LC_", "PYTHON", "LD_", "RAY_", "CUDA", "NVIDIA_", "NV_", "ASCEND", "NPU", "HIP_", "HSA_", "ROCM", "ROCR_", "HCCL_", "NCCL_", "GLOO_", "OMP_",
    "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "NUMEXPR_", "TORCH", "PYTORCH", "TRITON", "VLLM_", "HF_", "TRANSFORMERS_",
    "TOKENIZERS_", "XLA_", "JAX_", "TF_", "MALLOC_", "GRPC_", "PIP_", "UV_", "COVERAGE", "COV_", "HYPOTHESIS_",
)  # fmt: skip
_SECRET_WORDS: Final = frozenset((
    "KEY", "KEYS", "APIKEY", "TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASS", "PASSPHRASE", "PAT",
    "CREDENTIAL", "CREDENTIALS", "DSN", "AUTH", "COOKIE", "PGPASSFILE", "PGPASSWORD", "NETRC",
))  # fmt: skip
_PASSWORD: Final = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_RAYS_OWN: Final = "RAY_"
"""Ray's processes, of which a job's may be one, show the cluster's token to each other."""
_STORAGES: Final = "AWS_"
"""The process in which a function runs also keeps its results, with the node's own right to the bucket."""
_OURS: Final = "FABRIC_"
_OUR_KNOBS: Final = frozenset((
    "FABRIC_LOG_LEVEL", "FABRIC_GRACE_S", "FABRIC_GANG_TIMEOUT_S", "FABRIC_GANG_SILENT_S", "FABRIC_ISLANDS_EVERY", "FABRIC_PEER_COPIES",
    "FABRIC_TENSORBOARD_DIR", "FABRIC_CHECKPOINT_QUIET_S", "FABRIC_CHECKPOINT_EVERY_S", "FABRIC_LEASE_ID", "FABRIC_ID",
))  # fmt: skip
_OF_HOME: Final = "XDG_"


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """Of an environment what a cluster of ours is started with."""
    return {
        name: value
        for name, value in environ.items()
        if (name.upper() in _PLAIN or name.startswith(_FAMILIES)) and not is_secret(name, value)
    }


def withheld(environ: Mapping[str, str], *, apart: bool) -> list[str]:
    """The names of what a job's code must not find, although its process has it.

    Args:
        environ: what it has.
        apart: whether the code runs in a process of its own, which keeps nothing for the fabric.
    """
    return [
        name
        for name, value in environ.items()
        if (name.startswith(_OURS) and name not in _OUR_KNOBS)
        or name.startswith(_OF_HOME)
        or (is_secret(name, value) and (apart or not name.startswith(_STORAGES)))
    ]


def is_secret(name: str, value: str = "") -> bool:
    """Whether a variable may hold a secret: by the words in its name, or as an address with a password in it."""
    if name.startswith(_RAYS_OWN):
        return False
    words = _words_of(name)
    return not _SECRET_WORDS.isdisjoint(words) or ("PROXY" not in words and _PASSWORD.search(value) is not None)


@lru_cache(maxsize=1024)
def _words_of(name: str) -> frozenset[str]:
    """A process asks of the same names for each job that runs in it."""
    return frozenset(re.split(r"[^A-Z0-9]+", name.upper()))
