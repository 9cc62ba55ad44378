"""Endpoints: where an account wants to be told, of what, and the secrets by which it knows that it is we who tell it.

Webhooks are signed as Standard Webhooks has it (https://www.standardwebhooks.com): HMAC-SHA256 over `id.timestamp.body`, one
signature for each secret that is good. A secret that was rotated out signs beside the new one for a day. Pure.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from fabric.errors import InvalidRequest
from fabric.notifications.notice import Kind, Notice

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - how each begins
SECRET_BYTES: Final = 32
ROTATES_US: Final = 86_400_000_000
"""How long the secret before the newest still signs."""
SECRETS_MAX: Final = 5
URL_MAX: Final = 2_000


class Secret(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What signs for an endpoint. Never shown again, and in no log."""

    text: str
    """whsec_ and base64."""
    until_us: int | None = None
    """None = until it is rotated out."""

    def __repr__(self) -> str:
        return "Secret(…)"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an account is told."""

    endpoint_id: str
    account_id: str
    url: str
    made_at_us: int
    kinds: tuple[Kind, ...] = ()
    """Of what; () = of everything."""
    secrets: tuple[Secret, ...] = ()
    """Newest first."""
    failing_since_us: int = 0
    """Since when nothing arrived; 0 = the last try did, or there was none."""
    ended: str = ""
    """Why it is told nothing any more: gone, as it answered 410; "" = it is."""

    def wants(self, notice: Notice) -> bool:
        """Whether it is told of this."""
        if self.ended or self.account_id != notice.account_id:
            return False
        return not self.kinds or notice.kind in self.kinds or notice.kind is Kind.TEST

    def good_secrets(self, now_us: int) -> list[str]:
        return [each.text for each in self.secrets if each.until_us is None or each.until_us > now_us]

    def rotated(self, secret: str, *, now_us: int) -> "Endpoint":
        """With a new secret, beside which those that are good sign for a day more."""
        good = [each for each in self.secrets if each.until_us is None or each.until_us > now_us]
        older = [each if each.until_us is not None else replace(each, until_us=now_us + ROTATES_US) for each in good]
        return replace(self, secrets=(Secret(text=secret), *older)[:SECRETS_MAX])


def secret_of(random: bytes) -> str:
    """A secret from random bytes."""
    return SECRET_PREFIX + base64.b64encode(random).decode()


def signed(secrets: Sequence[str], *, notice_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`.

    Args:
        secrets: those that are good.
        notice_id: the header `webhook-id`.
        timestamp: the header `webhook-timestamp`, in seconds since the epoch.
        body: as it is sent.
    """
    said = f"{notice_id}.{timestamp}.".encode() + body
    keys = (base64.b64decode(secret.removeprefix(SECRET_PREFIX)) for secret in secrets)
    return " ".join("v1," + base64.b64encode(hmac.new(key, said, hashlib.sha256).digest()).decode() for key in keys)


def check_url(url: str) -> None:
    """Refuse what is no address of a webhook. Where it leads is looked at when something is sent.

    Raises:
        InvalidRequest: with code `invalid_url`.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    why = ""
    if len(url) > URL_MAX:
        why = f"it has {len(url)} characters, and may have {URL_MAX}"
    elif not url.isascii() or not url.isprintable() or " " in url:
        why = "it has characters that must be encoded"
    elif parts.scheme not in ("https", "http") or not host:
        why = "it is not https://HOST/..."
    elif parts.username is not None or parts.password is not None:
        why = "it has a name or password in it, which would be shown; use the signature instead"
    elif parts.fragment:
        why = "it has a fragment, which no server sees"
    if why:
        raise InvalidRequest(f"this is no address of a webhook: {why}", code="invalid_url")
