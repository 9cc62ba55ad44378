"""What a provider of payments has to have. One file each; what it says becomes `Said`, and only after it was verified."""

from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from fabric.errors import PermissionDenied
from fabric.gate.payment_events import Said
from fabric.gate.payment_views import PaymentView, RefundView

NOTICE_BYTES_MAX: Final = 64 * 1024
"""What a provider sends at once, at most; nothing larger is read."""
TIMEOUT_S: Final = 15.0
"""How long a provider may take for an answer."""


class Forged(PermissionDenied):
    """A notice whose signature is not its provider's."""


class Started(NamedTuple):
    """A payment that its provider waits for."""

    ref: str
    """What it is called there."""
    url: str
    """Where the customer pays; "" = nowhere: it is paid by other means."""
    said: Said | None = None
    """Where it was paid or refused at once."""


class PaymentProvider(Protocol):
    """All of it may be asked again: a payment and a refund have ids, and the same id is the same payment."""

    name: str
    thanks: bytes
    """What a notice that was booked is answered with."""
    listed_after_us: int
    """How long after a day of UTC its list of it is whole."""

    async def start(self, payment: PaymentView, *, before: PaymentView | None) -> Started:
        """Have the customer pay, or say again where it does.

        Args:
            payment: what is to be paid.
            before: the newest that the account has paid there: of a payment that nobody asked for, whose means may be used again.

        Raises:
            Unavailable: it doesn't answer; whether it has heard is not known.
        """

    async def confirm(self, payment: PaymentView) -> Said | None:
        """What has become of it; None = it is still waited for."""

    async def refund(self, payment: PaymentView, refund: RefundView) -> Said | None:
        """Pay a part back to where it came from; what it says then. None = that takes longer."""

    async def list(self, from_us: int, until_us: int) -> tuple[Said, ...]:
        """All that it has taken in that time, with what became of each.

        Raises:
            Unavailable: it doesn't answer, or has no list of all of that time yet.
        """

    async def hear(self, headers: Mapping[str, str], body: bytes) -> tuple[Said, ...]:
        """What a notice says; () where it is of something else.

        Raises:
            Forged: it is not the provider's. Nothing of it was looked at.
            Unavailable: what it is about has to be asked, and the provider doesn't answer.
        """


HOUR_US: Final = 3_600_000_000
SOON_US: Final = 12 * HOUR_US
"""Long enough for a list that is written as payments are made."""

Takers = tuple[PaymentProvider, ...]
"""All of a fabric's: the first is the one that customers pay at."""


def fen_of(microcny: int) -> int:
    """A price as providers count: hundredths of a yuan. It is a whole number of them."""
    fen, rest = divmod(microcny, 10_000)
    assert rest == 0, f"{microcny} × 10⁻⁶ CNY are no whole fen"
    return fen
