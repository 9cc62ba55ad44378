"""The order of a sum: fixed by the leaves alone, whoever folds which of them."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.loop.fold import Folding, Node, complete, cover, root


def leaves_of(count, *, seed=0, size=257):
    """Numbers of such different magnitude that every other order of adding them gives other bits."""
    dice = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-4, 5, (count, 1), generator=dice)
    return list(torch.randn(count, size, generator=dice) * scale)


def naive_tree(leaves):
    """The rule in three lines, to hold the rest against."""
    while len(leaves) > 1:
        leaves = [
            leaves[at] + leaves[at + 1] if at + 1 < len(leaves) else leaves[at] for at in range(0, len(leaves), 2)
        ]
    return leaves[0]


def folded(leaves, shares):
    """As a gang with these shares would."""
    parts, start = {}, 0
    for share in shares:
        folding = Folding(leaves[0])
        folding.begin(start=start, stop=start + share, count=len(leaves))
        for leaf in leaves[start : start + share]:
            folding.add(folding.buffer().copy_(leaf))
        assert tuple(node for node, _ in folding.parts()) == cover(start, start + share, len(leaves))
        parts |= dict(folding.parts())
        start += share
    return complete(parts, len(leaves))


splits = st.integers(1, 70).flatmap(
    lambda count: st.lists(st.integers(1, count), max_size=8).map(lambda cuts: (count, sorted({*cuts, 0, count})))
)


@given(splits, st.integers(0, 1000))
def test_any_split_of_the_leaves_gives_the_same_bits_as_the_plain_tree(split, seed):
    count, edges = split
    leaves = leaves_of(count, seed=seed, size=5)
    shares = [stop - start for start, stop in pairwise(edges)]
    assert torch.equal(folded(leaves, shares), naive_tree(leaves))


@given(splits)
def test_subtrees_cover_a_block_exactly_and_are_few(split):
    count, edges = split
    for start, stop in pairwise(edges):
        nodes = cover(start, stop, count)
        assert [leaf for node in nodes for leaf in range(node.start, node.stop(count))] == list(range(start, stop))
        assert len(nodes) <= max(1, 2 * root(count).level)


def test_a_plain_sum_would_differ_from_split_to_split():
    leaves = leaves_of(32)
    halves = sum(leaves[:16]) + sum(leaves[16:])
    thirds = sum(leaves[:11]) + sum(leaves[11:22]) + sum(leaves[22:])
    assert not torch.equal(halves, thirds)


def test_an_even_split_sends_one_sum_a_rank():
    assert [cover(at, at + 8, 32) for at in range(0, 32, 8)] == [(Node(3, place),) for place in range(4)]


def test_unfinished_sums_stay_few_however_many_leaves_there_are():
    folding = Folding(torch.zeros(1))
    folding.begin(start=0, stop=1024, count=1024)
    made = {id(buffer) for _ in range(1024) if (buffer := add_one(folding)) is not None}
    assert len(made) <= 12


def add_one(folding):
    buffer = folding.buffer().fill_(1.0)
    folding.add(buffer)
    return buffer


def test_a_missing_leaf_is_our_own_mistake():
    folding = Folding(torch.zeros(1))
    folding.begin(start=0, stop=2, count=2)
    folding.add(torch.ones(1))
    with pytest.raises(AssertionError, match="1 leaves are missing"):
        folding.parts()
