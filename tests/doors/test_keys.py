"""API keys from their making to their end."""

import pytest

from fabric.api.keys import REMEMBER_S, KeyRing
from fabric.api.limits import RateLimit
from fabric.clock import VirtualClock
from fabric.errors import (
    FabricError,
    InsufficientTokens,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RateLimited,
    Unauthenticated,
)
from fabric.gate.account_events import RevokeKey
from fabric.gate.organisation_views import KeyView
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from fabric.wire import format_key, hash_secret, make_secret, parse_key


def create(client, *, request_id="make", **more):
    secret = make_secret()
    request = pb.CreateKeyRequest(request_id=request_id, secret_sha256=hash_secret(secret), **more)
    return format_key(client.call(request, pb.CreateKeyReply).key_id, secret)


def test_a_key_is_made_used_and_revoked(house):
    made = create(house.client(), name="ci")
    client = house.client(made)
    assert client.call(pb.BalanceRequest(), pb.BalanceReply).account_id == "acme"
    key_id = parse_key(made).key_id
    assert key_id in {key.key_id for key in house.client().call(pb.ListKeysRequest(), pb.ListKeysReply).keys}
    house.client().call(pb.RevokeKeyRequest(request_id="end", key_id=key_id), pb.Accepted)
    with pytest.raises(Unauthenticated) as refusal:
        client.call(pb.BalanceRequest(), pb.BalanceReply)
    assert refusal.value.code == "key_revoked"


def test_the_secret_reaches_neither_the_door_nor_the_gate_when_a_key_is_made(house):
    made = create(house.client())
    [[event]] = house.port.batches
    assert parse_key(made).secret not in str(event)


def test_an_expired_key_says_so_only_to_its_owner(house):
    key = house.key("acme", "brief", expires_at_us=house.port.clock.now_us() + 60_000_000)
    client = house.client(key)
    client.call(pb.BalanceRequest(), pb.BalanceReply)
    house.port.clock.advance(seconds=61)
    with pytest.raises(Unauthenticated) as refusal:
        client.call(pb.BalanceRequest(), pb.BalanceReply)
    assert refusal.value.code == "key_expired"
    with pytest.raises(Unauthenticated) as refusal:
        house.client("fab_k-brief_" + "0" * 64).call(pb.BalanceRequest(), pb.BalanceReply)
    assert refusal.value.code == "key_unknown"


def test_a_keys_own_limit_holds_whatever_the_account_has(house):
    key = house.key("acme", "small", limit_uhs=UHS_PER_CT)
    with pytest.raises(InsufficientTokens) as refusal:
        house.fabric(key).submit(lambda: None, tokens=2)
    assert refusal.value.code == "key_limit_reached"


def test_a_limit_that_resets_is_set_seen_reached_and_taken_away(house):
    fabric = house.fabric()
    made = create(house.client(), limits=[pb.LimitTerms(period="day", amount=UHS_PER_CT, zone="Asia/Shanghai")])
    key_id = parse_key(made).key_id
    fabric.set_limit(7, per="month", key_id=key_id, starts_on=31)
    fabric.set_limit("0.5", per="week", unit="cny", warning=True)
    mine = house.fabric(made)
    assert [(each.whose, each.period, each.unit, each.hard) for each in mine.limits()] == [
        ("account", "week", "cny", False), ("key", "day", "ct", True), ("key", "month", "ct", True),
    ]  # fmt: skip
    with pytest.raises(InsufficientTokens) as refusal:
        mine.submit(lambda: None, tokens=2)
    assert refusal.value.code == "spending_limit_reached"
    assert refusal.value.facts["resets_at_us"] == mine.limits()[1].resets_at_us
    assert "Asia/Shanghai" in refusal.value.message
    with pytest.raises(PermissionDenied):
        mine.set_limit(9, per="day", key_id=key_id)
    with pytest.raises(PermissionDenied):
        mine.limits("k-acme")
    assert (
        house.client(house.key("globex", "r")).call(pb.ListLimitsRequest(key_id=key_id), pb.ListLimitsReply).limits
        == []
    )
    fabric.remove_limit(per="day", key_id=key_id)
    with pytest.raises(NotFound):
        fabric.remove_limit(per="day", key_id=key_id)
    mine.submit(lambda: None, tokens=2)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"per": "fortnight"}, "invalid_limit"),
        ({"per": "day", "zone": "Mars/Olympus"}, "unknown_zone"),
        ({"per": "day", "zone": "../../etc/passwd"}, "unknown_zone"),
        ({"per": "day", "starts_on": 2}, "invalid_start"),
        ({"per": "day", "unit": "llm", "amount": "1.5"}, "invalid_amount"),
        ({"per": "day", "key_id": "k-nowhere"}, "not_found"),
        ({"per": "day", "member": "nobody"}, "not_found"),
        ({"per": "day", "member": "mo", "project": "dev"}, "invalid_limit"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused(house, said, code):
    with pytest.raises(FabricError) as refusal:
        house.fabric().set_limit(said.pop("amount", 5), **said)
    assert refusal.value.code == code


def test_a_key_with_a_limit_cannot_make_one_without(house):
    client = house.client(house.key("acme", "small", limit_uhs=UHS_PER_CT))
    for request, reply in (
        (pb.CreateKeyRequest(request_id="r", secret_sha256="0" * 64), pb.CreateKeyReply),
        (pb.AuthorizeRequest(request_id="r", hold_id="h", amount_uhs=1, ttl_us=1), pb.Accepted),
        (pb.RevokeKeyRequest(request_id="r", key_id="k-acme"), pb.Accepted),
    ):
        with pytest.raises(PermissionDenied) as refusal:
            client.call(request, reply)
        assert refusal.value.code == "restricted_key"


def test_a_customer_can_neither_make_nor_revoke_operator_keys(house):
    with pytest.raises(PermissionDenied):
        create(house.client(), operator=True)
    with pytest.raises(NotFound):
        house.client().call(pb.RevokeKeyRequest(request_id="r", key_id="k-root"), pb.Accepted)
    operator = create(house.client(house.root), operator=True)
    assert house.client(operator).call(pb.ListNodesRequest(), pb.ListNodesReply).nodes


def test_an_operator_makes_keys_for_a_customer_that_are_the_customers(house):
    made = create(house.client(house.root, account="globex"))
    assert house.client(made).call(pb.BalanceRequest(), pb.BalanceReply).account_id == "globex"
    with pytest.raises(PermissionDenied):
        house.client(made).call(pb.ListNodesRequest(), pb.ListNodesReply)


@pytest.mark.parametrize("sha256", ["", "abc", "Z" * 64, "A" * 64])
def test_a_hash_that_is_none_is_refused(house, sha256):
    with pytest.raises(InvalidRequest):
        house.client().call(pb.CreateKeyRequest(request_id="r", secret_sha256=sha256), pb.CreateKeyReply)


class OneKey:
    def __init__(self, **more):
        self.asked = 0
        self.secret = make_secret()
        self.view = KeyView(
            key_id="k1", account_id="acme", secret_sha256=hash_secret(self.secret), name="", operator=False,
            limit_uhs=None, spent_uhs=0, expires_at_us=None, revoked=False,
        )  # fmt: skip

    async def ask(self, question):
        self.asked += 1
        return self.view if question.key_id == "k1" else None


async def test_a_key_is_looked_up_once_in_a_while_and_at_once_when_forgotten():
    port, now = OneKey(), [0.0]
    ring = KeyRing(port, clock=VirtualClock(), monotonic=lambda: now[0])
    header = f"Bearer {format_key('k1', port.secret)}"
    for _ in range(5):
        assert (await ring.caller(header)).account == "acme"
    assert port.asked == 1
    now[0] = REMEMBER_S
    await ring.caller(header)
    assert port.asked == 2
    ring.forget("k1")
    await ring.caller(header)
    assert port.asked == 3


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "key_missing"),
        ("Bearer ", "key_missing"),
        ("Basic abc", "key_missing"),
        ("Bearer abc", "key_unknown"),
        ("Bearer fab_k1_short", "key_unknown"),
        ("Bearer fab_k1_" + "0" * 64, "key_unknown"),
        ("Bearer fab_k2_" + "0" * 64, "key_unknown"),
    ],
)
async def test_what_is_no_key_is_refused_without_saying_why_it_is_none(header, code):
    with pytest.raises(Unauthenticated) as refusal:
        await KeyRing(OneKey(), clock=VirtualClock()).caller(header)
    assert refusal.value.code == code
    assert "0000" not in str(refusal.value)


def test_a_bucket_fills_again_with_time():
    now = [0.0]
    rate = RateLimit(per_s=10, monotonic=lambda: now[0])
    for _ in range(20):
        rate.spend("k")
    with pytest.raises(RateLimited):
        rate.spend("k")
    rate.spend("other")
    now[0] = 0.5
    for _ in range(5):
        rate.spend("k")
    with pytest.raises(RateLimited):
        rate.spend("k")


def test_a_key_never_shows_its_secret():
    key = parse_key(format_key("k1", make_secret()))
    assert key.secret not in repr(key)


def test_a_key_that_was_revoked_a_moment_ago_makes_no_successor(house):
    client = house.client(house.key("acme", "stolen"))
    client.call(pb.BalanceRequest(), pb.BalanceReply)
    house.port.seed(RevokeKey(key_id="k-stolen"))  # as through another door: this one remembers the key for a while
    with pytest.raises(Unauthenticated) as refusal:
        create(client)
    assert refusal.value.code == "key_revoked"
    assert create(house.client(), request_id="again")


def test_a_key_may_have_calls_and_llm_tokens_a_minute(house):
    made = parse_key(create(house.client(), requests_per_min=60, tokens_per_min=90_000)).key_id
    (key,) = [each for each in house.client().call(pb.ListKeysRequest(), pb.ListKeysReply).keys if each.key_id == made]
    assert (key.requests_per_min, key.tokens_per_min) == (60, 90_000)
    with pytest.raises(InvalidRequest):
        create(house.client(), request_id="negative", requests_per_min=-1)
    with pytest.raises(InvalidRequest) as refusal:
        create(house.client(), request_id="huge", tokens_per_min=10**12)
    assert refusal.value.code == "invalid_rate"
