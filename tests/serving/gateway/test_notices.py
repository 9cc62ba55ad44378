"""Notices of providers of payments come in without a key, are handed on unread, and answered when they are booked."""

from fabric.errors import NotFound, PermissionDenied, Unavailable
from serving.gateway.notices import BYTES_MAX, PER_S


def takes(house, answer):
    """What the fabric says to notices; those that it was handed."""
    handed = []

    async def notice(provider, headers, body):
        handed.append((provider, headers, body))
        if isinstance(answer, Exception):
            raise answer
        return answer

    house.directory.notice = notice
    return handed


async def test_a_notice_is_handed_on_as_it_is_and_answered_as_its_provider_wants(house):
    handed = takes(house, b"success")
    body = b"out_trade_no=p1&sign=%2B%2F=="
    sent = {"content-type": "application/x-www-form-urlencoded", "stripe-signature": "t=1,v1=00", "cookie": "x=1"}
    async with house.http.post(house.url + "/payments/alipay", data=body, headers=sent) as answer:
        assert (answer.status, await answer.read()) == (200, b"success")
    assert handed == [("alipay", {"stripe-signature": "t=1,v1=00"}, body)]


async def test_what_is_not_booked_is_never_thanked_for(house):
    for error, status in (
        (PermissionDenied("no", code="forged_notice"), 403),
        (NotFound("no", provider="x"), 404),
        (Unavailable("away"), 503),
    ):
        takes(house, error)
        async with house.http.post(house.url + "/payments/stripe", data=b"{}") as answer:
            assert answer.status == status


async def test_a_notice_is_bounded_in_size_and_in_number(house):
    handed = takes(house, b"{}")
    async with house.http.post(house.url + "/payments/stripe", data=b"x" * (BYTES_MAX + 1)) as answer:
        assert answer.status == 413
    async with house.http.get(house.url + "/payments/stripe") as answer:
        assert answer.status == 405
    assert handed == []
    statuses = []
    for _ in range(3 * PER_S):
        async with house.http.post(house.url + "/payments/stripe", data=b"{}") as answer:
            statuses.append(answer.status)
    assert 429 in statuses
    assert len(handed) == statuses.count(200)
