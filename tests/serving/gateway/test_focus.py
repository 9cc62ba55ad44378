"""A customer's costs over HTTP: asked for with its own key, sent on as they come, and never ended as if they were whole."""

import aiohttp
import pytest

from fabric.errors import PermissionDenied, Unavailable

PATH = "/v1/focus/cost-and-usage"


def tells(house, *pieces):
    """What the fabric answers, piece by piece; an error among them ends it. What it was asked."""
    asked = []

    async def focus(key, **wanted):
        asked.append((key, wanted))
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    house.directory.focus = focus
    return asked


@pytest.mark.parametrize(("form", "kind"), [("csv", "text/csv"), ("jsonl", "application/x-ndjson")])
async def test_costs_come_as_the_fabric_tells_them_to_whoever_shows_the_key(house, form, kind):
    asked = tells(house, b"BilledCost\r\n", b"1\r\n" * 50_000, b"")
    async with house.get(f"{PATH}?format={form}&since=2026-11-01&until=2026-12-01T08:00:00%2B08:00") as answer:
        assert (answer.status, answer.content_type) == (200, kind)
        assert await answer.read() == b"BilledCost\r\n" + b"1\r\n" * 50_000
    ((key, wanted),) = asked
    assert key == house.key
    assert wanted == {
        "dataset": "CostAndUsage",
        "form": form,
        "from_us": 1_793_491_200_000_000,
        "until_us": 1_796_083_200_000_000,
    }


async def test_nothing_at_all_is_an_empty_file(house):
    asked = tells(house)
    async with house.get("/v1/focus/contract-commitment") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
    assert asked[0][1] == {"dataset": "ContractCommitment", "form": "csv", "from_us": 0, "until_us": None}


async def test_a_no_of_the_fabric_is_a_no_and_one_in_the_middle_cuts_the_connection(house):
    tells(house, PermissionDenied("this key is not for books", code="restricted_key"))
    async with house.get(PATH) as answer:
        assert answer.status == 403
        assert (await answer.json())["error"]["code"] == "restricted_key"
    tells(house, b"BilledCost\r\n", Unavailable("the gate was restarted"))
    with pytest.raises(aiohttp.ClientError):
        async with house.get(PATH) as answer:
            await answer.read()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/focus/invoices", 404),
        (f"{PATH}?format=xlsx", 400),
        (f"{PATH}?since=yesterday", 400),
        (f"{PATH}?month=11", 400),
        (f"{PATH}?since", 400),
        (f"{PATH}?since=2026-11-01&until=2026-12-01&format=csv&format=csv", 400),
    ],
)
async def test_what_is_not_meant_is_refused_and_the_fabric_not_asked(house, path, status):
    asked = tells(house, b"x")
    async with house.get(path) as answer:
        assert answer.status == status
    assert asked == []


async def test_nobody_without_a_key_and_no_machines_key_has_costs(house):
    asked = tells(house, b"x")
    async with house.http.get(house.url + PATH) as answer:
        assert answer.status == 401
    key = house.directory.add_key("k9", "ann", role="gateway")
    async with house.get(PATH, key=key) as answer:
        assert answer.status == 403
    assert asked == []
