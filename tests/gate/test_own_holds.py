"""Holds that customers keep themselves: so many stand at once, and of those that are over so many are remembered."""

import pytest

from fabric.gate.events import Tick, TopUp
from fabric.gate.instructions import Accepted, Refusal
from fabric.gate.serving_events import Authorize, ReleaseHold, SettleHold
from fabric.ledger import Service, Use
from tests.gate.world import Clockwork, S

USE = Use(service=Service.INFERENCE)


@pytest.fixture
def world():
    made = Clockwork("ada", "bob")
    made.do(TopUp(account_id="ada", amount_uhs=1_000 * S))
    return made


def ask(world, hold_id, *, account="ada", amount):
    return world.do(Authorize(hold_id=hold_id, account_id=account, amount_uhs=amount, use=USE, ttl_us=60 * S)).outcome


def test_an_account_has_so_many_holds_of_its_own_and_the_oldest_that_are_over_are_forgotten(world, monkeypatch):
    """A customer makes holds of next to nothing as fast as the door lets it; a gateway's holds aren't counted."""
    monkeypatch.setattr("fabric.gate.credit.STANDING_MAX", 3)
    monkeypatch.setattr("fabric.ledger.own_holds.OVER_MAX", 4)
    for number in range(3):
        assert isinstance(ask(world, f"own:ada:{number}", amount=1), Accepted)
    refused = ask(world, "own:ada:more", amount=1)
    assert (refused.code, refused.facts["limit"]) == ("too_many_holds", 3)
    assert isinstance(ask(world, "gateway:ada:more", amount=1), Accepted)
    assert isinstance(ask(world, "own:bob:0", account="bob", amount=1), Refusal), "bob has no tokens"
    for number in range(20):
        assert isinstance(world.do(ReleaseHold(hold_id=f"own:ada:{number}", account_id="ada", seq=1)).outcome, Accepted)
        assert isinstance(ask(world, f"own:ada:{number + 3}", amount=1), Accepted)
    book = world.gate.state.book
    assert list(book.ended) == [f"own:ada:{number}" for number in range(16, 20)]
    # Those that lapse and are given up are as few, and one of them that is settled after all is over once.
    for day in range(1, 10):
        world.at(day * 3 * 86_400)
        for number in range(3):
            assert isinstance(ask(world, f"own:ada:{day}-{number}", amount=1), Accepted)
        assert len([each for each in book.expired if each.startswith("own:")]) <= 4
    late = next(iter(book.expired))
    assert isinstance(world.do(SettleHold(hold_id=late, account_id="ada", seq=1, used_uhs=1)).outcome, Accepted)
    assert late not in book.expired
    world.at(60 * 86_400).do(Tick())
    assert [book.ended, book.expired, book.holds, book.lapsed] == [{}, {}, {}, {}]
