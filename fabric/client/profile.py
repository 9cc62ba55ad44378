"""Where a client finds its fabric, and who it is there.

Each setting is taken from the first of: an argument, the environment (`FABRIC_ADDRESS`, `FABRIC_API_KEY`, `FABRIC_CA`,
`FABRIC_ACCOUNT`), the profile file. The file is `~/.config/fabric/profile.toml` (below `XDG_CONFIG_HOME` where that is
set) with one table for each profile; `FABRIC_PROFILE` names the one to use, else `default`. It holds keys, so only its
owner may read it.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

from fabric.errors import InvalidConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_PROFILE: Final = "default"
_OTHERS_MAY: Final = 0o077


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One connection's settings; "" is not set."""

    address: str = ""
    """`host:port` of the gRPC door."""
    api_key: str = ""
    ca: str = ""
    """Path of the PEM file that the door's certificate is signed by; "" = the system's own authorities."""
    account: str = ""
    """For operators: the customer to act for."""

    def __repr__(self) -> str:
        return f"Profile(address={self.address!r}, ca={self.ca!r}, account={self.account!r})"


def profile_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the profiles are kept."""
    return Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "fabric" / "profile.toml"


def load_profile(given: Profile | None = None, *, environ: Mapping[str, str] = os.environ) -> Profile:
    """The settings in force: `given`, then the environment, then the file.

    Raises:
        InvalidConfig: no address or key anywhere, an unknown profile, a file that isn't TOML or that others may read.
    """
    named = environ.get("FABRIC_PROFILE", "")
    merged = given or Profile()
    from_environment = Profile(**{name: environ.get(f"FABRIC_{name.upper()}", "") for name in _names()})
    merged = _fill(merged, from_environment)
    if named or not (merged.address and merged.api_key):
        kept = _from_file(profile_file(environ), name=named or DEFAULT_PROFILE, must_exist=bool(named))
        if merged.api_key:
            kept = replace(kept, account="")  # the file's account belongs to the file's key
        merged = _fill(merged, kept)
    for missing in ("address", "api_key"):
        if not getattr(merged, missing):
            started = f", or run `fabric up --local`, which writes {profile_file(environ)}"
            elsewhere = (
                f" to a key of your account at {merged.address}: whoever runs it makes one by `fabric keys create`"
            )
            raise InvalidConfig(
                f"no {missing} given: set FABRIC_{missing.upper()}{elsewhere if merged.address else started}",
                code=f"no_{missing}",
            )
    return merged


def save_profile(profile: Profile, *, name: str = DEFAULT_PROFILE, environ: Mapping[str, str] = os.environ) -> Path:
    """Write one profile and keep the others. The file is readable by its owner only."""
    file = profile_file(environ)
    profiles = _read(file) if file.exists() else {}
    profiles[name] = {key: value for key, value in asdict(profile).items() if value}
    text = "\n".join(
        f"[{json.dumps(title)}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for title, table in profiles.items()
    )
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    fresh.replace(file)
    return file


def _names() -> tuple[str, ...]:
    return tuple(field.name for field in fields(Profile))


def _fill(profile: Profile, other: Profile) -> Profile:
    return replace(profile, **{name: getattr(profile, name) or getattr(other, name) for name in _names()})


def _from_file(file: Path, *, name: str, must_exist: bool) -> Profile:
    profiles = _read(file) if file.exists() else {}
    if name in profiles:
        return Profile(**profiles[name])
    if must_exist:
        known = ", ".join(profiles) or "none"
        raise InvalidConfig(f"{file} has no profile {name!r}: it has {known}", code="unknown_profile", profile=name)
    return Profile()


def _read(file: Path) -> dict[str, dict[str, str]]:
    if os.name == "posix" and file.stat().st_mode & _OTHERS_MAY:  # elsewhere these bits say nothing of others
        raise InvalidConfig(
            f"{file} holds keys and others may read it: run `chmod 600 {file}`", code="profile_readable"
        )
    try:
        profiles: dict[str, dict[str, str]] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{file} is not TOML: {error}", file=str(file)) from None
    for title, table in profiles.items():
        unknown = set(table) - set(_names()) if isinstance(table, dict) else {title}
        if unknown or not all(isinstance(value, str) for value in table.values()):
            raise InvalidConfig(
                f"{file}, profile {title!r}: allowed are {', '.join(_names())}, as strings", file=str(file)
            )
    return profiles
