"""Workers of unequal speed: shares that end together, the same on every rank, and refusals that say what is better."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import InvalidRequest
from training.gang.mixing import EFFICIENCY_MIN, Balance, Member, Mix, admit, assign, efficiency, forecast, step_time

speeds_of = st.lists(st.floats(0.1, 10), min_size=1, max_size=4)


@given(speeds_of, st.integers(0, 9))
def test_no_other_shares_end_sooner(speeds, more):
    count = len(speeds) + more
    best = min(
        step_time(shares, speeds) for shares in product(range(1, count + 1), repeat=len(speeds)) if sum(shares) == count
    )
    shares = assign(speeds, count)
    assert sum(shares) == count
    assert min(shares) >= 1
    assert step_time(shares, speeds) == pytest.approx(best)


@given(speeds_of, st.integers(1, 6), st.integers(0, 20))
def test_nobody_gets_more_than_it_holds(speeds, cap, more):
    count = min(len(speeds) + more, cap * len(speeds))
    assert max(assign(speeds, count, caps=[cap] * len(speeds))) <= cap


@pytest.mark.parametrize(
    ("speeds", "count", "caps"), [([1, 1], 1, None), ([1, 0], 4, None), ([1, 1], 4, [1, 2]), ([1], 1, [0])]
)
def test_shares_that_cannot_be_are_refused(speeds, count, caps):
    with pytest.raises(InvalidRequest) as refused:
        assign(speeds, count, caps=caps)
    assert refused.value.code == "shares_invalid"


PAIRS = [(3.0, 1.0), (2.3, 1.0), (3.17, 1.0, 1.0), (3.17, 1.32, 1.0), (3.17, 1.0, 1.32, 3.17)]


@pytest.mark.parametrize("speeds", PAIRS)
def test_with_sixteen_virtual_ranks_a_worker_the_shares_reach_ninety_percent_of_the_sum(speeds):
    count = 16 * len(speeds)
    assert efficiency(assign(speeds, count), speeds) >= 0.9
    even = [count // len(speeds)] * len(speeds)
    even[0] += count - sum(even)
    assert efficiency(even, speeds) < 0.7, "equal shares waste what the fast workers could do"


def laps(shares, speeds):
    return [round(1000 * share / speed) for share, speed in zip(shares, speeds, strict=True)]


def test_a_worker_that_slows_down_is_given_less_within_four_steps():
    balance, seen = Balance((16, 16)), []
    for speeds in [(3.0, 1.0)] * 2 + [(1.0, 1.0)] * 4:
        balance.observe(laps(balance.shares, speeds))
        seen.append(balance.shares)
    assert seen[0] == (24, 8)
    assert abs(seen[-1][0] - 16) <= 1
    assert balance.shares == seen[-1]


def test_small_differences_move_nobody():
    balance = Balance((16, 16))
    assert not any(balance.observe(laps((16, 16), (1.0, 1.0 + wobble))) for wobble in (0.03, -0.03, 0.02, -0.04))


def test_a_lap_that_something_else_held_up_moves_nobody():
    balance = Balance((24, 8))
    for speeds in [(3.0, 1.0), (3.0, 1.0), (1.5, 1.0), (3.0, 1.0), (3.0, 0.5), (3.0, 1.0)]:
        balance.observe(laps(balance.shares, speeds))
        assert balance.shares == (24, 8)


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=3, max_size=3), max_size=20))
def test_ranks_that_hear_the_same_arrive_at_the_same_shares(heard):
    one, other = Balance((8, 8, 8)), Balance((8, 8, 8))
    for said in heard:
        assert one.observe(said) == other.observe(said)
        assert one.shares == other.shares
        assert sum(one.shares) == 24


H100, A100, ASCEND = (
    Member(accelerator="H100", speed=3.17, count=4),
    Member(accelerator="A100", speed=1.0),
    Member(accelerator="910B", speed=1.32, count=2),
)


@pytest.mark.parametrize(
    ("members", "mix", "exposed_s", "code", "words"),
    [
        ([H100, A100], Mix.NEVER, 0.0, "mix_not_asked", ["4 × H100 + 1 × A100", "mix=same-vendor"]),
        ([H100, ASCEND], Mix.SAME_VENDOR, 0.0, "mix_across_vendors", ["NCCL", "HCCL", "4 × H100 alone"]),
        ([H100, A100], Mix.SAME_VENDOR, 1.0, "mix_inefficient", ["85%", "4 × H100 alone gives"]),
    ],
)
def test_a_gang_that_should_not_be_is_refused_with_the_better_one(members, mix, exposed_s, code, words):
    with pytest.raises(InvalidRequest) as refused:
        admit(members, mix=mix, count=32, exposed_s=exposed_s)
    assert refused.value.code == code
    assert all(word in refused.value.message for word in words), refused.value.message


def test_what_is_admitted_is_as_good_as_it_must_be():
    assert admit([H100], mix=Mix.NEVER, count=32).efficiency == pytest.approx(1.0)
    assert admit([H100, A100], mix=Mix.SAME_VENDOR, count=64).efficiency >= EFFICIENCY_MIN
    assert admit([H100, ASCEND], mix=Mix.ISLANDS, count=64).speed > 0


def test_an_h100_beside_a_910b_in_equal_shares_wastes_half():
    found = forecast([Member(accelerator="H100", speed=3.17), Member(accelerator="910B", speed=1.0)], 32)
    assert efficiency((16, 16), (3.17, 1.0)) == pytest.approx(0.48, abs=0.005)
    assert found.efficiency > 0.95


def refusal(members, **options):
    try:
        admit(members, mix=Mix.SAME_VENDOR, **options)
    except InvalidRequest as refused:
        return refused.code
    return None


@given(
    st.floats(0.1, 10), st.floats(0.1, 10), st.integers(1, 4), st.integers(1, 4), st.integers(0, 20), st.floats(0, 5)
)
def test_a_gang_is_refused_for_speed_only_if_a_part_of_it_is_faster(fast, slow, many, few, more, exposed_s):
    members = [
        Member(accelerator="H100", speed=fast, count=many),
        Member(accelerator="A100", speed=slow, count=few),
    ]
    count = many + few + more
    found = forecast(members, count, exposed_s=exposed_s)
    is_slower = found.speed < max(forecast([member], count).speed for member in members)
    is_refused = is_slower and found.efficiency < EFFICIENCY_MIN
    assert refusal(members, count=count, exposed_s=exposed_s) == ("mix_inefficient" if is_refused else None)


def test_four_fast_and_four_slow_workers_that_beat_the_fast_alone_are_admitted():
    members = [Member(accelerator="H100", speed=1.0, count=4), Member(accelerator="A100", speed=0.32, count=4)]
    found = admit(members, mix=Mix.SAME_VENDOR, count=16, exposed_s=0.6)
    assert found.efficiency < EFFICIENCY_MIN
    assert found.speed > forecast(members[:1], 16).speed
