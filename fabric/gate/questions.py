"""What can be asked of the gate without changing it, each with the type of its answer.

`account_id=None` is the operator's view over all accounts; a door sets it from the caller's key, never from the request.
Another tenant's job is answered like one that doesn't exist.
"""

import msgspec

from fabric.audit.records import Receipt, Statement
from fabric.charging.catalogue import Catalogue
from fabric.charging.records import Cdr
from fabric.charging.tariffs import Tariffs
from fabric.gate.events import JobSpec
from fabric.gate.views import BalanceView, JobView, KeyView, LeaseView, NodeView, QuoteView


class Question(msgspec.Struct, frozen=True, kw_only=True, tag_field="question"):
    """Something to look up."""


class JobOf(Question, tag="job"):
    """→ JobView | None"""

    job_id: str
    account_id: str | None = None


class JobsOf(Question, tag="jobs"):
    """→ list[JobView], newest first"""

    account_id: str | None = None
    states: tuple[str, ...] = ()
    limit: int = 100


class BalanceOf(Question, tag="balance"):
    """→ BalanceView | None"""

    account_id: str


class AccountsOf(Question, tag="accounts"):
    """→ list[BalanceView] (lots left out): the operator's list"""


class RecordsOf(Question, tag="records"):
    """→ list[Cdr], oldest first"""

    account_id: str | None = None
    job_id: str | None = None
    from_us: int = 0
    until_us: int | None = None


class StatementOf(Question, tag="statement"):
    """→ Statement: opening, every transfer, closing, with the tree heads it lies between"""

    account_id: str
    from_us: int = 0
    until_us: int | None = None


class ReceiptsOf(Question, tag="receipts"):
    """→ list[Receipt]: the inclusion proofs of every entry of the account, under the newest signed checkpoint"""

    account_id: str
    job_id: str | None = None


class QuoteOf(Question, tag="quote"):
    """→ QuoteView"""

    account_id: str
    spec: JobSpec


class KeyOf(Question, tag="key"):
    """→ KeyView | None"""

    key_id: str


class KeysOf(Question, tag="keys"):
    """→ list[KeyView]"""

    account_id: str | None = None


class NodesOf(Question, tag="nodes"):
    """→ list[NodeView]"""


class LeasesOf(Question, tag="leases"):
    """→ list[LeaseView]"""

    account_id: str | None = None


class PricesOf(Question, tag="prices"):
    """→ Prices"""


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force: the tariffs and the catalogue of plans, bundles and subscriptions."""

    tariffs: Tariffs
    catalogue: Catalogue


AnyQuestion = (
    JobOf
    | JobsOf
    | BalanceOf
    | AccountsOf
    | RecordsOf
    | StatementOf
    | ReceiptsOf
    | QuoteOf
    | KeyOf
    | KeysOf
    | NodesOf
    | LeasesOf
    | PricesOf
)
AnyAnswer = (
    JobView
    | BalanceView
    | KeyView
    | Statement
    | QuoteView
    | Prices
    | list[JobView]
    | list[BalanceView]
    | list[Cdr]
    | list[Receipt]
    | list[KeyView]
    | list[NodeView]
    | list[LeaseView]
    | None
)
