"""What sections of configuration files are made of: paths, names, addresses, and a mapping that knows its keys.

Also what the environment says, because a path in a file may begin with the state directory. Knows no section by itself.
"""

import ipaddress
import os
import socket
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

_PORT_MAX: Final = 65_535


class Settings(BaseSettings):
    """What the environment says, as `FABRIC_STATE_DIR`, `FABRIC_CONFIG` and `FABRIC_LOG_LEVEL`."""

    model_config = SettingsConfigDict(env_prefix="FABRIC_", frozen=True)

    state_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "token-fabric"
    )
    config: Path | None = None
    """The cluster file that commands use when none is named."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def _resolve(path: Any, info: ValidationInfo) -> Path:
    """An absolute path: the state directory filled in, `~` expanded, the rest relative to the file's directory."""
    if not isinstance(path, str | Path) or not str(path):
        raise PydanticCustomError("path", "a path")
    context = info.context or {}
    state_dir = context.get("state_dir") or str(Settings().state_dir)
    filled = Path(str(path).replace("${FABRIC_STATE_DIR}", state_dir)).expanduser()
    return (Path(context.get("directory", ".")) / filled).absolute()


def host_and_port(listen: str) -> tuple[str, int]:
    """Of an address to listen at; port 0 = any free one."""
    host, _, port = listen.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or not port.isdecimal() or int(port) > _PORT_MAX:
        raise PydanticCustomError("listen", 'an address such as "127.0.0.1:7433" or "[::1]:7433"')
    return bare, int(port)


def is_loopback(host: str) -> bool:
    """Whether nobody beyond this machine reaches what listens there. A name is judged by everything it resolves to; one that
    doesn't resolve, or no name at all, is not loopback: in doubt others reach it.
    """
    bare = host.removeprefix("[").removesuffix("]")
    try:
        found = [ipaddress.ip_address(bare)]
    except ValueError:
        found = _addresses_of(bare)
    return bool(found) and all(_is_loopback(address) for address in found)


def _addresses_of(name: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    if not name:
        return []
    try:
        return [ipaddress.ip_address(str(found[4][0])) for found in socket.getaddrinfo(name, None)]
    except (OSError, ValueError):
        return []


def _is_loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _listen_address(listen: str) -> str:
    host_and_port(listen)
    return listen


FilePath = Annotated[Path, PlainValidator(_resolve), Field(validate_default=True)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
"""What a Kubernetes label may be, so that names can be labels: letters, digits, '.', '_' and '-'."""
Port = Annotated[int, Field(ge=0, le=_PORT_MAX)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]


class Section(BaseModel):
    """A mapping in the file: says which keys it knows when it meets one it doesn't."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, given: Any) -> Any:
        unknown = sorted(set(given) - set(cls.model_fields)) if isinstance(given, dict) else []
        if unknown:
            facts = {"unknown": ", ".join(unknown), "known": ", ".join(sorted(cls.model_fields))}
            raise PydanticCustomError("unknown_keys", "unknown keys {unknown}; allowed are {known}", facts)
        return given


class TlsFiles(Section):
    """PEM files, in place of a certificate of the fabric's own making."""

    cert: FilePath
    key: FilePath
