"""Packing: nobody gets more of a device than there is, and a part goes where it makes least useless."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.simulation.fgd import Fgd
from fabric.simulation.packing import WHOLE, Machine, Pod, allocated, best_fit
from fabric.simulation.planned import PlannedCluster, planned

ANY = frozenset()


def part(parts):
    return Pod(0, 0, 1, parts, ANY)


pods = st.lists(
    st.one_of(
        st.builds(part, st.sampled_from((250, 500, 700))),
        st.integers(1, 4).map(lambda devices: Pod(1000, 1, devices, WHOLE, ANY)),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("packer", ["best-fit", "fgd"])
@given(pods=pods)
def test_no_device_is_given_away_more_than_once(packer, pods):
    machines = [Machine(at, "H100", 4000, 100, [WHOLE] * 4) for at in range(2)]
    choose, given_away = (best_fit if packer == "best-fit" else Fgd(pods)), 0
    for pod in pods:
        choice = choose(pod, machines, random.Random(1))
        if choice is None:
            assert not any(machine.takes(pod) for machine in machines)
            continue
        choice[0].put(pod, choice[1])
        given_away += pod.asked
        assert all(0 <= left <= WHOLE for machine in machines for left in machine.parts)
    assert sum(sum(machine.parts) for machine in machines) == 8 * WHOLE - given_away


def test_a_part_goes_beside_another_so_that_a_whole_device_stays():
    machine = Machine(0, "H100", 100, 100, [500, WHOLE])
    machine.put(part(500))
    assert machine.parts == [0, WHOLE]
    workload = [part(500), Pod(0, 0, 1, WHOLE, ANY)]
    other = Machine(0, "H100", 100, 100, [700, WHOLE])
    _, parts = Fgd(workload)(part(500), [other], random.Random(1))
    assert parts == [200, WHOLE]


def test_a_workload_is_filled_up_until_more_is_asked_for_than_there_is():
    machines = [Machine(0, "H100", 10_000, 100, [WHOLE] * 4)]
    assert allocated(machines, [Pod(0, 0, 1, WHOLE, ANY)], best_fit, seed=1) == 100
    assert allocated(machines, [Pod(0, 0, 3, WHOLE, ANY)], best_fit, seed=1) == 75


@pytest.mark.parametrize("cores", [True, False])
@given(pods=pods)
def test_the_planner_gives_no_device_away_twice_and_passes_over_nobody_who_fits(cores, pods):
    machines = [Machine(at, "H100", 4000, 100, [WHOLE] * 4) for at in range(2)]
    cluster = PlannedCluster(machines, parts=True, cores=cores)
    given_away = 0
    for pod in pods:
        if cluster.put(pod):
            given_away += pod.asked
        else:
            free = [(node.free, node.free_units) for node in cluster.nodes()]
            most = max(max([WHOLE] * bool(whole) + list(units), default=0) for whole, units in free)
            fits = most >= pod.parts if pod.parts < WHOLE else max(whole for whole, _ in free) >= pod.devices
            assert cores or not fits
    assert given_away <= 8 * WHOLE


def test_where_devices_are_had_only_whole_a_part_takes_all_of_one():
    machines = [Machine(0, "H100", 10**6, 10**6, [WHOLE] * 4)]
    mixed = [part(250), part(500), Pod(0, 0, 1, WHOLE, ANY)]
    whole = planned(machines, mixed, seed=1, parts=False, arrived=3.0)
    parts = planned(machines, mixed, seed=1, parts=True, arrived=3.0)
    assert whole.taken == 100.0 > whole.asked
    assert parts.asked == parts.taken > whole.asked


def test_a_pod_that_wants_no_device_takes_cores_from_those_that_do():
    machines = [Machine(0, "H100", 1000, 10, [WHOLE])]
    cluster = PlannedCluster(machines, parts=True, cores=True)
    assert cluster.put(Pod(1000, 1, 0, WHOLE, ANY))
    assert not cluster.put(Pod(1, 1, 1, 500, ANY))
