"""Stories of use that is reported late, beyond what was held, or can't be charged: none of it is lost, none is owed."""

import pytest

from fabric.gate.events import CreateKey, TopUp
from tests.gate.test_call_stories import COST, call, free, hold, key_of, offer, say
from tests.gate.world import Clockwork, S


@pytest.fixture
def world():
    made = Clockwork("ada", "bob")
    made.do(offer())
    made.do(TopUp(account_id="ada", amount_uhs=1_000 * S))
    return made


def test_what_was_written_off_is_in_the_calls_records_and_not_the_keys(world):
    """A slice of one call, two used, and the account's other tokens are spent: the last call bears the loss."""
    world.do(CreateKey(key_id="k", account_id="ada", secret_sha256=""))
    hold(world, amount=COST, key_id="k")
    hold(world, "other", amount=free(world))
    decision = say(world, call("a"), call("b"), seq=1, end=True)
    assert [(one.charged_uhs, one.absorbed_uhs) for one in decision.records] == [(COST, 0), (0, COST)]
    assert decision.outcome.facts["written_off_uhs"] == COST
    assert key_of(world) == (COST, 0)
    assert [transfer.kind for transfer in decision.transfers] == ["capture", "write_off"]
