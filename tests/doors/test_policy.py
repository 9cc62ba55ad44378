"""The policy of placement at the door and at the command line: shown, changed while it runs, kept over a restart."""

import json

import msgspec
import pytest

from fabric.client.client import new_request_id
from fabric.config.scheduling import SchedulingSection
from fabric.errors import InvalidRequest
from fabric.gate import Gate
from fabric.gate.events import Configure
from fabric.placement.quotas import Policy
from fabric.wire import fabric_pb2 as pb
from tests.doors.conftest import CATALOGUE, TARIFFS

FILED = Configure(tariffs=TARIFFS, catalogue=CATALOGUE, policy=Policy(bypasses_max=7))


def in_force(house):
    return house.port.gate.state.placement.policy


def change(house, **more):
    return house.client(house.root).call(pb.SetPolicyRequest(request_id=new_request_id(), **more), pb.Policy)


@pytest.fixture
def operator(house, run):
    house.port.seed(FILED)
    return lambda *words, code=0: run("ops", *words, key=house.root, code=code)


def test_a_policy_is_said_as_in_the_file_whatever_it_is():
    for section in (
        SchedulingSection(),
        SchedulingSection.model_validate(
            {
                "headroom_devices": 3, "waits_min": {"batch": 9}, "bypasses_max": 2, "run_min": 1, "evictions_max": 1,
                "retry_s": 5, "half_life_h": 2, "entry_min": 0, "graces_s": {"spot": 11},
            }
        ),
    ):  # fmt: skip
        assert SchedulingSection.of(section.policy) == section
        assert section.model_fields_set <= set(SchedulingSection.model_fields)


def test_it_is_shown_with_what_the_file_says(operator):
    shown = operator("policy").output
    assert "waits_min.starter" in shown
    assert "graces_s.reserved" in shown
    assert json.loads(operator("policy", "--json").output)["in_force"]["bypasses_max"] == 7


def test_it_is_changed_while_jobs_run_and_undone(house, operator):
    done = operator("policy", "headroom_devices=4", "waits_min.starter=30")
    assert "`fabric ops policy --as-filed` undoes it" in done.stderr
    now = in_force(house)
    assert (now.headroom_devices, now.waits_us[3], now.bypasses_max) == (4, 30 * 60_000_000, 7)
    assert now.waits_us[:3] == Policy().waits_us[:3], "what isn't named stays"
    both = json.loads(operator("policy", "--json").output)
    assert (both["in_force"]["headroom_devices"], both["filed"]["headroom_devices"]) == (4, 0)
    operator("policy", "--as-filed", "run_min=2")
    assert in_force(house) == Policy(bypasses_max=7, run_us_min=120_000_000)


def test_what_was_set_by_hand_holds_until_the_file_says_something_new(house, operator):
    operator("policy", "headroom_devices=4")
    house.port.seed(FILED)
    assert in_force(house).headroom_devices == 4, "the same file again says nothing new"
    again = Gate.restore(house.port.gate.snapshot())
    again.handle(FILED, house.port.clock.now_us())
    assert again.state.placement.policy.headroom_devices == 4
    house.port.seed(msgspec.structs.replace(FILED, policy=Policy(bypasses_max=8)))
    assert in_force(house) == Policy(bypasses_max=8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"headroom": 1}, "found headroom; allowed: bypasses_max"),
        ({"run_min": -1}, "run_min: found -1; allowed: greater than or equal to 0"),
        ({"waits_min": {"starter": "soon"}}, "waits_min.starter: found 'soon'"),
        ({"waits_min": 5}, "waits_min: found 5"),
        ([1], "a JSON object"),
    ],
)
def test_a_setting_that_can_not_be_meant_is_refused_and_changes_nothing(house, changes, said):
    house.port.seed(FILED)
    with pytest.raises(InvalidRequest) as refusal:
        change(house, changes_json=json.dumps(changes))
    assert said in refusal.value.message
    assert in_force(house) == FILED.policy


def test_at_the_command_line_a_setting_has_a_value(operator):
    assert "SETTING=VALUE" in operator("policy", "run_min", code=2).stderr
    assert "found -1" in operator("policy", "run_min=-1", code=2).stderr


def test_prices_are_what_they_were(house, operator):
    before = house.port.gate.state.tariffs, house.port.gate.state.catalogue, house.port.gate.state.payments
    operator("policy", "run_min=3")
    state = house.port.gate.state
    assert (state.tariffs, state.catalogue, state.payments) == before


def test_shares_are_set_and_shown(house, operator):
    operator("open-account", "lab-1", "--plan", "starter", "--weight", "0.5", "--cohort", "labs")
    operator("share", "acme", "--cohort", "labs", "--weight", 3)
    operator("cohort", "labs", "--weight", "2")
    state = house.port.gate.state
    assert (state.accounts["lab-1"].weight_ppm, state.accounts["lab-1"].cohort) == (500_000, "labs")
    assert (state.accounts["acme"].weight_ppm, state.cohorts) == (3_000_000, {"labs": 2_000_000})
    shown = {each["account_id"]: each for each in json.loads(operator("accounts", "--json").output)}
    assert (shown["acme"]["cohort"], shown["globex"].get("cohort", "")) == ("labs", "")
    operator("share", "acme", "--cohort", "")
    assert state.accounts["acme"].cohort == ""
    assert "--weight or --cohort" in operator("share", "acme", code=2).stderr
    for weight in ("much", "0", "1e9", "0.0000001"):
        operator("share", "acme", "--weight", weight, code=2)


def test_quotas_are_set_shown_and_taken_away(house, operator):
    assert "there are no quotas" in operator("quota", "ls").output
    operator("quota", "set", "acme", "H100", "--nominal", "8", "--borrow", "4")
    operator("quota", "set", "cohort:labs", "H100", "--nominal", "2", "--lend", "1")
    cohort, acme = sorted(in_force(house).quotas, key=lambda quota: quota.account)
    assert (acme.account, acme.accelerator, acme.nominal, acme.borrow_max, acme.lend_max) == (
        "acme",
        "H100",
        8,
        4,
        None,
    )
    assert (cohort.cohort, cohort.nominal, cohort.borrow_max, cohort.lend_max) == ("labs", 2, None, 1)
    shown = json.loads(operator("quota", "ls", "--json").output)
    assert {each.get("account") or each["cohort"]: each["nominal"] for each in shown} == {"acme": 8, "labs": 2}
    assert "cohort:labs" in operator("quota", "ls").output
    policy = json.loads(operator("policy", "--json").output)["in_force"]["quotas"]
    assert policy["acme"]["H100"] == {"nominal": 8, "borrow": 4, "lend": None}
    operator("policy", "run_min=3")
    assert len(in_force(house).quotas) == 2, "another setting leaves them as they are"
    operator("quota", "rm", "acme", "H100")
    assert [quota.cohort for quota in in_force(house).quotas] == ["labs"]
    assert "quota" in operator("quota", "rm", "acme", "H100", code=5).stderr
    assert "no more is lent" in operator("quota", "set", "acme", "H100", "--nominal", "1", "--lend", "2", code=2).stderr
