"""What a cluster file says of notices."""

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from fabric.config.sections import Section


def _network(given: str) -> str:
    try:
        return str(ipaddress.ip_network(given))
    except ValueError:
        raise PydanticCustomError("network", "a network such as 10.0.0.0/8") from None


class NoticesConfig(Section):
    """Where customers' webhooks may lead besides public addresses."""

    private_networks: Annotated[
        tuple[Annotated[str, AfterValidator(_network)], ...], Field(strict=False, max_length=100)
    ] = ()
    """To these they may lead too, also without TLS: whoever has an account can have a request sent there."""
