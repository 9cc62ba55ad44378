"""What people are told of prices, balances and times: by the SDK's answers in print, and by the commands."""

import datetime as dt
import traceback

import pytest

from fabric.cli.moments import parse_moment
from fabric.client.client import facts_of
from fabric.errors import InsufficientTokens, InvalidRequest
from fabric.focus.rules import check_file
from fabric.gate.events import Grant, LeaseStarted
from fabric.ledger.scopes import Scope
from fabric.sdk.answers import Cost
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from tests.doors.conftest import CATALOGUE

NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
DAY_US = 86_400_000_000


@pytest.mark.parametrize(
    "again", ["PAY\u200b-1", "\ufeffPAY-1", "PAY\u00a0-1", "PAY\u20111", "\uff30\uff21\uff39-1", "PAY-1\u00ad"]
)
def test_a_reference_is_the_same_however_it_was_pasted(make_house, again):
    """What comes from a bank's page has characters that nobody sees, or forms of letters that look alike."""
    house = make_house()
    client, once = house.client(house.root, account="acme"), "PAY -1" if "\u00a0" in again else "PAY-1"
    for number, ref in enumerate((once, again)):
        client.call(pb.TopUpRequest(request_id=f"r{number}", amount_uhs=UHS_PER_CT, payment_ref=ref), pb.Accepted)
    lots = client.call(pb.BalanceRequest(), pb.BalanceReply).lots
    assert sum(lot.granted_uhs for lot in lots) == 101 * UHS_PER_CT


def test_a_purchase_says_what_it_cost_how_long_it_is_good_and_what_there_is_now(house):
    bought = house.fabric().top_up("12.5")
    assert (bought.bought_uhs, bought.price_microcny) == (12.5 * UHS_PER_CT, 6_250_000)
    assert bought.free_uhs == 112.5 * UHS_PER_CT
    assert bought.expires_at_us > house.port.clock.now_us()
    assert str(bought).startswith("12.5 CT for 6.25 CNY, good until ")
    assert str(bought).endswith("; 112.5 CT free now")


def test_a_bundles_stated_price_is_that_of_all_its_parts(house):
    money = house.port.gate.state.book.money_microcny
    before = money["cash"]
    answer = house.client().call(pb.BuyBundleRequest(request_id="r", bundle="edge"), pb.Accepted)
    assert facts_of(answer)["price_microcny"] == CATALOGUE.bundle("edge").price_microcny == money["cash"] - before


def test_what_is_free_for_some_uses_only_is_said_apart(house):
    house.port.seed(
        Grant(account_id="acme", amount_uhs=5 * UHS_PER_CT, scope=Scope(models=("llama",)), request_id="bound")
    )
    balance = house.fabric().balance()
    assert (balance.free_uhs, balance.bound_uhs) == (105 * UHS_PER_CT, 5 * UHS_PER_CT)
    assert str(balance) == "acme: 105 CT free (5 for some uses only), 0 held"


def test_the_runway_counts_only_what_the_running_jobs_may_burn(house):
    house.port.run_jobs = False
    house.port.seed(
        Grant(account_id="acme", amount_uhs=900 * UHS_PER_CT, scope=Scope(models=("llama",)), request_id="bound")
    )
    fabric = house.fabric()
    job = fabric.submit(len, "x", tokens=1, accelerators="H100:1")
    house.port.seed(LeaseStarted(lease_id=job.info().lease_id))
    balance = fabric.balance()
    assert balance.runway_s == pytest.approx(100 * 3600 / (balance.burn_uhs_per_s / 1_000_000))


def test_a_quote_reads_as_a_sentence(house):
    quote = house.fabric().quote(tokens="0.5", accelerators="H100:2")
    assert str(quote) == (
        "2 × H100, can start now: lasts 15 min at 80 % utilisation, costs at most 0.25 CNY\n"
        "burns 2 CT/h at 80 % utilisation, 0.5 idle, 2 at most; holds 0.5 CT at the start, 100 are free: enough"
    )


def test_a_refused_quote_says_why(house):
    assert str(house.fabric().quote(tokens="0.5", accelerators="B200:2")).startswith("2 × B200: refused, ")


def test_a_cost_says_whether_it_is_final():
    running = Cost(
        burned_uhs=UHS_PER_CT // 10,
        held_uhs=UHS_PER_CT // 2,
        limit_uhs=UHS_PER_CT,
        burn_uhs_per_s=1_000_000,
        utilisation=0.8,
        runway_s=5400.0,
        settled=False,
    )
    assert str(running) == "0.1 of 1 CT burned so far, 0.5 held, enough for 1.5 h more"


def test_a_refusal_comes_without_the_frames_of_what_repeats_calls(house):
    with pytest.raises(InsufficientTokens) as refused:
        house.fabric().submit(len, "x", tokens=1000, accelerators="H100:1")
    files = [frame.filename for frame in traceback.extract_tb(refused.value.__traceback__)]
    assert not any("stamina" in name or "tenacity" in name for name in files)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("", None),
        ("2026-11-01T00:00:00+00:00", dt.datetime(2026, 11, 1, tzinfo=dt.UTC)),
        ("2026-11-01T08:30+08:00", dt.datetime(2026, 11, 1, 0, 30, tzinfo=dt.UTC)),
        ("7d", NOW - dt.timedelta(days=7)),
        (" 90 min ", NOW - dt.timedelta(minutes=90)),
        ("2w", NOW - dt.timedelta(weeks=2)),
    ],
)
def test_a_moment_is_a_date_a_time_or_so_long_ago(text, moment):
    assert parse_moment(text, now=NOW) == (None if moment is None else int(moment.timestamp()) * 1_000_000)


def test_a_date_is_its_first_moment_here():
    assert parse_moment("2026-11-01") == int(dt.datetime(2026, 11, 1).astimezone().timestamp()) * 1_000_000


@pytest.mark.parametrize("text", ["yesterday", "7 days", "-3d", "2026-13-01", "٣d", "9999999d"])
def test_what_is_no_moment_is_refused(text):
    with pytest.raises(InvalidRequest, match="is no moment"):
        parse_moment(text, now=NOW)


def test_usage_is_of_the_time_that_was_asked_for(house):
    fabric = house.fabric()
    fabric.submit(len, "x", tokens=1).result(timeout=20)
    now = dt.datetime.fromtimestamp(house.port.clock.now_us() / 1_000_000, dt.UTC)
    asked = []
    answer = house.port.ask

    async def noted(question):
        asked.append(question)
        return await answer(question)

    house.port.ask = noted
    fabric.usage(since=now - dt.timedelta(days=1), until=now)
    question = asked[-1]
    assert question.until_us - question.from_us == DAY_US
    fabric.statement(since=now)
    assert asked[-1].from_us == question.until_us


def test_usage_of_a_time_counts_what_was_booked_in_it_and_what_has_no_record(house):
    fabric, client = house.fabric(), house.client()
    begin = dt.datetime.fromtimestamp(house.port.clock.now_us() / 1_000_000, dt.UTC)
    held = pb.AuthorizeRequest(hold_id="h", request_id="h", amount_uhs=900, ttl_us=60_000_000)
    client.call(held, pb.Accepted)
    client.call(pb.UpdateHoldRequest(hold_id="h", seq=1, used_uhs=70), pb.Accepted)
    (row,) = fabric.usage(since=begin)
    assert (row.booked_uhs, row.charged_uhs, row.ended, row.lease_id) == (70, 70, "running", "own:acme:h")
    assert fabric.usage() == [], "without a time it is records, each with all of its charge"
    assert fabric.usage(until=begin) == []


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_costs_are_exported_in_focus_and_pass_its_rules(house, tmp_path, form):
    client = house.client()
    client.call(pb.BuyBundleRequest(request_id="r", bundle="edge"), pb.Accepted)
    house.fabric().submit(len, "x", tokens=1).result(timeout=20)
    for dataset, least in (("CostAndUsage", 3), ("ContractCommitment", 2)):
        path = tmp_path / f"{dataset}.{form}"
        path.write_bytes(client.fetch(pb.ExportFocusRequest(dataset=dataset, format=form)))
        assert list(check_file(path)) == []
        assert len(path.read_text().splitlines()) >= least
    later = pb.ExportFocusRequest(from_us=house.port.clock.now_us() + DAY_US)
    assert client.fetch(later).count(b"\r\n") == 1, "the header alone"
    for wrong in (pb.ExportFocusRequest(dataset="Costs"), pb.ExportFocusRequest(format="xlsx")):
        with pytest.raises(InvalidRequest, match="choose of"):
            client.fetch(wrong)
