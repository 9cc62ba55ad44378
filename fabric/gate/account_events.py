"""Events of accounts and of who may act for them: customers, their keys."""

import msgspec

from fabric.gate.event import Event
from fabric.gate.key_scopes import KeyScope
from fabric.units import PPM, AccountId, KeyId


class OpenAccount(Event, frozen=True, kw_only=True, tag="open_account"):
    """A customer. `plan` names a plan of the catalogue: it sets the price of top-ups, their life, and the tier."""

    account_id: AccountId
    name: str
    plan: str
    credit_limit_uhs: int | None = msgspec.field(default=None, name="credit_uhs")
    """Postpaid: how far the account may go into debt. None = as far as the plan says."""
    older_limit_uhs: int = msgspec.field(default=0, name="credit_limit_uhs")
    """What older entries say instead; in them 0 meant the plan's."""
    weight_ppm: int = PPM
    """Its share of what others wait for too, against theirs. With a cohort, that one's weight counts."""
    cohort: str = ""
    """Who pays for it together with other accounts: the share is theirs together. "" = it is a payer of its own."""
    request_id: str = ""


class CreateKey(Event, frozen=True, kw_only=True, tag="create_key"):
    """An API key, known to the gate only by the sha256 of its secret."""

    key_id: KeyId
    account_id: AccountId
    secret_sha256: str
    name: str = ""
    operator: bool = False
    limit_uhs: int | None = None
    """The most that may be spent with this key, by jobs and by calls of models, together and ever."""
    requests_per_min: int = 0
    """Calls of models in a minute; 0 = no limit of its own."""
    tokens_per_min: int = 0
    """LLM tokens of such calls in a minute."""
    expires_at_us: int | None = None
    scopes: tuple[KeyScope, ...] = ()
    """What it may be used for; () = what such a key always had (`key_scopes.effective`)."""
    made_with: KeyId | None = None
    """The key of whoever asks: one that was revoked a moment ago makes no successor."""
    request_id: str = ""


class RevokeKey(Event, frozen=True, kw_only=True, tag="revoke_key"):
    key_id: KeyId
    account_id: AccountId | None = None
    """Set for a tenant, who may revoke only its own keys."""
    request_id: str = ""
