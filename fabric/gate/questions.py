"""What can be asked of the gate without changing it, each with the type of its answer.

`account_id=None` is the operator's view over all accounts; a door sets it from the caller's key, never from the request.
Another tenant's job is answered like one that doesn't exist.
"""

from typing import Final, TypeGuard

import msgspec

from fabric.audit.records import Booked, Receipt, Sealed, Statement
from fabric.charging.catalogue import Catalogue
from fabric.charging.records import Cdr
from fabric.charging.tariffs import Tariffs
from fabric.gate.events import Configure, JobSpec
from fabric.gate.limit_views import LimitView
from fabric.gate.organisation_views import KeyView, OrganisationView
from fabric.gate.payment_views import NoticeView, PaymentView, SuspenseView
from fabric.gate.periods import Zone
from fabric.gate.price_state import Announced
from fabric.gate.views import (
    BalanceView,
    CallerView,
    JobView,
    LeaseView,
    LotView,
    ModelView,
    NodeView,
    OpenUsageView,
    QuoteView,
    RoomView,
    WhyView,
)
from fabric.placement.quota_terms import Used
from fabric.placement.quotas import Policy
from fabric.units import INT64_MAX, AccountId, HoldId, JobId, KeyId

PAGE: Final = 500
"""Rows on a page of what the journal has."""


class Question(msgspec.Struct, frozen=True, kw_only=True, tag_field="question"):
    """Something to look up."""


class JobOf(Question, frozen=True, kw_only=True, tag="job"):
    """→ JobView | None"""

    job_id: JobId
    account_id: AccountId | None = None


class SpecOf(Question, frozen=True, kw_only=True, tag="spec"):
    """→ JobSpec | None: what was submitted, payload and all"""

    job_id: JobId
    account_id: AccountId | None = None


class JobsOf(Question, frozen=True, kw_only=True, tag="jobs"):
    """→ list[JobView], newest first"""

    account_id: AccountId | None = None
    states: tuple[str, ...] = ()
    limit: int = 100
    key_id: KeyId | None = None
    """Only those that were submitted with this key."""
    of_operators: bool = False
    """Only those that were submitted with an operator's key."""
    name: str = ""
    """As it is, or with a `*` at its end what begins so; "" = any."""
    tags: tuple[str, ...] = ()
    """All of them."""
    from_us: int = 0
    until_us: int | None = None
    """When it was submitted: at or after, and before."""
    beginning: str = ""
    """Of the job's id."""
    after: JobId | None = None
    """Only those that were submitted before this one."""


class RevisionOf(Question, frozen=True, kw_only=True, tag="revision"):
    """→ int: of the job that changed last"""


class BalanceOf(Question, frozen=True, kw_only=True, tag="balance"):
    """→ BalanceView | None"""

    account_id: AccountId


class FreeOf(Question, frozen=True, kw_only=True, tag="free"):
    """→ RoomView: how many µHs more a client's hold of the account could be given now; 0 where there is none"""

    account_id: AccountId
    hold_id: HoldId


class AccountsOf(Question, frozen=True, kw_only=True, tag="accounts"):
    """→ list[BalanceView] (lots left out): the operator's list"""


class Paged(Question, frozen=True, kw_only=True):
    """Something that is answered in pages: each answer has the question for the next one, or None."""

    limit: int = PAGE
    size: int | None = None
    """Of the journal that all pages are about; None = the newest, for the first page."""
    after: tuple[int, ...] = ()
    """Where the page before has ended."""


class RecordsOf(Paged, frozen=True, kw_only=True, tag="records"):
    """→ RecordsPage: charging records by the time they were closed, oldest first"""

    account_id: AccountId | None = None
    job_id: JobId | None = None
    from_us: int = 0
    until_us: int | None = None


class RecordsPage(msgspec.Struct, frozen=True, kw_only=True):
    records: tuple[Cdr, ...]
    following: RecordsOf | None = None


class StatementOf(Paged, frozen=True, kw_only=True, tag="statement"):
    """→ StatementPage: opening, every transfer, closing, with the tree heads it lies between; all lines before the records"""

    account_id: AccountId
    from_us: int = 0
    until_us: int | None = None
    records_now: bool = False
    """Whether the lines were all on the pages before."""


class StatementPage(msgspec.Struct, frozen=True, kw_only=True):
    """A statement with the lines and records of one page."""

    statement: Statement
    following: StatementOf | None = None


class BookedOf(Paged, frozen=True, kw_only=True, tag="booked"):
    """→ BookedPage: what was booked for the account in a time, entry by entry, in the journal's order"""

    account_id: AccountId
    from_us: int = 0
    until_us: int | None = None


class BookedPage(msgspec.Struct, frozen=True, kw_only=True):
    entries: tuple[Booked, ...]
    size: int = 0
    """Of the journal that it is about."""
    following: BookedOf | None = None


class LotTermsOf(Question, frozen=True, kw_only=True, tag="lot_terms"):
    """→ list[LotView]: the account's lots of these names, whatever is left of them; forgotten ones are left out"""

    account_id: AccountId
    lot_ids: tuple[str, ...]


class ReceiptsOf(Paged, frozen=True, kw_only=True, tag="receipts"):
    """→ ReceiptsPage: the inclusion proofs of every entry of the account, under the newest signed checkpoint"""

    account_id: AccountId
    job_id: JobId | None = None


class ReceiptsPage(msgspec.Struct, frozen=True, kw_only=True):
    receipts: tuple[Receipt, ...]
    following: ReceiptsOf | None = None


class CheckpointOf(Question, frozen=True, kw_only=True, tag="checkpoint"):
    """→ Sealed: the newest signed checkpoint"""


class BlobsOf(Question, frozen=True, kw_only=True, tag="blobs"):
    """→ list[BlobUse]: what the account's jobs name of what it keeps"""

    account_id: AccountId


class BlobUse(msgspec.Struct, frozen=True, kw_only=True):
    """That a job needs a blob."""

    key: str
    ended_at_us: int | None
    """Of the job; None = it may run again."""


class QuoteOf(Question, frozen=True, kw_only=True, tag="quote"):
    """→ QuoteView | None"""

    account_id: AccountId
    spec: JobSpec
    key_id: KeyId | None = None
    """The key it would be submitted with: its limit counts too."""


class KeyOf(Question, frozen=True, kw_only=True, tag="key"):
    """→ KeyView | None"""

    key_id: KeyId


class KeysOf(Question, frozen=True, kw_only=True, tag="keys"):
    """→ list[KeyView]"""

    account_id: AccountId | None = None


class CallerOf(Question, frozen=True, kw_only=True, tag="caller"):
    """→ CallerView | None: all that a gateway must know of whoever calls with a key"""

    key_id: KeyId


class ModelsOf(Question, frozen=True, kw_only=True, tag="models"):
    """→ list[ModelView]: what is offered to the account"""

    account_id: AccountId | None = None


class NodesOf(Question, frozen=True, kw_only=True, tag="nodes"):
    """→ list[NodeView]"""


class LeasesOf(Question, frozen=True, kw_only=True, tag="leases"):
    """→ list[LeaseView]"""

    account_id: AccountId | None = None


class OpenUsageOf(Question, frozen=True, kw_only=True, tag="open_usage"):
    """→ list[OpenUsageView], oldest first: calls that were used and are neither charged nor written off"""


class PricesOf(Question, frozen=True, kw_only=True, tag="prices"):
    """→ Prices"""


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force: the tariffs and the catalogue of plans, bundles and subscriptions; and what is announced."""

    tariffs: Tariffs
    catalogue: Catalogue
    announced: tuple[Announced, ...] = ()
    """What begins later, the first first: what is in force is so until then."""


class WhyOf(Question, frozen=True, kw_only=True, tag="why"):
    """→ WhyView | None: why a job is where it is"""

    job_id: JobId
    account_id: AccountId | None = None


class PolicyOf(Question, frozen=True, kw_only=True, tag="policy"):
    """→ PolicyView"""


class PolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """By which numbers jobs are placed."""

    configure: Configure
    """What is in force, as an event that would change nothing."""
    filed: Policy
    """What the cluster file said last."""
    quotas: tuple[Used, ...] = ()
    """What is used of each quota."""


FromJournal = StatementOf | CheckpointOf | ReceiptsOf | RecordsOf | BookedOf
"""What the journal alone answers."""


class OrganisationOf(Question, frozen=True, kw_only=True, tag="organisation"):
    """→ OrganisationView | None: whose an account is"""

    account_id: AccountId


class PaymentsOf(Question, frozen=True, kw_only=True, tag="payments"):
    """Payments that providers take, newest first, a page of them."""

    account_id: AccountId | None = None
    """None = everybody's."""
    payment_id: str = ""
    """Only this one; of somebody else's there is none."""
    unfinished: bool = False
    """Only those of which its provider is still to do something: start it, say what became of it, refund it."""
    provider: str = ""
    from_us: int = 0
    until_us: int = INT64_MAX
    limit: int = 1_000


class SuspenseOf(Question, frozen=True, kw_only=True, tag="suspense"):
    """Money that could not be booked, oldest first; settled ones too, where that is said."""

    settled: bool = False


class LimitsOf(Question, frozen=True, kw_only=True, tag="limits"):
    """→ list[LimitView]: limits that reset"""

    account_id: AccountId
    key_id: KeyId | None = None
    """Only this key's and its account's; None = all of the account's."""


class ZonesOf(Question, frozen=True, kw_only=True, tag="zones"):
    """→ list[Zone]: the time zones that are known"""


class NoticesOf(Question, frozen=True, kw_only=True, tag="notices"):
    """What an account is to hear of, oldest first; "" = what the operator is."""

    account_id: AccountId


AnyQuestion = (
    JobOf
    | SpecOf
    | JobsOf
    | RevisionOf
    | BalanceOf
    | FreeOf
    | AccountsOf
    | RecordsOf
    | StatementOf
    | BookedOf
    | ReceiptsOf
    | CheckpointOf
    | BlobsOf
    | LotTermsOf
    | QuoteOf
    | KeyOf
    | KeysOf
    | OrganisationOf
    | CallerOf
    | ModelsOf
    | NodesOf
    | LeasesOf
    | OpenUsageOf
    | PolicyOf
    | WhyOf
    | PricesOf
    | PaymentsOf
    | SuspenseOf
    | NoticesOf
    | LimitsOf
    | ZonesOf
)
AnyAnswer = (
    JobView
    | JobSpec
    | BalanceView
    | KeyView
    | CallerView
    | RoomView
    | Sealed
    | RecordsPage
    | StatementPage
    | BookedPage
    | ReceiptsPage
    | QuoteView
    | PolicyView
    | OrganisationView
    | WhyView
    | Prices
    | list[BlobUse]
    | list[LotView]
    | list[JobView]
    | list[BalanceView]
    | list[KeyView]
    | list[ModelView]
    | list[NodeView]
    | list[LeaseView]
    | list[OpenUsageView]
    | list[PaymentView]
    | list[SuspenseView]
    | list[NoticeView]
    | list[LimitView]
    | list[Zone]
    | int
    | None
)


def are_jobs(found: AnyAnswer) -> TypeGuard[list[JobView]]:
    return isinstance(found, list) and bool(found) and isinstance(found[0], JobView)
