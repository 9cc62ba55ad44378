"""Stories of LoRA adapters: models of their own in name, price and calls, which run where their parent runs."""

import msgspec
import pytest

from fabric.gate.events import Configure
from fabric.gate.instructions import Accepted
from fabric.gate.lora import ADAPTERS_MAX
from fabric.gate.questions import CallerOf, ModelsOf
from fabric.gate.serving_events import Authorize, ModelSpec, OfferModel, ScaleModel, SettleHold, WithdrawModel
from fabric.ledger import Service, Use
from tests.gate.model_calls import rate
from tests.gate.test_call_stories import CallUsed, CreateKey, TopUp
from tests.gate.world import CATALOGUE, TARIFFS, Clockwork, S

PARENT = (40 * S, 4 * S, 400 * S, 400 * S)
OWN = (10 * S, 1 * S, 900 * S, 900 * S)
ENABLED = (("enable-lora", "true"), ("max-lora-rank", "16"))


def base(name="tiny", *, engine_args=ENABLED, **more):
    spec = ModelSpec(name=name, source="/m", accelerators=("H100",), engine_args=engine_args, **more)
    return OfferModel(spec=spec, rates=(rate(*PARENT),))


def adapter(name="tiny-law", *, parent="tiny", price=OWN, **more):
    return OfferModel(spec=ModelSpec(name=name, source="/lora", parent=parent, **more), rates=(rate(*price),))


@pytest.fixture
def world():
    made = Clockwork("ada", "bob")
    made.do(base())
    made.do(TopUp(account_id="ada", amount_uhs=1_000 * S))
    return made


def test_an_adapter_is_charged_at_its_own_price_and_names_its_parent(world):
    world.do(adapter())
    (_, view) = world.gate.ask(ModelsOf(account_id="ada"), world.now_us)
    assert (view.name, view.parent, view.rates[0].numbers) == ("tiny-law", "tiny", OWN)
    use = Use(service=Service.INFERENCE, accelerators=("H100",), models=("tiny-law",))
    world.do(Authorize(hold_id="s", account_id="ada", amount_uhs=100 * S, use=use, ttl_us=60 * S))
    used = CallUsed(
        call_id="c", model="tiny-law", accelerator="H100", prompt_tokens=100, completion_tokens=10,
        started_at_us=world.now_us, ended_at_us=world.now_us, ended="stop",
    )  # fmt: skip
    (record,) = world.do(SettleHold(hold_id="s", account_id="ada", seq=1, calls=(used,))).records
    assert (record.model, record.charged_uhs) == ("tiny-law", 100 * 10 + 10 * 900)


def test_a_private_adapter_is_listed_for_its_account_alone_and_not_covered(world):
    world.do(adapter(dedicated_to="ada"))
    for account, names in (("ada", ["tiny", "tiny-law"]), ("bob", ["tiny"]), (None, ["tiny", "tiny-law"])):
        assert [view.name for view in world.gate.ask(ModelsOf(account_id=account), world.now_us)] == names
    for account in ("ada", "bob"):
        world.do(CreateKey(key_id=f"k-{account}", account_id=account, secret_sha256=""))
        seen = world.gate.ask(CallerOf(key_id=f"k-{account}"), world.now_us)
        has = {each.model: each.covered for each in seen.models}
        assert has == ({"tiny": False, "tiny-law": False} if account == "ada" else {"tiny": False})


def test_an_adapter_of_an_accounts_own_model_is_covered_as_that_is(world):
    world.do(base(dedicated_to="ada"))
    assert world.do(adapter()).outcome.code == "invalid_parent", "it would be offered to everybody"
    world.do(adapter(dedicated_to="ada"))
    world.do(CreateKey(key_id="k", account_id="ada", secret_sha256=""))
    seen = world.gate.ask(CallerOf(key_id="k"), world.now_us)
    assert {each.model: each.covered for each in seen.models} == {"tiny": True, "tiny-law": True}


MISFITS = [
    (adapter("new", parent="unheard"), "not_found"),
    (adapter("new", parent="plain"), "no_adapters"),
    (adapter("second", parent="tiny-law"), "invalid_parent"),
    (adapter(parent="tiny-law"), "model_exists"),
    (adapter("tiny"), "model_exists"),
    (adapter("plain"), "model_exists"),
    (base("tiny-law"), "model_exists"),
    (adapter(devices=2), "is_adapter"),
    (adapter(replicas_max=4), "is_adapter"),
    (adapter(engine_args=(("seed", "1"),)), "is_adapter"),
    (adapter(accelerators=("H100",)), "is_adapter"),
    (adapter(max_context=100), "is_adapter"),
    (ScaleModel(model="tiny-law", replicas_min=0, replicas_max=2), "is_adapter"),
    (WithdrawModel(model="tiny"), "has_adapters"),
    (base(engine_args=()), "has_adapters"),
    (base(dedicated_to="bob"), "has_adapters"),
    (base("x", engine_args=(("max-lora-rank", "10"),)), "invalid_engine_arg"),
    (base("x", engine_args=(("max-loras", "0"),)), "invalid_engine_arg"),
    (msgspec.structs.replace(adapter("other"), rates=(msgspec.structs.replace(rate(*OWN), accelerator="A100"),)), "no_rates"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "code"), MISFITS)
def test_what_does_not_go_with_adapters_is_refused_and_changes_nothing(world, event, code):
    world.do(base("plain", engine_args=()))
    assert isinstance(world.do(adapter()).outcome, Accepted)
    before = world.gate.snapshot()
    outcome = world.do(event).outcome
    assert (outcome.code, bool(outcome.message)) == (code, True)
    assert world.gate.snapshot() == before


def test_a_parent_goes_when_its_adapters_are_gone(world):
    world.do(adapter())
    assert isinstance(world.do(WithdrawModel(model="tiny-law")).outcome, Accepted)
    assert isinstance(world.do(WithdrawModel(model="tiny")).outcome, Accepted)
    assert world.do(adapter()).outcome.code == "not_found"


def test_a_parent_has_a_bounded_number_of_adapters(world):
    for number in range(ADAPTERS_MAX):
        assert isinstance(world.do(adapter(f"a{number}")).outcome, Accepted)
    assert world.do(adapter("more")).outcome.code == "too_many_adapters"
    assert isinstance(world.do(adapter("a7")).outcome, Accepted), "one that is there is replaced"


# -- what one costs that has no rates of its own -----------------------------------------------------------------------

DEARER = (80 * S, 8 * S, 800 * S, 800 * S)


def plain(name="tiny-law", **more):
    return msgspec.structs.replace(adapter(name, **more), rates=())


def tariffs(*rates):
    return Configure(tariffs=msgspec.structs.replace(TARIFFS, version=9, rates=rates), catalogue=CATALOGUE)


def prices(world):
    views = world.gate.ask(ModelsOf(), world.now_us)
    return {view.name: [(each.model, each.version, each.numbers) for each in view.rates] for view in views}


@pytest.mark.parametrize("own", [True, False])
def test_an_adapter_without_rates_costs_what_its_parent_costs_now_and_later(world, own):
    """Whether the parent has rates of its own or those of the tariffs, and whichever of the two changes them."""
    general = rate(7, 7, 7, 7)
    world.do(tariffs(general))
    if not own:
        world.do(msgspec.structs.replace(base(), rates=()))
    world.do(plain())
    world.do(adapter("priced"))
    now = PARENT if own else general.numbers
    assert prices(world)["tiny-law"] == [("tiny-law", 1, now)]
    world.do(tariffs(rate(9, 9, 9, 9)))
    assert prices(world)["tiny-law"] == [("tiny-law", 1, now) if own else ("tiny-law", 2, (9, 9, 9, 9))]
    offered = msgspec.structs.replace(base(), rates=(rate(*DEARER),))
    world.do(offered)
    world.do(offered)
    assert prices(world)["tiny-law"] == [("tiny-law", 2 if own else 3, DEARER)]
    assert prices(world)["priced"] == [("priced", 1, OWN)], "it has a price of its own"


def test_an_adapter_that_the_tariffs_name_costs_what_they_say_of_it(world):
    world.do(plain())
    named = msgspec.structs.replace(rate(2, 2, 2, 2), model="tiny-law")
    world.do(tariffs(rate(7, 7, 7, 7), named))
    assert prices(world)["tiny-law"] == [("tiny-law", 2, named.numbers)]


def test_an_adapter_follows_a_parent_that_came_after_it(world):
    """Its name was a model of its own once: where it stands in the list says nothing."""
    made = Clockwork("ada")
    made.do(tariffs(rate(7, 7, 7, 7)))
    made.do(msgspec.structs.replace(base("a"), rates=()))
    made.do(WithdrawModel(model="a"))
    made.do(msgspec.structs.replace(base(), rates=()))
    made.do(plain("a"))
    made.do(tariffs(rate(9, 9, 9, 9)))
    assert [numbers for _, _, numbers in prices(made)["a"]] == [(9, 9, 9, 9)]


def test_an_offer_without_rates_said_again_is_the_same_whatever_its_parent_costs_by_now(world):
    asked = msgspec.structs.replace(plain(), request_id="r")
    first = world.do(asked).outcome
    world.do(msgspec.structs.replace(base(), rates=(rate(*DEARER),)))
    assert world.do(asked).outcome == first
    assert prices(world)["tiny-law"] == [("tiny-law", 2, DEARER)]
