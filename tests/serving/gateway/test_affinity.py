"""Which replica answers."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.affinity import BLOCK_BYTES, BLOCKS_MAX, Trails, trail_of

LOADS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 200), min_size=1, max_size=8)
PROMPTS = st.binary(max_size=4 * BLOCK_BYTES)


@given(PROMPTS, PROMPTS, PROMPTS)
def test_prompts_share_as_many_marks_as_leading_blocks(shared, one, other):
    whole = len(shared) // BLOCK_BYTES
    first, second = trail_of(shared + one, root=b"a"), trail_of(shared + other, root=b"a")
    assert first[:whole] == second[:whole]
    assert len(first) <= BLOCKS_MAX


@given(st.binary(min_size=1, max_size=2_000))
def test_two_accounts_share_no_mark(prompt):
    assert not set(trail_of(prompt, root=b"a")) & set(trail_of(prompt, root=b"b"))


@given(st.binary(max_size=5_000), LOADS)
def test_the_choice_is_never_far_above_the_mean(prompt, loads):
    chosen = Trails().choose(trail_of(prompt, root=b"a"), loads)
    assert loads[chosen] * len(loads) * 100 <= 125 * (sum(loads.values()) + 1) + 100 * len(loads)


@given(st.binary(min_size=1, max_size=5_000), LOADS)
def test_gateways_agree_without_talking(prompt, loads):
    trail = trail_of(prompt, root=b"a")
    assert Trails().choose(trail, loads) == Trails().choose(trail, dict(reversed(loads.items())))


def test_a_conversation_stays_where_it_began():
    trails = Trails()
    loads = {"a": 0, "b": 0, "c": 0}
    talk = b"You are a patient teacher." * 40
    first = trails.choose(trail_of(talk, root=b"ann"), loads)
    for _ in range(10):
        trails.remember(trail_of(talk, root=b"ann"), first)
        talk += b"And then? Well, ..." * 40
        assert trails.choose(trail_of(talk, root=b"ann"), loads) == first


def test_a_busy_favourite_is_left_and_found_again():
    trails = Trails()
    trail = trail_of(b"x" * 600, root=b"ann")
    trails.remember(trail, "a")
    assert trails.choose(trail, {"a": 1, "b": 1}) == "a"
    assert trails.choose(trail, {"a": 9, "b": 1}) == "b"
    assert trails.choose(trail, {"b": 0, "c": 0}) in {"b", "c"}


def test_when_a_replica_goes_only_its_own_trails_move():
    loads = dict.fromkeys("abcd", 0)
    trails = [trail_of(str(number).encode() * 300, root=b"ann") for number in range(400)]
    before = [Trails().choose(trail, loads) for trail in trails]
    del loads["d"]
    after = [Trails().choose(trail, loads) for trail in trails]
    assert {was for was, now in zip(before, after, strict=True) if was != now} == {"d"}
    assert min(Counter(before).values()) > 60


def test_without_a_prompt_the_least_loaded_answers():
    assert Trails().choose((), {"a": 3, "b": 1, "c": 2}) == "b"


def test_what_is_remembered_is_bounded():
    trails = Trails(most=100)
    for number in range(500):
        trails.remember(trail_of(str(number).encode(), root=b"ann"), "a")
    assert len(trails) == 100
