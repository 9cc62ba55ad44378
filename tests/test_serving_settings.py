"""What `serving:` may say in a cluster file, what `rates:` may in the tariffs, and what `fabric up` makes of them."""

import pytest

from fabric.charging.rates import Rate
from fabric.config.cluster import load_cluster, shipped
from fabric.config.prices import load_tariffs
from fabric.config.serving import ServingConfig
from fabric.daemon import models
from fabric.errors import InvalidConfig, NotFound
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import Configure, TopUp
from fabric.gate.questions import BalanceOf, ModelsOf
from fabric.gate.serving_events import ModelSpec
from fabric.units import UHS_PER_CT
from tests.doors.conftest import CATALOGUE, TARIFFS, StandInPort

JOIN = "name: lab\nray: {mode: join}\nserving:\n"


@pytest.fixture
def read(tmp_path):
    def load(serving):
        file = tmp_path / "cluster.yaml"
        lines = "\n".join(f"  {line}" for line in serving.splitlines())
        file.write_text(JOIN + lines)
        return load_cluster(file, environ={"FABRIC_STATE_DIR": "/state"}).serving

    return load


OFFER = "models:\n  - {name: tiny, source: /m, accelerators: [H100], %s}"
MODEL = "models:\n  - {name: tiny, source: /m, accelerators: [h100, NPU], %s}"


def test_a_model_is_read_with_its_rates_in_h100_seconds_a_million(read):
    more = "replicas: {min: 1, max: 3}, ttft_objective_ms: 500, engine: {max-num-seqs: 8, enforce-eager: true},"
    (model,) = read(MODEL % f'{more} rates: [{{input: 40, output: "0.000001"}}]').models
    assert model.spec() == ModelSpec(
        name="tiny", source="/m", accelerators=("H100", "910B"), replicas_min=1, replicas_max=3, ttft_objective_us=500_000,
        engine_args=(("enforce-eager", "true"), ("max-num-seqs", "8")),
    )  # fmt: skip
    assert model.built_rates() == (
        Rate(
            model="tiny", input_uhs_per_mtok=40_000_000, cached_uhs_per_mtok=40_000_000, output_uhs_per_mtok=1,
            reasoning_uhs_per_mtok=1,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("said", ["engine: sglang", "engine: {name: sglang}"])
def test_an_engine_is_chosen_by_name_beside_its_options(read, said):
    assert read(MODEL % said).models[0].spec().engine == "sglang"
    (model,) = read(MODEL % "engine: {name: sglang, max-num-seqs: 8}").models
    assert (model.spec().engine, model.spec().engine_args) == ("sglang", (("max-num-seqs", "8"),))
    (model,) = read("models: [{name: a, source: 'http://h:1', engine: http}]").models
    assert (model.spec().engine, model.spec().source) == ("http", "http://h:1")


@pytest.mark.parametrize(
    ("text", "where", "found", "allowed"),
    [
        ("listen: here", "serving.listen", "'here'", "127.0.0.1:7433"),
        ("gateways: 0", "serving.gateways", "0", "greater than or equal to 1"),
        ("gateway: 2", "serving", "gateway", "gateways"),
        ("listen: 0.0.0.0:7480\ntls: off", "serving.tls", "False", "plain"),
        ("listen: 0.0.0.0:7480\ntls: plain", "serving", "listen", "only where listen is on loopback"),
        ("ingress: nginx", "serving.ingress", "'nginx'", "haproxy"),
        ("limits: {connections_per_address: 0}", "serving.limits.connections_per_address", "0", "greater than 0"),
        ("endpoint: somewhere", "serving.endpoint", "'somewhere'", "https?"),
        ("funds: 0.5", "serving.funds", "0.5", "12.5"),
        (MODEL % "replicas: {min: 3, max: 1}", "serving.models[0].replicas", "3", "min of at most max"),
        (MODEL % "rates: [{input: 0.5, output: 1}]", "serving.models[0].rates[0].input", "0.5", "in quotes"),
        (MODEL % "rates: [{input: -1, output: 1}]", "serving.models[0].rates[0].input", "-1", "H100-seconds"),
        (MODEL % 'rates: [{input: "1000001", output: 1}]', "serving.models[0].rates[0].input", "1000001", "1000000"),
        (MODEL % "rates: [{input: 1}]", "serving.models[0].rates[0].output", "nothing", "must be there"),
        (MODEL % "engine: {trust-remote-code: true}", "serving.models[0]", "trust-remote-code", "max-num-seqs"),
        (MODEL % "engine: ollama", "serving.models[0]", "'ollama'", "choose of http, sglang, vllm"),
        (MODEL % "engine: {name: ollama}", "serving.models[0]", "'ollama'", "choose of http, sglang, vllm"),
        (MODEL % "engine: http", "serving.models[0]", "'/m'", "its source is a URL"),
        ("models: [{name: a, source: 'http://h:1'}]", "serving.models[0]", "http://h:1", "choose engine http"),
        (MODEL % "parent: big, engine: vllm", "serving.models[0]", "'parent': 'big", "no engine for an adapter"),
        (MODEL % "dedicated_to: ''", "serving.models[0].dedicated_to", "''", "matches"),
        ("models: [{name: a b, source: /m}]", "serving.models[0].name", "'a b'", "matches"),
        ("models: [{name: a}]", "serving.models[0].source", "nothing", "must be there"),
        ("models: [{name: a, source: /m}, {name: a, source: /n}]", "serving", "models", "every model name once; twice is a"),
    ],
)  # fmt: skip
def test_what_serving_may_not_say_is_told_with_place_and_remedy(read, text, where, found, allowed):
    with pytest.raises(InvalidConfig) as error:
        read(text)
    said = str(error.value).partition(": ")[2]
    assert said.startswith(f"{where}: "), said
    assert found in said
    assert allowed in said


@pytest.mark.parametrize(
    ("listen", "more", "endpoint"),
    [
        ("127.0.0.1:7480", {}, "https://localhost:7480/v1"),
        ("0.0.0.0:7480", {}, "https://localhost:7480/v1"),
        ("[fd00::1]:7480", {}, "https://[fd00::1]:7480/v1"),
        ("127.0.0.1:80", {"tls": "plain"}, "http://localhost:80/v1"),
        ("10.0.0.5:7480", {"endpoint": "https://ai.example/v1"}, "https://ai.example/v1"),
    ],
)
def test_clients_are_told_an_address_that_they_can_connect_to(listen, more, endpoint):
    assert models.endpoint_of(ServingConfig(listen=listen, **more)) == endpoint


def test_beside_another_fabric_it_listens_at_a_port_that_is_free():
    config = ServingConfig(listen="127.0.0.1:7480", admin_port=7481)
    moved = models.located(config, any_port=True)
    assert moved.port not in (0, 7480)
    assert moved.admin_port is None
    assert models.located(config, any_port=False) is config
    assert models.located(ServingConfig(listen="127.0.0.1:0"), any_port=False).port != 0
    assert models.located(None, any_port=True) is None


@pytest.mark.parametrize(
    ("said", "has_one"),
    [("", False), ("gateways: 2", True), ("gateways: 2\ningress: none", False), ("ingress: haproxy", True)],
)
def test_an_ingress_stands_where_it_is_asked_for_or_several_gateways_share_an_address(read, said, has_one):
    assert read(said or "gateways: 1").has_ingress is has_one


def test_the_local_fabric_serves_and_offers_nothing_yet():
    serving = load_cluster(environ={"FABRIC_STATE_DIR": "/state"}).serving
    assert (serving.host, serving.models, serving.funds) == ("127.0.0.1", (), 10_000 * UHS_PER_CT)


# -- tariffs -----------------------------------------------------------------------------------------------------------


def test_the_shipped_tariffs_have_a_rate_for_every_model_and_the_measured_ones():
    rates = {(rate.model, rate.accelerator): rate for rate in load_tariffs(shipped("tariffs.yaml")).rates}
    assert rates["", ""].output_uhs_per_mtok == 400_000_000
    # 4 devices, 1 222 and 877 completion tokens a second: the rate of the reference load, to half a per cent.
    assert abs(rates["llama2-70b", "H100"].output_uhs_per_mtok - 4 * 10**12 // 1222) < 10**12 // 200
    assert abs(rates["llama2-70b", "A100"].output_uhs_per_mtok - 4 * 62 * 10**10 // 877) < 10**12 // 200


def test_two_rates_for_one_case_are_refused(tmp_path):
    file = tmp_path / "tariffs.yaml"
    file.write_text(
        shipped("tariffs.yaml").read_text() + "  - {model: llama2-70b, accelerator: h100, input: 1, output: 1}\n"
    )
    with pytest.raises(InvalidConfig, match="a second rate of llama2-70b on H100"):
        load_tariffs(file)


# -- what `fabric up` does with it -------------------------------------------------------------------------------------


@pytest.fixture
def port(tmp_path):
    made = StandInPort(tmp_path)
    made.seed(
        Configure(tariffs=TARIFFS, catalogue=CATALOGUE),
        OpenAccount(account_id="operator", name="", plan="starter"),
    )
    return made


async def test_models_of_the_file_are_offered_once_and_again_when_the_file_says_something_else(port, read):
    config = read(OFFER % "rates: [{input: 40, output: 400}]")
    for _ in range(2):
        await models.settle_in(port, config, operator="operator")
    (view,) = await port.ask(ModelsOf())
    assert (view.name, view.changed, view.rate_version) == ("tiny", 1, 1)
    await models.settle_in(port, read(OFFER % "rates: [{input: 40, output: 500}]"), operator="operator")
    (view,) = await port.ask(ModelsOf())
    assert (view.changed, view.rate_version) == (2, 2)
    with pytest.raises(NotFound):
        await models.settle_in(port, read(OFFER % "dedicated_to: nobody"), operator="operator")


async def test_the_operators_account_is_filled_up_when_less_than_half_is_free(port, read):
    async def free():
        return (await port.ask(BalanceOf(account_id="operator"))).free_uhs

    await models.fund(port, "operator", 1_000)
    await models.fund(port, "operator", 1_000)
    assert await free() == 1_000
    await models.fund(port, "operator", 2_000)
    assert await free() == 1_000, "half of it is free"
    await models.fund(port, "operator", 2_001)
    assert await free() == 2_001
    port.seed(TopUp(account_id="operator", amount_uhs=1))
    await models.fund(port, "operator", 2_001)
    assert await free() == 2_002
