"""Actors that answer only to who knows their secret, and pickles that may name nothing but records."""

import importlib.util
import os
import pickle
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from fabric.config.cluster import ClusterConfig
from fabric.errors import InsufficientTokens, PermissionDenied
from fabric.gate.events import JobKind, LeaseOutcome, Tick
from fabric.gate.questions import BalanceOf
from fabric.system.guarded import Admitted, Stranger, Who, ask_who, is_ours, sealed, secret_of
from fabric.system.moved import MOVED
from fabric.system.unpickling import Refused, loads
from fabric.worker.channel import Address
from fabric.worker.runner import Described, Seat
from fabric.worker.stage import JobEnd, Save
from tests.actor.test_actor import JOB as SUBMITTED
from tests.cluster.shells import Handle, Method, Shell, admitted

KEY = b"k" * 32
SECRET = secret_of(KEY, "gate fabric")


async def test_who_knows_the_secret_gets_the_answer_and_who_does_not_a_refusal():
    actor = admitted(SECRET, said="good day")
    assert await actor.greet.remote("you") == "good day you"
    for wrong in (b"", b"x" * 32, secret_of(KEY, "gate other"), "secret", None):
        with pytest.raises(PermissionDenied, match="API key"):
            await Admitted(actor.actor, wrong).send("greet", "you")


@pytest.mark.parametrize("method", ["_hidden", "__init__", "__class__", 7])
async def test_nothing_but_public_methods_can_be_called(method):
    with pytest.raises(PermissionDenied):
        await admitted(SECRET).send(method)


async def test_nothing_is_made_before_the_secret_is_heard_and_then_once():
    actor = admitted(SECRET)
    with pytest.raises(PermissionDenied):
        await Admitted(actor.actor, b"x" * 32).send("greet", "you")
    assert actor.actor.shell._inside is None
    await actor.greet.remote("you")
    first = actor.actor.shell._inside
    await actor.greet.remote("you")
    assert actor.actor.shell._inside is first is not None


def test_what_an_actor_is_made_from_says_nothing_to_who_reads_it():
    closed, digest = sealed(SECRET, said="a password")
    assert b"password" not in closed
    assert SECRET not in closed + digest
    assert sealed(SECRET, said="a password")[0] != closed


async def test_an_actor_proves_that_it_is_ours_only_after_it_has_heard_its_secret():
    actor = admitted(SECRET)
    assert not await is_ours(actor, within_s=5)
    await actor.greet.remote("you")
    assert await is_ours(actor, within_s=5)
    assert not await is_ours(Admitted(actor.actor, secret_of(KEY, "other")), within_s=5)


async def test_one_that_repeats_what_ours_says_proves_nothing():
    ours = admitted(SECRET)
    await ours.greet.remote("you")
    heard, _ = await ask_who(ours, within_s=5)

    class Parrot(Shell):
        async def who(self, nonce):
            return heard

    assert not await is_ours(Admitted(Handle(Parrot(*sealed(SECRET))), SECRET), within_s=5)


@pytest.mark.parametrize("said", [None, "ours", {"digest": b"", "proof": b""}])
async def test_what_does_not_answer_as_ours_is_a_stranger(said):
    async def who(nonce):
        return said

    handle = type("Other", (), {"who": Method(who)})()
    with pytest.raises(Stranger):
        await is_ours(Admitted(handle, SECRET), within_s=5)
    with pytest.raises(Stranger):
        await is_ours(Admitted(object(), SECRET), within_s=5)


def test_secrets_for_two_purposes_are_different():
    assert len({secret_of(KEY, "gate a"), secret_of(KEY, "gate b"), secret_of(b"j" * 32, "gate a")}) == 3


# -- pickles -----------------------------------------------------------------------------------------------------------

CONFIG = ClusterConfig.model_validate({"name": "test", "ray": {"mode": "join", "address": "auto"}})
SEAT = Seat(pid=1, ip="10.0.0.1", port=2, devices=("0",), line=Address(host="h", port=1, key=b"k"))


@pytest.mark.parametrize(
    "said",
    [
        Tick(),
        BalanceOf(account_id="acme"),
        JobEnd(outcome=LeaseOutcome.SAVED, saves=(Save(1, 2, 3, 4),)),
        Described(seat=SEAT, placement_group_id="00", bundle=0, order=None),
        Who(digest=b"d", proof=b"p"),
        [Tick(), {"a": {1, 2}, "b": frozenset({3})}, JobKind.FUNCTION, Path("/tmp"), Counter("ab"), SecretStr("s")],
        CONFIG,
        SUBMITTED,
    ],
    ids=lambda said: type(said).__name__,
)
def test_what_the_gate_is_told_arrives_as_it_was(said):
    assert loads(pickle.dumps(said)) == said


def test_errors_arrive_as_what_they_are():
    found = loads(pickle.dumps(InsufficientTokens("too little", code="exceeds_credits", free_uhs=3)))
    assert (type(found), found.code, found.facts) == (InsufficientTokens, "exceeds_credits", {"free_uhs": 3})
    assert str(loads(pickle.dumps(ValueError("no")))) == "no"


class Calls:
    """A pickle that calls something when it is read."""

    def __init__(self, function, *given):
        self.given = function, given

    def __reduce__(self):
        return self.given


@dataclass
class Theirs:
    a: int


@pytest.mark.parametrize(
    "said",
    [
        Calls(os.system, "true"),
        Calls(eval, "1"),
        Calls(getattr, Tick, "__init__"),
        Calls(type, "name", (), {}),
        Calls(Path.unlink, Path("/nowhere")),
        Theirs(1),
        lambda: None,
        print,
        Shell,
    ],
    ids=["system", "eval", "getattr", "type", "a method", "their class", "a lambda", "a builtin", "no record of ours"],
)
def test_a_pickle_that_names_anything_else_is_refused_before_it_is_called(said):
    import cloudpickle

    with pytest.raises(Refused):
        loads(cloudpickle.dumps(said))


@pytest.mark.parametrize("name", ["Tick", "Metered", "LeaseFinished"])
def test_a_pickle_cannot_change_a_class_of_ours(name):
    from fabric.gate import events

    before = dict(vars(getattr(events, name)))
    with pytest.raises(Refused, match="may not change"):
        loads(f"cfabric.gate.events\n{name}\n(N}}V__doc__\nVchanged\nstb.".encode())
    assert dict(vars(getattr(events, name))) == before


def test_a_pickle_cannot_change_a_member_of_an_enum():
    pickled = b"cfabric.gate.events\nJobKind\n(Vfunction\ntR}V_value_\nVlease\nsb."
    with pytest.raises(Refused, match="may not change"):
        loads(pickled)
    assert JobKind("function")._value_ == "function"


def test_a_record_of_the_release_before_is_read_by_its_old_path():
    said = pickle.dumps(Who(digest=b"d", proof=b"p"), protocol=3).replace(
        b"fabric.system.guarded", b"fabric.adapters.guarded"
    )
    assert b"fabric.adapters" in said
    assert loads(said) == Who(digest=b"d", proof=b"p")


@pytest.mark.parametrize("path", sorted(set(MOVED.values())))
def test_what_has_moved_is_where_it_is_said_to_be(path):
    assert importlib.util.find_spec(path) is not None
