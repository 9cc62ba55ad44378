"""Price files: what ours say, and what a bad one is refused with."""

import copy
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from fabric.charging.burn import BurnCurve
from fabric.charging.catalogue import Mode, Overflow, Restriction
from fabric.charging.plans import price_of
from fabric.config.cluster import shipped
from fabric.config.prices import load_catalogue, load_tariffs
from fabric.errors import InvalidConfig
from fabric.units import UHS_PER_CT

GOOD = {"load_tariffs": "tariffs.yaml", "load_catalogue": "plans.yaml"}


def refused(load, text, tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidConfig) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert caught.value.facts["file"] == str(file)
    return message.replace(f"{file}: ", ""), caught.value.facts["path"]


def changed(load, path, value):
    """Our own file with one thing in it changed, or taken out where `value` is ..."""
    given = copy.deepcopy(yaml.safe_load(shipped(GOOD[load.__name__]).read_text(encoding="utf-8")))
    *parents, last = path
    place = given
    for step in parents:
        place = place[step]
    if value is ...:
        del place[last]
    elif isinstance(place, list) and last == len(place):
        place.append(value)
    else:
        place[last] = value
    return yaml.safe_dump(given, allow_unicode=True, sort_keys=False)


def test_our_tariffs_say_the_reference_weights():
    tariffs = load_tariffs(shipped("tariffs.yaml"))
    assert {
        (name, service): tariffs.weight_ppm(name, service=service)
        for name in tariffs.accelerators
        for service in ("training", "batch", "inference")
    } == {
        ("H100", "training"): 1_000_000,
        ("H100", "batch"): 1_000_000,
        ("H100", "inference"): 1_000_000,
        ("A100", "training"): 315_000,
        ("A100", "batch"): 315_000,
        ("A100", "inference"): 620_000,
        ("910B", "training"): 324_000,
        ("910B", "batch"): 324_000,
        ("910B", "inference"): 324_000,
    }
    assert tariffs.curve == BurnCurve()
    assert (tariffs.version, tariffs.utc_offset_minutes) == (2, 480)


@pytest.mark.parametrize(
    ("name", "rank", "price", "days", "queue", "dedicated"),
    [
        ("starter", 2, 500_000, 30, "standard", False),
        ("professional", 1, 450_000, 90, "priority", False),
        ("enterprise", 0, 400_000, 180, "priority", True),
    ],
)
def test_our_plans_are_the_three_tiers(*, name, rank, price, days, queue, dedicated):
    plan = load_catalogue(shipped("plans.yaml")).plan(name)
    assert (plan.tier_rank, plan.lifetime_days, plan.queue, plan.dedicated) == (rank, days, queue, dedicated)
    assert price_of(plan, amount_uhs=UHS_PER_CT) == price
    assert (plan.mode, plan.credit_limit_uhs) == (Mode.PREPAID, 0)


def test_our_bundle_is_compute_and_5g_edge_minutes():
    bundle = load_catalogue(shipped("plans.yaml")).bundle("edge-inference")
    assert [(part.asset, part.amount) for part in bundle.components] == [
        ("CT", 100 * UHS_PER_CT),
        ("5g-edge-min", 600),
    ]
    assert bundle.components[0].restriction == Restriction(services=("inference",))


def test_our_subscriptions_and_the_postpaid_plan_say_what_they_must():
    catalogue = load_catalogue(shipped("plans.yaml"))
    monthly, weekly = catalogue.subscriptions
    assert (monthly.amount_uhs, monthly.rollover_max_uhs) == (1000 * UHS_PER_CT, 500 * UHS_PER_CT)
    assert (weekly.cycle_days, weekly.overflow) == (7, Overflow.BLOCK)
    assert catalogue.plan("enterprise-postpaid").credit_limit_uhs == 1000 * UHS_PER_CT


PUBLISHED_CNY = {
    "": ("1", "0.1", "2"),
    "deepseek-v3": ("2", "0.5", "8"),
    "deepseek-r1": ("4", "1", "16"),
    "deepseek-v3.1": ("4", "0.8", "12"),
}


def test_the_market_catalogue_sells_what_the_market_does_at_its_prices():
    """A million tokens, in fen, on the plan without a discount; an H100-hour at 18.50 CNY, and a fifth less at most."""
    tariffs, catalogue = load_tariffs(shipped("tariffs-market.yaml")), load_catalogue(shipped("plans-market.yaml"))
    plan = catalogue.plan("starter")
    costs = {
        rate.model: tuple(round(price_of(plan, amount_uhs=uhs), -3) for uhs in rate.numbers[:3])
        for rate in tariffs.rates
    }
    assert costs == {
        model: tuple(int(Decimal(cny) * 10**6) for cny in published) for model, published in PUBLISHED_CNY.items()
    }
    assert [each.price_microcny_per_ct for each in catalogue.plans] == [18_500_000, 16_650_000, 14_800_000]
    reference = load_tariffs(shipped("tariffs.yaml"))
    assert (tariffs.weights, tariffs.curve) == (reference.weights, reference.curve)


def test_the_wheel_carries_our_files_to_where_they_are_looked_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"cluster-configs": "fabric/cluster-configs"}


def test_whole_numbers_and_text_say_the_same(tmp_path):
    file = tmp_path / "tariffs.yaml"
    file.write_text(changed(load_tariffs, ("weights", 1, "weight"), "2"), encoding="utf-8")
    as_text = load_tariffs(file)
    file.write_text(changed(load_tariffs, ("weights", 1, "weight"), 2), encoding="utf-8")
    assert load_tariffs(file) == as_text


def test_an_accelerator_may_be_called_by_any_of_its_names(tmp_path):
    file = tmp_path / "tariffs.yaml"
    file.write_text(changed(load_tariffs, ("weights", 3, "accelerator"), "Ascend-910b"), encoding="utf-8")
    assert load_tariffs(file).accelerators == ("H100", "A100", "910B")


POINT = {"utilisation": 1, "burn": 1}
BAD_TARIFFS = [
    (("weights", 1, "weight"), 0.315, "weights[1].weight", "found 0.315", "in quotes"),
    (("weights", 1, "weight"), "0.3150001", "weights[1].weight", "found '0.3150001'", "at most 6 decimals"),
    (("weights", 1, "weight"), "3e-1", "weights[1].weight", "found '3e-1'", "a ratio in quotes"),
    (("weights", 1, "weight"), "-1", "weights[1].weight", "found '-1'", "a ratio in quotes"),
    (("weights", 1, "weight"), True, "weights[1].weight", "found True", "a ratio in quotes"),
    (("weights", 1, "weight"), 0, "weights[1].weight", "found 0", "more than"),
    (("weights", 1, "weight"), "100.1", "weights[1].weight", "found '100.1'", 'at most "100"'),
    (("weights", 1, "weight"), ..., "weights[1].weight", "found nothing", "must be there"),
    (("weights", 0, "weight"), "0.9", "weights[0].weight", "found 0.9", "1 for H100"),
    (("weights", 0, "service"), "inference", "weights[0]", "H100 only under conditions", "holds always"),
    (("weights", 2, "service"), "gaming", "weights[2].service", "found 'gaming'", "'training', 'batch' or 'inference'"),
    (("weights", 2, "ppm"), 5, "weights[2]", "found ppm", "accelerator, basis, hours, operator, service, tier, weight"),
    (("weights", 2, "hours"), [22, 22], "weights[2].hours", "found [22, 22]", "[22, 6]"),
    (("weights", 2, "hours"), [22, 25], "weights[2].hours", "found [22, 25]", "0 to 24"),
    (("weights", 2, "hours"), "22-6", "weights[2].hours", "found '22-6'", "[22, 6]"),
    (
        ("weights", 4),
        {"accelerator": "NVIDIA A100", "weight": 1},
        "weights[4]",
        "weights[1] says already",
        "one weight",
    ),
    (("weights", 0, "accelerator"), 100, "weights[0].accelerator", "found 100", "the name of an accelerator"),
    (("weights",), [], "weights", "no weights", "at least one"),
    (("weights",), "none", "weights", "found 'none'", "a valid tuple"),
    (("weights",), ..., "weights", "found nothing", "must be there"),
    (("curve", 1, "burn"), "0.9", "curve", "f(0.8) = 0.9", "what a token is"),
    (("curve", 2, "burn"), "0.9", "curve[2]", "f 0.9 after 1", "never falls"),
    (("curve", 2, "burn"), "1.3", "curve[2]", "f 1.3", "at most 1.25"),
    (("curve", 0, "utilisation"), "0.1", "curve[0]", "utilisation 0.1", "utilisation 0"),
    (("curve", 0, "burn"), 0, "curve[0]", "f 0", "occupied"),
    (("curve", 0, "burn"), 0.25, "curve[0].burn", "found 0.25", "in quotes"),
    (("curve", 3), POINT, "curve[3]", "utilisation 1 after 1", "rise"),
    (("curve",), [POINT], "curve", "1 points", "at least two"),
    (("curve",), ..., "curve", "found nothing", "must be there"),
    (("version",), 0, "version", "found 0", "greater than or equal to 1"),
    (("version",), "1", "version", "found '1'", "valid integer"),
    (("clock",), 8, "clock", "found 8", '"+08:00"'),
    (("clock",), "+15:00", "clock", "found '+15:00'", '"+08:00"'),
    (
        ("wieghts",),
        [],
        "the file",
        "found wieghts",
        "clock, curve, effective_from, name, notes, rates, version, weights",
    ),
    (("effective_from",), "2027-01-01T00:00:00", "effective_from", "found '2027-01-01T00:00:00'", "its time zone"),
    (("effective_from",), "2027-01-01", "effective_from", "found '2027-01-01'", "its time zone"),
    (("effective_from",), "1969-01-01T00:00Z", "effective_from", "found '1969", "its time zone"),
    (("effective_from",), 20270101, "effective_from", "found 20270101", "its time zone"),
    (("effective_from",), "2027-01-01 Mars/Olympus", "effective_from", "found '2027-01-01 Mars", "Asia/Shanghai"),
    (("effective_from",), "2026-10-25 02:30 Europe/Berlin", "effective_from", "found '2026-10-25", "show once"),
    (("effective_from",), "2027-03-28 02:30 Europe/Berlin", "effective_from", "found '2027-03-28", "show once"),
]


@pytest.mark.parametrize(("path", "value", "where", "found", "allowed"), BAD_TARIFFS)
def test_a_bad_tariff_is_refused_with_the_place_what_was_found_and_what_is_allowed(
    *, path, value, where, found, allowed, tmp_path
):
    message, _ = refused(load_tariffs, changed(load_tariffs, path, value), tmp_path)
    assert message.startswith(f"{where}: ")
    assert found in message
    assert allowed in message


BAD_CATALOGUES = [
    (("plans", 0, "price"), 0.5, "plans[0].price", "found 0.5", '"0.50"'),
    (("plans", 0, "price"), "0,50", "plans[0].price", "found '0,50'", '"0.50"'),
    (("plans", 0, "price"), "2000000000", "plans[0].price", "found '2000000000'", "CNY"),
    (("plans", 0, "lifetime_days"), 0, "plans[0].lifetime_days", "found 0", "greater than or equal to 1"),
    (("plans", 0, "lifetime_days"), 3651, "plans[0].lifetime_days", "found 3651", "less than or equal to 3650"),
    (("plans", 0, "lifetime_days"), 30.5, "plans[0].lifetime_days", "found 30.5", "integer"),
    (("plans", 0, "lifetime_days"), "30", "plans[0].lifetime_days", "found '30'", "integer"),
    (("plans", 0, "rank"), -1, "plans[0].rank", "found -1", "greater than or equal to 0"),
    (("plans", 0, "queue"), "vip", "plans[0].queue", "found 'vip'", "'standard' or 'priority'"),
    (("plans", 0, "mode"), "barter", "plans[0].mode", "found 'barter'", "'prepaid' or 'postpaid'"),
    (("plans", 0, "dedicated"), "no", "plans[0].dedicated", "found 'no'", "boolean"),
    (("plans", 0, "credit_limit"), 5, "plans[0].credit_limit", "on a prepaid plan", "mode is postpaid"),
    (("plans", 3, "credit_limit"), ..., "plans[3].credit_limit", "no credit limit", "mode is postpaid"),
    (("plans", 3, "credit_limit"), 1e3, "plans[3].credit_limit", "found 1000.0", "whole number or in quotes"),
    (("plans", 3, "credit_limit"), "1" * 19, "plans[3].credit_limit", "found '1111", "tokens as"),
    (("plans", 1, "name"), "starter", "plans[1].name", "'starter' a second time", "once"),
    (("plans", 0, "name"), "two words", "plans[0].name", "found 'two words'", "text that matches"),
    (("plans", 0, "max_running_devices"), 8, "plans[0]", "found max_running_devices", "lifetime_days"),
    (("plans", 0, "rank"), 10, "plans[0].rank", "found 10", "less than"),
    (("plans", 0, "colour"), "red", "plans[0]", "found colour", "lifetime_days"),
    (("plans",), [], "plans", "no plans", "at least one"),
    (("bundles", 0, "price"), "61", "bundles[0].parts", "shares of 60.00", "price, 61.00"),
    (("bundles", 0, "parts"), [], "bundles[0].parts", "no parts", "at least one"),
    (("bundles", 0, "parts", 0, "amount"), 0, "bundles[0].parts[0].amount", "found 0", "more than 0"),
    (("bundles", 0, "parts", 0, "amount"), 1.5, "bundles[0].parts[0].amount", "found 1.5", "whole number or in quotes"),
    (("bundles", 0, "parts", 1, "amount"), "600", "bundles[0].parts[1].amount", "found '600'", "integer"),
    (("bundles", 0, "parts", 1, "only"), {}, "bundles[0].parts[1]", "found only", "asset"),
    (("bundles", 0, "parts", 0, "only"), {"gpus": []}, "bundles[0].parts[0].only", "found gpus", "accelerators"),
    (
        ("bundles", 0, "parts", 0, "only"),
        {"services": ["x"]},
        "bundles[0].parts[0].only.services[0]",
        "'x'",
        "training",
    ),
    (("bundles", 1), {"name": "edge-inference", "price": 0, "parts": []}, "bundles[1].name", "a second time", "once"),
    (("subscriptions", 0, "plan"), "gold", "subscriptions[0].plan", "'gold'", "starter, professional"),
    (("subscriptions", 0, "cycle"), "year", "subscriptions[0].cycle", "found 'year'", "'month' or 'days'"),
    (("subscriptions", 0, "cycle_days"), 3, "subscriptions[0].cycle_days", "found 3", "cycle is days"),
    (("subscriptions", 1, "cycle_days"), ..., "subscriptions[1].cycle_days", "found nothing", "cycle is days"),
    (("subscriptions", 0, "rollover"), {"min": 2, "max": 1}, "subscriptions[0].rollover", "min above max", "at most"),
    (("subscriptions", 0, "lifetime_days"), 60, "subscriptions[0].lifetime_days", "60 beside a rollover", "not both"),
    (("subscriptions", 0, "overflow"), "postpaid", "subscriptions[0].overflow", "on the prepaid plan", "wallet"),
    (
        ("subscriptions", 0, "overflow"),
        "free",
        "subscriptions[0].overflow",
        "'free'",
        "'block', 'wallet' or 'postpaid'",
    ),
    (("subscriptions", 1, "name"), "professional-monthly", "subscriptions[1].name", "a second time", "once"),
    (("subscriptions", 0, "ends"), {"at": "soon"}, "subscriptions[0].ends.at", "found 'soon'", "its time zone"),
    (("subscriptions", 0, "ends"), {"then": "stop"}, "subscriptions[0].ends.at", "found nothing", "must be there"),
    (
        ("subscriptions", 0, "ends"),
        {"at": "2027-01-01T00:00Z", "then": "gold"},
        "subscriptions[0].ends.then",
        "'gold'",
        "stop, or another subscription of this file",
    ),
    (
        ("subscriptions", 0, "ends"),
        {"at": "2027-01-01T00:00Z", "rollover": "lose"},
        "subscriptions[0].ends.rollover",
        "'lose'",
        "'keep' or 'expire'",
    ),
]


@pytest.mark.parametrize(("path", "value", "where", "found", "allowed"), BAD_CATALOGUES)
def test_a_bad_catalogue_is_refused_with_the_place_what_was_found_and_what_is_allowed(
    *, path, value, where, found, allowed, tmp_path
):
    message, _ = refused(load_catalogue, changed(load_catalogue, path, value), tmp_path)
    assert message.startswith(f"{where}: ")
    assert found in message
    assert allowed in message


@pytest.mark.parametrize("load", [load_tariffs, load_catalogue])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: [1", "is not valid YAML"),
        ("version: 1\nversion: 2\n", "'version' twice"),
        ("- 1\n", "found list; allowed: a mapping"),
        ("", "found nothing"),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("version: ${HOME}\n", "the environment doesn't have"),
    ],
)
def test_what_is_not_even_a_file_of_sections_is_refused(load, text, said, tmp_path):
    message, _ = refused(load, text, tmp_path)
    assert said in message


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidConfig, match="No such file"):
        load_tariffs(tmp_path / "missing.yaml")


def test_every_mistake_is_said_at_once(tmp_path):
    text = changed(load_tariffs, ("weights", 1, "weight"), 0.3).replace("burn: '0.25'", "burn: 0.25")
    message, path = refused(load_tariffs, text, tmp_path)
    assert [line.split(":")[0] for line in message.splitlines()] == ["weights[1].weight", "curve[0].burn"]
    assert path == "weights[1].weight"


@pytest.mark.parametrize(
    ("hours", "clash"), [(([8, 20], [20, 8]), False), (([8, 20], [19, 21]), True), (([22, 6], [5, 7]), True)]
)
def test_two_weights_that_differ_in_their_hours_alone_may_not_hold_at_once(hours, clash, tmp_path):
    given = yaml.safe_load(shipped("tariffs.yaml").read_text(encoding="utf-8"))
    given["weights"] += [{"accelerator": "A100", "weight": 1, "hours": list(pair)} for pair in hours]
    if clash:
        message, path = refused(load_tariffs, yaml.safe_dump(given), tmp_path)
        assert path == "weights[5]"
        assert "weights[4] says already" in message
    else:
        file = tmp_path / "tariffs.yaml"
        file.write_text(yaml.safe_dump(given), encoding="utf-8")
        assert len(load_tariffs(file).weights) == 6


FAMILIES = """
families:
  - {name: qwen, models: [qwen3], weights: {input: 1, cached: "0.1", output: 4}}
bundles:
  - name: small
    price: "9.9"
    parts: [{asset: "llm:qwen", amount: 1000, share: "9.9", lifetime_days: 30}]
subscriptions:
  - {name: monthly, plan: starter, price: "9.9", asset: "llm:qwen", amount: 10, rollover: {max: 3}}
"""
PLAN = 'version: 1\nplans:\n  - {name: starter, rank: 2, price: "0.50", lifetime_days: 30}\n'


def test_packages_of_llm_tokens_are_booked_with_their_weights_and_what_they_are_good_for(tmp_path):
    file = tmp_path / "plans.yaml"
    file.write_text(PLAN + FAMILIES)
    found = load_catalogue(file)
    (part,), (offer,) = found.bundles[0].components, found.subscriptions
    assert (part.asset, part.amount) == ("llm:qwen@1000/100/4000/4000", 1_000_000)
    assert (offer.asset, offer.amount_uhs, offer.rollover_max_uhs) == (part.asset, 10_000, 3_000)
    assert part.restriction == offer.restriction
    assert (part.restriction.services, part.restriction.models) == (("inference",), ("qwen3",))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: qwen,", "name: other,", "a family that is there: llm:other"),
        ('"0.1"', "0.1", "a weight in quotes"),
        ('input: 1, cached: "0.1", output: 4', "input: 0, output: 0", "a weight above 0"),
        ("amount: 1000,", "amount: 0,", "more than 0 LLM tokens"),
        ("rollover: {max: 3}", "only: {services: [training]}", "none: the family says what it is good for"),
    ],
)
def test_a_package_that_could_not_be_counted_is_refused_with_its_place(tmp_path, old, new, says):
    assert old in FAMILIES
    file = tmp_path / "plans.yaml"
    file.write_text(PLAN + FAMILIES.replace(old, new))
    with pytest.raises(InvalidConfig, match=says):
        load_catalogue(file)
