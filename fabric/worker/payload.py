"""What a job's payload says: which code, in which environment. The gate never looks inside; the runner does."""

import base64
from collections.abc import Mapping
from typing import Any

import msgspec

from fabric.errors import InvalidRequest
from fabric.worker.environments import Environment, environment_of


class Payload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Either a pickled call (`blob` or `inline`) or an entry point. All of it optional, as each kind needs; what is not said
    is not written, so that a field that comes later changes no request that is repeated.
    """

    blob: str = ""
    """Archive key of a cloudpickle of (callable, args, kwargs)."""
    inline: str = ""
    """The same pickle in base64, for small ones: saves a read."""
    entrypoint: str | tuple[str, ...] = ""
    """A Python file of the working directory, or a command with its arguments."""
    args: tuple[str, ...] = ()
    working_dir_blob: str = ""
    """Archive key of a zip."""
    python_path: tuple[str, ...] = ()
    """The folders of it from which a function imports modules."""
    runtime_env: dict[str, Any] = {}
    """Ray's runtime environment, for the runner and what it starts."""
    env: dict[str, str] = {}
    preload: str = ""
    """torch: run it in a process forked from one that has torch imported. It has no Ray connection there."""

    ranks: str = ""
    """device: a rank for each device, each a process of its own; "": one for each node's share."""

    @property
    def per_device(self) -> bool:
        return self.ranks == "device"

    @property
    def environment(self) -> Environment | None:
        """Packages of its own, if it wants any."""
        return environment_of(self.runtime_env, files=self.working_dir_blob)

    @property
    def forks(self) -> bool:
        """Whether it runs in a process forked from the machine's zygote: not with packages of its own."""
        return self.preload == "torch" and not set(self.runtime_env) - {"env_vars"}

    @property
    def is_call(self) -> bool:
        return bool(self.blob or self.inline)


def read_payload(text: str) -> Payload:
    """The payload of a job.

    Raises:
        InvalidRequest: `payload_invalid`: not JSON, an unknown field, or a value of the wrong type.
    """
    try:
        return msgspec.json.decode(text or "{}", type=Payload)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the job's payload can't be read: {error}", code="payload_invalid") from None


def inlined(pickled: bytes) -> str:
    """A pickle as it goes into `Payload.inline`."""
    return base64.b64encode(pickled).decode("ascii")


def runtime_env_of(payload: Payload, *, extra: Mapping[str, str], python: str = "") -> dict[str, Any]:
    """Ray's runtime_env for the runner: variables, with `extra` over them, and with `python` the interpreter. Nothing for
    which Ray would run anything of the tenant's.
    """
    variables = {**payload.runtime_env.get("env_vars", {}), **extra}
    wanted: dict[str, Any] = {"env_vars": variables} if variables else {}
    return {**wanted, "py_executable": python} if python else wanted
