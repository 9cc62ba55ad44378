import pytest

from fabric.ledger import ANYTHING, Book, Origin, Service, Terms, Use

TRAINING = Use(service=Service.TRAINING, accelerators=("H100",))


def make_terms(
    origin=Origin.TOP_UP,
    *,
    tier="starter",
    effective=0,
    expires=None,
    scope=ANYTHING,
    priority=0,
    price=0,
    channel="",
    parents=(),
):
    return Terms(
        origin=origin,
        tier=tier,
        priority=priority,
        scope=scope,
        effective_at_us=effective,
        expires_at_us=expires,
        price_microcny=price,
        parent_lots=parents,
        channel=channel,
    )


@pytest.fixture
def terms():
    return make_terms


@pytest.fixture
def use():
    return TRAINING


@pytest.fixture
def book():
    """One prepaid account, "ada", without a token; sound at the end of every test."""
    book = Book(operator="op", refund_margin_us=10)
    assert book.open_account("ada", now_us=0) is None
    yield book
    book.check()


@pytest.fixture
def funded(book):
    """Ada has 60 until t=100, then 40 for ever."""
    book.grant("ada", lot_id="short", amount_uhs=60, terms=make_terms(expires=100), now_us=0)
    book.grant("ada", lot_id="long", amount_uhs=40, terms=make_terms(), now_us=0)
    book.drain()
    return book
