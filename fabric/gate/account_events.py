"""Events of accounts and of who may act for them: customers, their organisations' projects and members, their keys.

Whose organisation is meant is said by an account of it. An account that nobody has given one is an organisation of its own,
whose one project is called like it.
"""

import msgspec

from fabric.gate.event import Event
from fabric.gate.key_scopes import KeyScope
from fabric.gate.limit_events import LimitTerms
from fabric.gate.roles import Role
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
    organisation: AccountId = AccountId("")
    """An account of the organisation whose wallet this is, one more; "" = it is an organisation of its own."""
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
    limits: tuple[LimitTerms, ...] = ()
    """Those that reset."""
    made_with: KeyId | None = None
    """The key of whoever asks: one that was revoked a moment ago makes no successor."""
    project: str = ""
    """Of the account's organisation: what is done with the key is the project's, and its wallet, the account, pays. "" = the
    project that is called like the account.
    """
    member: str = ""
    """Whose it is: it can do no more than that one's role, and is dead when that one has left. "" = nobody's."""
    tags: tuple[str, ...] = ()
    """What all jobs and calls with it are marked with, beside what its project gives: of one name its own counts."""
    request_id: str = ""


class RevokeKey(Event, frozen=True, kw_only=True, tag="revoke_key"):
    key_id: KeyId
    account_id: AccountId | None = None
    """Set for a tenant, who may revoke only its own keys."""
    request_id: str = ""


class CreateProject(Event, frozen=True, kw_only=True, tag="create_project"):
    """Work of an organisation that is paid from one wallet, and from no other, ever."""

    account_id: AccountId
    """Any account of the organisation."""
    project: str
    wallet: AccountId
    """The account of the organisation that pays."""
    name: str = ""
    tags: tuple[str, ...] = ()
    """What all its jobs and calls are marked with, for cost centres."""
    by_key: KeyId | None = None
    """The key of whoever asks; None = an operator."""
    request_id: str = ""


class CloseProject(Event, frozen=True, kw_only=True, tag="close_project"):
    """Its keys are dead from now on; what runs goes on."""

    account_id: AccountId
    project: str
    by_key: KeyId | None = None
    request_id: str = ""


class AddMember(Event, frozen=True, kw_only=True, tag="add_member"):
    """Somebody may have keys of the organisation, which can do what the role says. One who had left may come back."""

    account_id: AccountId
    member: str
    role: Role
    name: str = ""
    by_key: KeyId | None = None
    request_id: str = ""


class SetRole(Event, frozen=True, kw_only=True, tag="set_role"):
    """Another role for a member: all its keys can do that, and no more, from now on."""

    account_id: AccountId
    member: str
    role: Role
    by_key: KeyId | None = None
    request_id: str = ""


class RemoveMember(Event, frozen=True, kw_only=True, tag="remove_member"):
    """A member leaves: its keys are dead, for good."""

    account_id: AccountId
    member: str
    by_key: KeyId | None = None
    request_id: str = ""


class SuspendAccount(Event, frozen=True, kw_only=True, tag="suspend_account"):
    """Keys look and pay and do nothing else; what runs saves, and is parked until the account is resumed."""

    account_id: AccountId
    reason: str
    organisation: bool = False
    """All wallets of its organisation."""
    request_id: str = ""


class ResumeAccount(Event, frozen=True, kw_only=True, tag="resume_account"):
    """A suspended account is open again, and its jobs go on."""

    account_id: AccountId
    organisation: bool = False
    request_id: str = ""


class CloseAccount(Event, frozen=True, kw_only=True, tag="close_account"):
    """For good: keys are dead, jobs save and are cancelled, the balance goes."""

    account_id: AccountId
    reason: str
    balance: str = "refund"
    """What is left of it: refund (to where it came from) | forfeit"""
    organisation: bool = False
    request_id: str = ""


AnyAccountEvent = (
    OpenAccount
    | CreateKey
    | RevokeKey
    | CreateProject
    | CloseProject
    | AddMember
    | SetRole
    | RemoveMember
    | SuspendAccount
    | ResumeAccount
    | CloseAccount
)
