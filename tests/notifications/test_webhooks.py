"""Webhooks: signed as the standard has it, at least once through kills of either side, and nowhere that they may not lead."""

import asyncio
import random
from collections import Counter
from contextlib import suppress
from itertools import pairwise

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from fabric.errors import Conflict, InvalidRequest
from fabric.journal.followers import Position
from fabric.notifications.addresses import is_allowed, networks
from fabric.notifications.deliverer import GIVEN_UP_US
from fabric.notifications.endpoints import ROTATES_US, Secret, check_url
from fabric.notifications.rows import MADE
from fabric.notifications.scripts import SqliteScripts
from fabric.notifications.store import NoticeStore
from fabric.notifications.webhooks import ANSWER_BYTES, Sender
from tests.journal.test_followers import Crash
from tests.notifications.house import CrashingScripts
from tests.notifications.receivers import (
    LOCAL,
    OLDER,
    SECRET,
    Receiver,
    S,
    deliverer,
    endpoint,
    listening,
    notice,
    tell,
)

# -- what is sent -----------------------------------------------------------------------------------------------------


async def test_what_arrives_verifies_with_the_official_library_and_an_altered_one_does_not(store, clock, receiver):
    await store.add(endpoint(receiver), from_here=Position(0))
    await tell(store, notice(1), seq=1, now_us=clock.us)
    await deliverer(store, clock).until_idle()
    ((headers, body),) = receiver.got
    found = Webhook(SECRET).verify(body, headers)
    assert (found["type"], found["data"]["number"], headers["webhook-id"]) == ("job.ended", 1, notice(1).notice_id)
    for forged in (body + b" ", body.replace(b"1", b"2")):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(forged, headers)


async def test_while_a_secret_is_rotated_both_verify_and_after_a_day_the_new_one_alone(store, clock, receiver):
    await store.add(endpoint(receiver, secrets=(Secret(text=OLDER),)), from_here=Position(0))
    await store.change("ada", "e", lambda each: each.rotated(SECRET, now_us=clock.us))
    for number, passed in ((1, 0), (2, ROTATES_US)):
        clock.us += passed
        await tell(store, notice(number), seq=number, now_us=clock.us)
        await deliverer(store, clock).until_idle()
    (both, first), (new, _) = receiver.got
    signatures = [len(headers["webhook-signature"].split()) for headers in (both, new)]
    assert signatures == [2, 1]
    Webhook(SECRET).verify(first, both)
    Webhook(OLDER).verify(first, both)


def test_a_secret_is_in_no_repr():
    assert SECRET not in repr(endpoint(Receiver()))


# -- at least once ----------------------------------------------------------------------------------------------------


async def test_every_notice_arrives_at_least_once_through_kills_of_sender_and_receiver(tmp_path, clock, receiver):
    """The sender dies before or after anything is kept; the receiver after it has taken something, or says no."""

    draw = random.Random(7)
    path = tmp_path / "n.notices"
    store = NoticeStore(SqliteScripts(path, MADE))
    await store.add(endpoint(receiver), from_here=Position(0))
    told = [notice(number, subject=f"job/{number % 5}") for number in range(30)]
    for number, each in enumerate(told, 1):
        await tell(store, each, seq=number, now_us=clock.us)
    await store.close()
    for _ in range(1_000):
        scripts = CrashingScripts(path, MADE)
        scripts.crash = draw.choice(("", "", "before", "after"))
        receiver.answers = [draw.choice((204, 204, 200, 500, "dies", 429)) for _ in range(4)]
        sending = deliverer(NoticeStore(scripts), clock)
        with suppress(Crash):
            await sending.until_idle()
        await asyncio.gather(*sending._busy.values(), return_exceptions=True)
        scripts.crash = ""
        left = await NoticeStore(scripts).next_due_us()
        await scripts.close()
        if left is None:
            break
        clock.us += 200 * S
    assert set(receiver.ids) == {each.notice_id for each in told}
    assert max(Counter(receiver.ids).values()) > 1, "some were sent again, under their own id"
    for job in range(5):
        first = [receiver.ids.index(each.notice_id) for each in told if each.subject == f"job/{job}"]
        assert first == sorted(first), "of one subject in order"


async def test_what_fails_is_tried_with_longer_and_longer_pauses_for_three_days_and_then_given_up(
    store, clock, receiver
):
    await store.add(endpoint(receiver), from_here=Position(0))
    began = clock.us
    await tell(store, notice(1), seq=1, now_us=clock.us)
    times, sending = [], deliverer(store, clock)
    while (due_us := await store.next_due_us()) is not None:
        clock.us = max(clock.us, due_us)
        receiver.answers = [503]
        await sending.until_idle()
        times.append(clock.us - began)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == sorted(pauses)
    assert times[-1] <= GIVEN_UP_US < times[-1] + 8 * 3_600 * S
    ((delivery, _),) = await store.deliveries("ada", "e", limit=9)
    assert (delivery.state, delivery.tries) == ("given_up", len(receiver.got))
    assert (await store.endpoints())[0].failing_since_us == began
    clock.us += 600 * S
    await store.redeliver("ada", "e", notice(1).notice_id, now_us=clock.us)
    await sending.until_idle()
    assert (await store.endpoints())[0].failing_since_us == 0


async def test_an_endpoint_that_is_gone_is_told_nothing_any_more(store, clock, receiver):
    await store.add(endpoint(receiver), from_here=Position(0))
    await tell(store, notice(1), notice(2), seq=1)
    receiver.answers = [410]
    await deliverer(store, clock).until_idle()
    await tell(store, notice(3), seq=2)
    await deliverer(store, clock).until_idle()
    assert len(receiver.got) == 1
    assert (await store.endpoints())[0].ended == "it answered 410 Gone"
    with pytest.raises(Conflict):
        await store.redeliver("ada", "e", notice(1).notice_id, now_us=0)


async def test_a_redirect_is_not_followed_and_is_no_arrival(store, clock, receiver):
    await store.add(endpoint(receiver), from_here=Position(0))
    await tell(store, notice(1), seq=1)
    receiver.answers = [web.Response(status=307, headers={"location": f"http://127.0.0.1:{receiver.port}/else"})]
    await deliverer(store, clock).until_idle()
    assert len(receiver.got) == 1
    ((delivery, _),) = await store.deliveries("ada", "e", limit=9)
    assert (delivery.state, delivery.answer) == ("due", "HTTP 307")


async def test_one_that_answers_without_end_or_not_at_all_costs_a_bounded_time_and_no_memory(clock, receiver):
    async def endless(request):
        response = web.StreamResponse(headers={"content-encoding": "gzip"})
        await response.prepare(request)
        while True:
            await response.write(b"\0" * ANSWER_BYTES)

    async def silent(request):
        await asyncio.sleep(3_600)

    receiver.take = endless
    assert (await Sender(LOCAL).send(endpoint(receiver), notice(1), now_us=clock.us)).said == "HTTP 200"
    receiver.take = silent
    answer = await Sender(LOCAL, answers_s=0.2).send(endpoint(receiver), notice(1), now_us=clock.us)
    assert (answer.arrived, answer.said) == (False, "no answer within 0.2 s")


async def test_of_an_endpoint_that_is_away_the_others_hear_nothing(store, clock, receiver):
    async with listening() as away:
        await store.add(endpoint(away, "a"), from_here=Position(0))
        await store.add(endpoint(receiver, "b"), from_here=Position(0))
        told = [notice(number, subject=f"job/{number}") for number in range(20)]
        await tell(store, *told, seq=1)
        away.answers = [500] * 20
        await deliverer(store, clock).until_idle()
        assert (len(receiver.got), len(away.got)) == (20, 1), "the other rests after the first"


# -- where they may lead ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "no address",
    ],
)  # fmt: skip
def test_a_private_address_is_not_allowed_however_it_is_written(address):
    assert not is_allowed(address, ())


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822"])
def test_a_public_address_is_allowed_and_so_is_a_private_one_that_the_operator_named(address):
    assert is_allowed(address, ())
    assert is_allowed("10.1.2.3", networks(["10.0.0.0/8"]))
    assert not is_allowed("10.1.2.3", networks(["10.0.0.0/16", "fc00::/7"]))


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0",
        "rebinds.example",
    ],
)
async def test_a_name_that_leads_to_a_private_address_is_not_connected_to(clock, receiver, host):
    async def lookup(name, port):
        return ["127.0.0.1"]

    sender = Sender(lookup=lookup if host == "rebinds.example" else None)
    for scheme in ("https", "http"):
        where = endpoint(receiver, url=f"{scheme}://{host}:{receiver.port}/")
        answer = await sender.send(where, notice(1), now_us=clock.us)
        assert not answer.arrived
        assert "address" in answer.said
    assert receiver.got == []


async def test_the_address_that_was_looked_at_is_the_one_that_is_connected_to(clock, receiver):
    """A name that gives another answer a moment later leads nowhere else; of several addresses only those allowed are tried."""
    asked = []

    async def lookup(name, port):
        asked.append((name, port))
        return ["10.9.9.9", "127.0.0.1"] if len(asked) == 1 else ["10.9.9.9"]

    where = endpoint(receiver, url=f"http://hook.example:{receiver.port}/")
    assert (await Sender(LOCAL, lookup=lookup).send(where, notice(1), now_us=clock.us)).arrived
    assert (len(asked), receiver.got[0][0]["Host"]) == (1, f"hook.example:{receiver.port}")


async def test_without_tls_nothing_goes_to_a_public_address(clock):
    where = endpoint(Receiver(), url="http://93.184.216.34/")
    answer = await Sender(LOCAL).send(where, notice(1), now_us=clock.us)
    assert "without TLS" in answer.said


@pytest.mark.parametrize(
    "url",
    ["", "ftp://a/", "https://", "https://u:p@a/", "https://a/#x", "https://a/\n", "https://ä/", "https://a b/", "https://a:99999/",
     "https://a/" + "x" * 2_000, "file:///etc/passwd", "https://[::1"],
)  # fmt: skip
def test_what_is_no_address_of_a_webhook_is_refused(url):
    with pytest.raises(InvalidRequest) as refused:
        check_url(url)
    assert refused.value.code == "invalid_url"
