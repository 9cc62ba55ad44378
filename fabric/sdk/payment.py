"""A payment that was asked for: where it is paid, and what became of it."""

import json
import time
from typing import Any, Final

from fabric.client.client import Client, new_request_id
from fabric.errors import Conflict, InvalidRequest
from fabric.sdk.request import Tokens
from fabric.units import format_cny, parse_ct
from fabric.wire import fabric_pb2 as pb

LOOK_S: Final = 2.0
OPEN: Final = ("asked", "pending")


class Payment:
    """Nothing is bought before its provider says that it was paid: `wait` for that, or look again with `refresh`."""

    def __init__(self, client: Client, found: dict[str, Any]) -> None:
        self._client = client
        self._found: dict[str, Any] = found["payment"]
        self._url: str = found["url"]

    @property
    def id(self) -> str:
        """Its name: `Fabric.payment` finds it by that, from any program of the account."""
        return str(self._found["payment_id"])

    @property
    def url(self) -> str:
        """Where it is paid; "" where that is nowhere, or not any more."""
        return self._url

    @property
    def state(self) -> str:
        """One of asked | pending | paid | declined | expired | refunded | charged_back | suspense, where its money bought nothing."""
        return "suspense" if self._found["aside"] else str(self._found["state"])

    @property
    def buys(self) -> str:
        """What, in words."""
        return str(self._found["buys"])

    @property
    def price_microcny(self) -> int:
        """What is to be paid, in 10⁻⁶ CNY."""
        return int(self._found["price_microcny"])

    @property
    def is_open(self) -> bool:
        """Whether it can still be paid."""
        return self.state in OPEN

    def refresh(self) -> "Payment":
        """Look again; itself."""
        found = json.loads(self._client.call(pb.GetPaymentRequest(payment_id=self.id), pb.Document).json)
        self._found, self._url = found["payment"], found["url"]
        return self

    def wait(self, timeout: float | None = None) -> "Payment":
        """Wait until it is paid; itself.

        Args:
            timeout: seconds; None = for as long as it can be paid.

        Raises:
            Conflict: it came to nothing (`not_paid`).
            TimeoutError: nobody has paid it yet.
        """
        ends_s = None if timeout is None else time.monotonic() + timeout
        while self.is_open:
            if ends_s is not None and time.monotonic() >= ends_s:
                raise TimeoutError(f"payment {self.id} isn't paid yet: {self.url or 'pay the operator, naming it'}")
            time.sleep(LOOK_S if ends_s is None else min(LOOK_S, max(0.0, ends_s - time.monotonic())))
            self.refresh()
        if self.state != "paid":
            why = "its money stands in suspense: ask the operator" if self.state == "suspense" else self.state
            raise Conflict(f"payment {self.id} bought nothing: {why}", code="not_paid")
        return self

    def document(self) -> dict[str, Any]:
        """All that is known of it, as plain values."""
        return dict(self._found)

    def __repr__(self) -> str:
        return f"<Payment {self.id}: {self.buys} for {format_cny(self.price_microcny)} CNY, {self.state}>"


def ask(
    client: Client, tokens: Tokens | None, *, bundle: str = "", subscription: str = "", request_id: str | None = None
) -> Payment:
    """A new payment, or that of the same request id. See `Fabric.pay`."""
    if sum(map(bool, (tokens is not None, bundle, subscription))) != 1:
        raise InvalidRequest("pay for tokens, bundle= or subscription=: for one of them", code="invalid_payment")
    request = pb.AskPaymentRequest(
        request_id=request_id or new_request_id(),
        amount_uhs=0 if tokens is None else parse_ct(tokens),
        bundle=bundle,
        subscription=subscription,
    )
    return Payment(client, json.loads(client.call(request, pb.Document).json))


def known(client: Client, payment_id: str) -> Payment:
    """One that was asked for before."""
    return Payment(client, json.loads(client.call(pb.GetPaymentRequest(payment_id=payment_id), pb.Document).json))
