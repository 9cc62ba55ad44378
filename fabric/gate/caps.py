"""How much of what costs the operator one customer may have, where no token pays for it. Each has a setting."""

from typing import Final

import msgspec

CAP_MAX: Final = 10_000_000


class Caps(msgspec.Struct, frozen=True, kw_only=True):
    """The most there may be; what is there already when one becomes less stays."""

    keys: int = 256
    """Of one account, that are neither revoked nor expired."""
    members: int = 1_000
    """Of one organisation, that haven't left."""
    projects: int = 200
    """Of one organisation, that aren't closed, beside those called like its accounts."""
    queued_jobs: int | None = None
    """Of one account, that wait for devices. None = as many as its tokens cover."""

    @property
    def mistake(self) -> str:
        """Which of them can't be meant, if one can't."""
        for name, cap in msgspec.structs.asdict(self).items():
            if cap is not None and not 1 <= cap <= CAP_MAX:
                return name
        return ""
