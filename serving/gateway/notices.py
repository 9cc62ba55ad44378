"""Notices of providers of payments: handed on as they are, and answered when the fabric has booked them.

Nothing of one is read here but its size: whether it is its provider's is looked at where the provider's secret is.
"""

from typing import Final

from fabric.api.connections import network_of
from fabric.api.limits import RateLimit
from serving.gateway.directory import Directory
from serving.gateway.exchange import Exchange, Reading

BYTES_MAX: Final = 64 * 1024
PER_S: Final = 20
"""From one network: nobody has to show a key here."""
_HANDED_ON: Final = (b"stripe-signature",)
_NAME_CHARS_MAX: Final = 40


async def hand_on(exchange: Exchange, provider: str, directory: Directory, rate: RateLimit, reading: Reading) -> None:
    """Have the fabric book it, and answer as its provider wants to be answered.

    Raises:
        RateLimited: too many come from there.
        TooLarge: no notice is so large.
        NotFound: payments of that provider are not taken here.
        PermissionDenied: it isn't signed by it (`forged_notice`).
    """
    client = exchange.scope.get("client")
    rate.spend(network_of(client[0]) if client else "")
    body = await exchange.body(reading, most=BYTES_MAX)
    headers = {
        name.decode(): exchange.headers[name].decode("latin-1") for name in _HANDED_ON if name in exchange.headers
    }
    said = await directory.notice(provider[:_NAME_CHARS_MAX], headers, body)
    await exchange.answer(200, [(b"content-type", b"text/plain; charset=utf-8")], said)
