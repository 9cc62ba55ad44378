"""A request that is asked again gets its first answer: with another key of the account, and by a client of another version."""

import msgspec
import pytest

from fabric.api.payloads import recorded
from fabric.errors import Conflict
from fabric.worker.payload import Payload, read_payload

COMMAND = ["true"]


class NextPayload(Payload, frozen=True, kw_only=True, omit_defaults=True):
    """What a job's payload may say in a later version."""

    newer: str = ""


def test_another_key_of_the_account_finds_what_the_first_has_submitted(house):
    """Keys are rotated while a submission has no answer."""
    house.port.run_jobs = False
    first = house.fabric(house.acme).submit(COMMAND, tokens=1, request_id="once")
    with_another = house.fabric(house.key("acme", "rotated"))
    free_uhs = with_another.balance().free_uhs
    again = with_another.submit(COMMAND, tokens=1, request_id="once")
    assert again.id == first.id
    assert with_another.balance().free_uhs == free_uhs, "nothing is held a second time"
    with pytest.raises(Conflict) as other:
        with_another.submit(["false"], tokens=1, request_id="once")
    assert other.value.code == "request_id_reused"


def test_another_account_has_requests_of_its_own(house):
    house.port.run_jobs = False
    first = house.fabric(house.acme).submit(COMMAND, tokens=1, request_id="once")
    assert house.fabric(house.globex).submit(COMMAND, tokens=1, request_id="once").id != first.id


def test_what_a_payload_does_not_say_is_not_written():
    """So that a field that comes later makes no other request of one that is repeated."""
    said = Payload(entrypoint=("train.py", "--fast"), env={"A": "1"})
    assert recorded(said) == recorded(msgspec.convert(msgspec.to_builtins(said), NextPayload))
    assert read_payload(recorded(said)) == said
    assert read_payload(recorded(Payload())) == Payload()
