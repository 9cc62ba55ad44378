"""RFC 6962: the published vectors of Certificate Transparency, and properties against a tree made the plain way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.audit.merkle import (
    EMPTY_ROOT,
    ProofTree,
    TiledTree,
    Tree,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [
    bytes.fromhex(data)
    for data in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PATH_OF_0_IN_8 = [
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
]
sizes = st.integers(0, 70)


def plain_root(hashes):
    """MTH as the RFC defines it."""
    if len(hashes) <= 1:
        return hashes[0] if hashes else EMPTY_ROOT
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return node_hash(plain_root(hashes[:split]), plain_root(hashes[split:]))


def hashes_of(count):
    return [leaf_hash(b"%d" % number) for number in range(count)]


@pytest.mark.parametrize("size", range(9))
def test_the_roots_are_those_of_the_published_vectors(size):
    hashes = [leaf_hash(leaf) for leaf in LEAVES[:size]]
    tree = Tree()
    tree.extend(hashes)
    assert tree.root().hex() == ROOTS[size]
    assert ProofTree(hashes).root().hex() == ROOTS[size]


def test_the_inclusion_path_is_that_of_the_published_vector():
    tree = ProofTree(leaf_hash(leaf) for leaf in LEAVES)
    assert [node.hex() for node in tree.inclusion(0)] == PATH_OF_0_IN_8


@given(sizes, sizes)
def test_a_tree_grown_in_two_steps_is_the_tree_of_all_its_leaves(first, more):
    hashes = hashes_of(first + more)
    tree, proofs = Tree(), ProofTree()
    for part in (hashes[:first], hashes[first:]):
        tree.extend(part)
        proofs.extend(part)
        tree = Tree(size=tree.size, edge=tree.edge)
    assert tree.size == proofs.size == len(hashes)
    assert tree.root() == proofs.root() == plain_root(hashes)
    assert proofs.root(first) == plain_root(hashes[:first])


@given(st.integers(1, 70), st.data())
def test_inclusion_is_proved_for_every_leaf_and_for_nothing_else(size, data):
    hashes = hashes_of(size)
    tree, index = ProofTree(hashes), data.draw(st.integers(0, size - 1))
    proof, root = tree.inclusion(index), tree.root()
    assert verify_inclusion(hashes[index], index=index, size=size, proof=proof, root=root)
    wrong_index = data.draw(st.integers(-1, size).filter(lambda other: other != index))
    assert not verify_inclusion(hashes[index], index=wrong_index, size=size, proof=proof, root=root)
    assert not verify_inclusion(leaf_hash(b"other"), index=index, size=size, proof=proof, root=root)
    assert not verify_inclusion(hashes[index], index=index, size=size, proof=(*proof, EMPTY_ROOT), root=root)
    if proof:
        assert not verify_inclusion(hashes[index], index=index, size=size, proof=proof[:-1], root=root)


@given(st.integers(0, 70), st.integers(0, 70))
def test_consistency_is_proved_between_any_two_sizes(one, other):
    old, size = sorted((one, other))
    tree = ProofTree(hashes_of(size))
    facts = {"old_size": old, "size": size, "root": tree.root(), "proof": tree.consistency(old)}
    assert verify_consistency(old_root=tree.root(old), **facts)
    assert not verify_consistency(old_root=leaf_hash(b"fork"), **facts)


@given(st.integers(2, 40), st.data())
def test_a_rewritten_history_is_not_consistent(size, data):
    hashes = hashes_of(size)
    old = data.draw(st.integers(1, size - 1))
    forked = [*hashes]
    forked[data.draw(st.integers(0, old - 1))] = leaf_hash(b"rewritten")
    tree, fork = ProofTree(hashes), ProofTree(forked)
    proof = fork.consistency(old)
    assert not verify_consistency(old_size=old, old_root=tree.root(old), size=size, root=fork.root(), proof=proof)


@pytest.mark.parametrize(("size", "edge"), [(1, ()), (3, (EMPTY_ROOT,)), (-1, ()), (1, (b"short",))])
def test_an_edge_that_does_not_fit_its_size_is_refused(size, edge):
    with pytest.raises(ValueError, match="edge"):
        Tree(size=size, edge=edge)


@pytest.mark.parametrize(
    "ask", [lambda t: t.inclusion(4), lambda t: t.inclusion(-1), lambda t: t.consistency(5), lambda t: t.root(5)]
)
def test_what_is_beyond_the_tree_is_refused(ask):
    with pytest.raises(ValueError, match="4"):
        ask(ProofTree(hashes_of(4)))


@given(size=st.integers(0, 70), tiles=st.integers(0, 20), leaf=st.integers(0, 69), old=st.integers(0, 70))
def test_a_tiled_tree_proves_what_a_whole_one_does(size, tiles, leaf, old):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fabric.audit.merkle.TILE", 4)
        patch.setattr("fabric.audit.merkle.TILES_HELD", 3)
        hashes = hashes_of(size)
        whole, tiled = ProofTree(hashes), TiledTree()
        for full in sorted({min(tiles, size // 4), size // 4}):
            roots = [plain_root(hashes[4 * tile : 4 * tile + 4]) for tile in range(tiled.tiles, full)]
            tiled.grow(roots, hashes[4 * full : 4 * full + 2] if full < size // 4 else hashes[4 * full :])
        assert tiled.size == size

        def ready(*leaves):
            for tile in tiled.missing(*leaves):
                assert not tiled.hold(tile, hashes_of(3)), "no whole tile"
                assert not tiled.hold(tile, [leaf_hash(b"another")] * 4), "another's leaves"
                assert tiled.hold(tile, hashes[4 * tile : 4 * tile + 4])

        ready(old)
        assert old > size or tiled.root(old) == whole.root(old)
        if leaf < size:
            ready(leaf, size)
            assert tiled.inclusion(leaf) == whole.inclusion(leaf)
        if old <= size:
            ready(old, size)
            assert tiled.consistency(old) == whole.consistency(old)
