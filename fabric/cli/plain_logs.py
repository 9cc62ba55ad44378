"""How what a command logs looks where it reaches beyond the wire: as in every process of ours, without variables."""

import importlib.util
import logging


def log_plainly() -> None:
    """Log so from now on: the product's own parts, and libraries, whose retries are no news. A client alone logs nothing so."""
    if importlib.util.find_spec("structlog") is None:
        return
    from fabric import logs  # noqa: PLC0415  # takes long to import, and a client alone has it not

    debugging = logging.getLogger().isEnabledFor(logging.DEBUG)
    logs.plain("DEBUG" if debugging else "WARNING")
    if not debugging and importlib.util.find_spec("stamina") is not None:
        import stamina.instrumentation  # noqa: PLC0415

        stamina.instrumentation.set_on_retry_hooks([])
