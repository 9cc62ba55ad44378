"""A replica's adapters: brought to what is wanted, one after the other; one that fails harms none, and no call is cut."""

import asyncio

import msgspec
import pytest

from fabric.charging.rates import Rate
from fabric.errors import InvalidRequest, Unavailable
from serving.replica import lora
from serving.replica.lora import Adapter, Adapters, meter_id, rank_max

RATE = Rate(version=1, input_uhs_per_mtok=1, cached_uhs_per_mtok=1, output_uhs_per_mtok=1, reasoning_uhs_per_mtok=1)


class MeterStandIn:
    def __init__(self, name):
        self.name, self.rate, self.closed = name, None, False

    async def close(self, *, timeout_s=10.0, for_good=False):
        assert for_good
        self.patience_s = timeout_s
        self.closed = True
        return True


class HostStandIn:
    """Loads at once, unless a name is in `unfit`; a dropped one ends when the test says so."""

    def __init__(self):
        self.loaded, self.unfit, self.over, self.opened = {}, set(), asyncio.Event(), []
        self.over.set()
        self.away = set()

    async def load_adapter(self, name, folder, meter):
        if name in self.unfit:
            raise RuntimeError("a shape that doesn't fit")
        self.loaded[name] = (folder, meter)

    def drop_adapter(self, name):
        del self.loaded[name]
        return self.over.wait()

    def fetch(self, adapter):
        if adapter.source == "high":
            raise InvalidRequest("it has rank 32", code="bad_adapter")
        if adapter.source in self.away:
            raise Unavailable("the archive does not answer", code="archive_unavailable")
        return f"{adapter.source}@{adapter.version}"

    async def meter(self, adapter):
        self.opened.append(MeterStandIn(adapter.name))
        return self.opened[-1]

    @staticmethod
    def reprice(meter, rate):
        meter.rate = rate.version


@pytest.fixture
async def host():
    return HostStandIn()


@pytest.fixture
async def adapters(host):
    return Adapters(host, fetch=host.fetch, meter=host.meter, reprice=host.reprice)


def wanted(name, *, source="/law", version="1", price=1):
    return Adapter(name=name, source=source, version=version, rate=msgspec.structs.replace(RATE, version=price))


async def until(happens):
    async with asyncio.timeout(20):
        while not happens():  # noqa: ASYNC110 - what happens is told by no event
            await asyncio.sleep(0.005)


async def bring(adapters, *wished):
    adapters.want(wished)
    await adapters.settled()
    return {each.name: (each.version, each.failure, each.serves) for each in adapters.standing()}


async def test_each_has_a_meter_of_its_own_that_stays_over_versions_and_prices(host, adapters):
    assert await bring(adapters, wanted("law"), wanted("med")) == {"law": ("1", "", True), "med": ("1", "", True)}
    assert len({meter for _, meter in host.loaded.values()}) == 2
    first = host.loaded["law"][1]
    await bring(adapters, wanted("law", version="2"), wanted("med", price=5))
    assert host.loaded["law"] == ("/law@2", first)
    assert (host.loaded["med"][0], host.loaded["med"][1].rate) == ("/law@1", 5), "a price loads nothing anew"
    assert len(host.opened) == 2


async def test_one_that_fails_says_why_and_the_others_are_loaded(host, adapters):
    host.unfit = {"wide"}
    found = await bring(adapters, wanted("high", source="high"), wanted("wide"), wanted("law"))
    assert found["high"] == ("1", "it has rank 32", False)
    assert found["wide"] == ("1", "the engine did not take it: a shape that doesn't fit", False)
    assert list(host.loaded) == ["law"]
    assert [meter.name for meter in host.opened if not meter.closed] == ["law"]
    assert await bring(adapters, wanted("high"), wanted("law")) == {
        "high": ("1", "it has rank 32", False),
        "law": ("1", "", True),
    }
    assert (await bring(adapters, wanted("high", version="2"), wanted("law")))["high"] == ("2", "", True)


async def test_a_new_version_that_fails_leaves_the_old_one_serving(host, adapters):
    await bring(adapters, wanted("law"))
    host.unfit = {"law"}
    found = await bring(adapters, wanted("law", version="2"))
    assert (found["law"][0], found["law"][2], bool(found["law"][1])) == ("2", True, True)
    assert host.loaded["law"][0] == "/law@1"
    assert not host.loaded["law"][1].closed


async def test_another_price_counts_also_where_the_weights_that_came_with_it_fail(host, adapters):
    await bring(adapters, wanted("law"))
    host.unfit = {"law"}
    for price in (2, 3):
        await bring(adapters, wanted("law", version="2", price=price))
        assert host.loaded["law"][1].rate == price


async def test_what_may_pass_is_tried_again_and_what_an_adapter_is_is_not(host, adapters, monkeypatch):
    monkeypatch.setattr(lora, "AGAIN_S", 0.02)
    host.away = {"/law"}
    found = await bring(adapters, wanted("high", source="high"), wanted("law"))
    assert found["law"] == ("1", "the archive does not answer", False)
    fetched = []
    adapters._fetch = lambda adapter: fetched.append(adapter.name) or host.fetch(adapter)
    await until(lambda: len(fetched) >= 2)
    host.away = set()
    await until(lambda: "law" in host.loaded)
    await adapters.settled()
    assert not next(each for each in adapters.standing() if each.name == "law").failure
    assert "high" not in fetched
    assert await adapters.close()


async def test_one_that_goes_while_a_call_is_under_way_keeps_its_meter_until_it_ends(host, adapters):
    await bring(adapters, wanted("law"))
    host.over.clear()
    assert await bring(adapters) == {}
    (old,) = host.opened
    assert (host.loaded, old.closed, adapters.meters) == ({}, False, (old,))
    await bring(adapters, wanted("law"))  # it comes again meanwhile, with another meter
    assert (len(host.opened), old.closed) == (2, False)
    host.over.set()
    await asyncio.sleep(0.01)
    assert (old.closed, adapters.meters) == (True, (host.opened[1],))
    assert old.patience_s == float("inf"), "its last call is settled, however long the ledger is away"


async def test_in_the_end_every_meter_is_settled(host, adapters):
    await bring(adapters, wanted("law"), wanted("med"))
    host.over.clear()
    await bring(adapters, wanted("med"))
    assert await adapters.close()
    assert [meter.closed for meter in host.opened] == [True, True]


def test_the_highest_rank_is_the_engines_own():
    assert rank_max(("--enable-lora", "--max-lora-rank", "64", "--seed", "1")) == 64
    assert rank_max(("--enable-lora",)) == 16


def test_no_two_meters_of_an_adapter_have_one_outbox():
    names = {meter_id("r1", name) for name in ("a/b", "a_b") for _ in range(50)}
    assert len(names) == 100
    assert not any("/" in name for name in names)
