"""Packages of LLM tokens at the door: bought, held for a replica, used by a call, and shown."""

import msgspec

from fabric.cli.llm_packages import paid_for, print_packages, totals_of
from fabric.client.client import new_request_id
from fabric.gate.events import Configure
from fabric.sdk.answers import balance_of
from fabric.wire import fabric_pb2 as pb
from serving.calls import Package, Wanted
from serving.gateway.accounts import credits_of
from serving.gateway.fabric_directory import FabricDirectory
from tests.doors.conftest import CATALOGUE, TARIFFS
from tests.doors.test_serving_calls import call, ledger, offer, slice_of
from tests.gate.shop import QWEN, T, bundle


async def test_a_package_is_bought_held_for_a_replica_used_by_a_call_and_shown(house, capsys):
    bundles = (*CATALOGUE.bundles, bundle("llm", QWEN, 1_000, models=("tiny",)))
    house.port.seed(Configure(tariffs=TARIFFS, catalogue=msgspec.structs.replace(CATALOGUE, bundles=bundles)))
    offer(house)
    acme, door = house.client(house.acme), ledger(house)
    acme.call(pb.BuyBundleRequest(request_id=new_request_id(), bundle="llm"), pb.Accepted)
    (key,) = [each for each in acme.call(pb.ListKeysRequest(), pb.ListKeysReply).keys if not each.operator][:1]
    facts = await FabricDirectory(door, name="g", endpoint="https://localhost").key(key.key_id)
    assert facts.models["tiny"].packaged
    assert credits_of(facts)["fabric"]["packages"][0]["free_llm_tokens"] == "1000"

    wanted = Wanted(prompt_tokens=100, completion_tokens=200, least_prompt_tokens=100, least_completion_tokens=1)
    granted = await door.authorize(**slice_of(84_000), wanted=wanted)
    assert granted.packages == (Package(QWEN, held=900 * T, free=100 * T),)
    assert (granted.held_uhs, granted.final) == (0, False)
    used = call(cached=50, completion=10, packages=((QWEN, 900 * T),))
    await door.settle(hold_id="slice-1", account_id="acme", seq=1, calls=[used])
    await door.close()
    found = acme.call(pb.BalanceRequest(), pb.BalanceReply)
    (package,) = found.packages
    takes = 50 * T + 50 * 100 + 10 * 4 * T
    assert (package.family, package.free, package.held, package.used) == ("llm:qwen", 1_000 * T - takes, 0, takes)
    (record,) = acme.collect(pb.UsageRequest(), pb.Cdr)
    assert (record.charged_uhs, record.spared_uhs) == (0, 50 * 40 + 50 * 4 + 10 * 400)
    assert [(use.asset, use.units, list(use.tokens)) for use in record.packages] == [(QWEN, takes, [100, 50, 10, 0])]
    assert paid_for(record) == "95 llm:qwen"
    assert totals_of([record]).startswith("95 llm:qwen for ")
    print_packages([package])
    assert "905" in capsys.readouterr().out
    assert "905 LLM tokens left, 0 held, 95 used" in str(balance_of(found))
