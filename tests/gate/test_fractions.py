"""A job that has a part of a device: what it asks for, what it holds and pays, and what it is refused with."""

from fractions import Fraction as Ratio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.charging.burn import BurnCurve
from fabric.charging.rating import Meter, hold_for
from fabric.gate.events import LeaseFinished, LeaseOutcome, LeaseRemoved, LeaseStarted, NodeDown, NodeUp, Pool
from fabric.gate.instructions import Accepted, Refusal, StartLease
from fabric.gate.questions import NodesOf, QuoteOf
from fabric.ledger.scopes import Service
from tests.gate.conftest import metered, submit, top_up
from tests.gate.world import Clockwork, S, spec

QUARTER = (1, 4)


def shared(devices=1, units=4, **more):
    return NodeUp(node_id="n", accelerator="H100", devices=devices, pool=Pool.SPOT, units=units, **more)


def world(node=None):
    at = Clockwork("ada")
    assert isinstance(at.do(node or shared()).outcome, Accepted)
    at.do(top_up(10_000))
    return at


def leases(decision):
    return [each.lease for each in decision.instructions if isinstance(each, StartLease)]


def test_four_quarters_run_on_one_device_and_the_fifth_waits():
    at = world()
    for number in range(4):
        (lease,) = leases(at.do(submit(f"j{number}", fraction=QUARTER)))
        assert (lease.fraction, lease.devices, lease.on) == (QUARTER, 1, "1/4 × H100")
    assert leases(at.do(submit("j4", fraction=QUARTER))) == []
    at.do(LeaseStarted(lease_id="j0.1"))
    at.do(LeaseFinished(lease_id="j0.1", outcome=LeaseOutcome.SUCCEEDED))
    assert [lease.job_id for lease in leases(at.do(LeaseRemoved(lease_id="j0.1")))] == ["j4"]


def test_a_quarter_is_charged_a_quarter():
    at = world()
    at.do(submit(fraction=QUARTER))
    at.do(LeaseStarted(lease_id="j.1"))
    at.at(40).do(metered(40, busy=32))
    assert at.job().burned_uhs == 10 * S
    assert at.gate.state.sessions["j.1"].worst_uhs_per_s * 4 == S


def test_its_record_says_which_part_and_can_be_reckoned_again():
    at = world()
    at.do(submit(fraction=(3, 4)))
    at.do(LeaseStarted(lease_id="j.1"))
    at.at(40).do(metered(40, busy=32))
    at.do(LeaseFinished(lease_id="j.1", outcome=LeaseOutcome.SUCCEEDED))
    (record,) = at.do(LeaseRemoved(lease_id="j.1")).records
    assert (record.fraction, record.devices, record.charged_uhs) == ((3, 4), 1, 30 * S)
    assert record.metered_us == sum(device_us for device_us, _ in record.bands)


@given(
    part=st.integers(2, 1000).flatmap(lambda under: st.tuples(st.integers(1, under - 1), st.just(under))),
    windows=st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 100)), min_size=1, max_size=12),
    weight_ppm=st.integers(1, 3_000_000),
)
def test_a_part_pays_its_part_to_the_last_unit_however_time_is_cut(part, windows, weight_ppm):
    """Never more than half a µHs beside the part of a device's charge, never negative, and never beyond the worst case."""
    curve = BurnCurve(((0, 250_000), (800_000, 1_000_000), (1_000_000, 1_250_000)))
    meter = Meter(weight_ppm=weight_ppm, curve=curve, fraction=part)
    whole = Meter(weight_ppm=weight_ppm * part[0], curve=curve)
    for window_us, percent in windows:
        for each in (meter, whole):
            assert each.add(devices=1, window_us=window_us, busy_us=window_us * percent // 100) >= 0
    assert abs(meter.rated_uhs - Ratio(whole.rated_uhs, part[1])) <= 1
    time_us = sum(window_us for window_us, _ in windows)
    assert meter.rated_uhs <= hold_for(
        devices=1, duration_us=time_us, weight_ppm=weight_ppm, curve=curve, fraction=part
    )


def test_the_quote_is_of_the_part():
    at = world()
    whole = at.gate.ask(QuoteOf(account_id="ada", spec=spec()), now_us=at.now_us)
    part = at.gate.ask(QuoteOf(account_id="ada", spec=spec(fraction=QUARTER)), now_us=at.now_us)
    assert part.burn_uhs_per_s * 4 == whole.burn_uhs_per_s
    assert part.runtime_us == 4 * whole.runtime_us
    assert (part.fraction, part.placeable_now) == (QUARTER, True)


@pytest.mark.parametrize(
    ("wanted", "code", "says"),
    [
        ({"fraction": (2, 8)}, "invalid_fraction", "2/8"),
        ({"fraction": (4, 4)}, "invalid_fraction", "less than 1"),
        ({"fraction": (0, 4)}, "invalid_fraction", "more than 0"),
        ({"fraction": (1, 1001)}, "invalid_fraction", "1000"),
        ({"fraction": QUARTER, "devices": 2}, "fraction_of_one", "devices=2"),
        ({"fraction": QUARTER, "devices_least": 1}, "fraction_of_one", "devices_least=1"),
        ({"fraction": QUARTER, "mix": "islands"}, "fraction_of_one", "mix=islands"),
        ({"fraction": QUARTER, "service": Service.INFERENCE}, "fraction_of_one", "service=inference"),
        ({"fraction": (1, 3)}, "no_such_fraction", "1/4 to 3/4 of H100"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(wanted, code, says):
    refused = world().do(submit(**wanted)).outcome
    assert isinstance(refused, Refusal)
    assert refused.code == code
    assert says in refused.message
    assert "accelerators=H100:1" in refused.message or "write it as 1/4" in refused.message


def test_where_devices_are_had_only_whole_a_part_is_refused():
    refused = world(shared(units=1)).do(submit(fraction=QUARTER)).outcome
    assert refused.code == "no_such_fraction"
    assert "only whole" in refused.message


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"units": 0}, "invalid_fraction"),
        ({"units": 1001}, "invalid_fraction"),
        ({"units": 4, "fraction": (1, 7)}, "invalid_fraction"),
        ({"units": 1, "fraction": (7, 7)}, "invalid_fraction"),
    ],
)
def test_a_node_whose_parts_cannot_be_is_refused(facts, code):
    assert Clockwork("ada").do(shared(**facts)).outcome.code == code


def test_the_list_of_nodes_says_what_can_be_had_and_what_is_free():
    at = world(shared(devices=2, division="time-slice"))
    at.do(submit("a", fraction=QUARTER))
    (view,) = at.gate.ask(NodesOf(), now_us=at.now_us)
    assert (view.units, view.free, view.free_units, view.division) == (4, 1, (3,), "time-slice")


def test_all_that_had_parts_of_a_lost_node_run_again_elsewhere():
    at = world()
    for number in range(3):
        at.do(submit(f"j{number}", fraction=QUARTER))
        at.do(LeaseStarted(lease_id=f"j{number}.1"))
    at.do(NodeUp(node_id="m", accelerator="H100", devices=1, pool=Pool.SPOT, units=4))
    at.do(NodeDown(node_id="n"))
    for number in range(3):
        (lease,) = leases(at.do(LeaseRemoved(lease_id=f"j{number}.1")))
        assert (lease.job_id, lease.shares[0].node_id) == (f"j{number}", "m")


def test_instances_that_are_divided_for_good_are_priced_as_what_they_are():
    at = world(shared(devices=7, units=1, fraction=(1, 7), division="mig 1g.10gb"))
    at.do(submit(fraction=(1, 7)))
    at.do(LeaseStarted(lease_id="j.1"))
    at.at(70).do(metered(70, busy=56))
    assert at.job().burned_uhs == 10 * S
    refused = at.do(submit("whole")).outcome
    assert (refused.code, refused.facts["offered"]) == ("only_parts", "1/7 of H100")
    assert "accelerators=H100:1/7" in refused.message
