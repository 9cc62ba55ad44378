"""What nodes say of how their devices are divided, what that is worth, and what Ray is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.accelerators import TYPE_LABEL
from fabric.cluster.offering import readable
from fabric.inventory.nodes import NODE_LABEL, POOL_LABEL, changes_between, nodes_of
from fabric.node.agent import Sight
from fabric.parts import PARTS_LABEL, is_instance, parts_of


def nodes(word, *, devices=8.0, **resources):
    entry = {
        "Alive": True,
        "NodeID": "r1",
        "NodeManagerAddress": "10.0.0.1",
        "NodeManagerPort": 1,
        "Resources": {"GPU": devices, **resources},
        "Labels": {NODE_LABEL: "n", POOL_LABEL: "spot", TYPE_LABEL: "H100"} | ({PARTS_LABEL: word} if word else {}),
    }
    return nodes_of([entry], gone=())


@pytest.mark.parametrize(
    ("word", "units", "fraction", "division"),
    [
        ("time-slice.4", 4, None, "time-slice"),
        ("mig.7.1g.10gb", 1, (1, 7), "mig 1g.10gb"),
        ("mig.3.2g.20gb", 1, (2, 7), "mig 2g.20gb"),
        ("mig.2.3g.40gb", 1, (3, 7), "mig 3g.40gb"),
        ("vnpu.4.vir05_1c_16g", 1, (1, 4), "vnpu vir05_1c_16g"),
        ("vnpu.2", 1, (1, 2), "vnpu"),
    ],
)
def test_a_word_says_what_a_part_is_worth(word, units, fraction, division):
    """Of MIG as many sevenths as its profile has slices, not one of the instances that there are."""
    parts = parts_of(word)
    assert (parts.units, parts.fraction, parts.division) == (units, fraction, division)
    (up,) = changes_between({}, nodes(word))
    assert (up.units, up.fraction, up.division) == (units, fraction, division)


@pytest.mark.parametrize(
    "word", ["mig", "mig.0", "slice.4", "time-slice.1", "mig.4.2g.20gb", "mig.1.7g.80gb", "time-slice.4 ", "x" * 99]
)
def test_a_node_whose_word_nobody_understands_is_not_sold(word):
    assert parts_of(word) is None
    assert nodes(word) == {}


def test_a_node_that_says_nothing_has_whole_devices():
    (node,) = nodes(None).values()
    assert node.held(3) == {"GPU": 3.0}
    assert not node.is_shared(None)


def test_ray_is_asked_for_the_part_of_a_device_that_is_shared_and_for_a_whole_instance():
    (shared,), (instances,) = nodes("time-slice.4", H100=8.0).values(), nodes("mig.7.1g.10gb").values()
    assert shared.bundle(1, cpus=1.0, fraction=(1, 4)) == {"CPU": 1.0, "GPU": 0.25, "H100": 0.25}
    assert shared.held(2) == {"GPU": 2.0, "H100": 2.0}
    assert instances.held(1, (1, 7)) == {"GPU": 1.0}
    assert (shared.is_shared((1, 4)), instances.is_shared((1, 7))) == (True, False)


@given(units=st.integers(2, 1000))
def test_all_parts_of_a_device_fit_on_it_as_ray_counts(units):
    (node,) = nodes("time-slice.4").values()
    each = round(node.held(1, (1, units))["GPU"] * 10_000)
    assert 0 < each * units <= 10_000


MIG = ("MIG-7a1c", "MIG-8b2d")


@pytest.mark.parametrize(
    ("word", "names", "count"),
    [
        (None, ("0", "1"), 2),
        (None, MIG, 0),
        ("mig.7.1g.10gb", MIG, 2),
        ("mig.7.1g.10gb", ("0", *MIG), 2),
        ("time-slice.4", ("0", "1"), 2),
        ("vnpu.4", ("0", "1", "2", "3"), 4),
    ],
)
def test_an_instance_is_never_sold_as_a_device_nor_a_device_as_an_instance(word, names, count):
    (node,) = nodes(word).values()
    assert readable(node, Sight(readable=names)) == count
    assert readable(node, Sight(declared=True)) == 8


def test_instances_are_known_by_their_names():
    assert [is_instance(name) for name in ("0", "GPU-1", "MIG-1", "mig-gpu-1/3/0", "0:3")] == [
        False,
        False,
        True,
        True,
        True,
    ]
