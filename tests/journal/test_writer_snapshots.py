"""A snapshot is a cache: whatever becomes of it, the writer goes on."""

from fabric.audit.merkle import Tree
from fabric.journal.store import Snapshot
from tests.journal.counting import Counting, hold, world

__all__ = ["world"]


class Unwritable(Counting):
    """A core whose state holds what no snapshot can: a mistake, and no reason to stop deciding."""

    def pieces(self):
        yield b""
        raise OverflowError("can't serialize ints > 2**64 - 1")


async def test_a_snapshot_that_can_not_be_made_keeps_the_gate_from_nothing(world):
    made = []

    def restore(state):
        made.append(Unwritable(state))
        return made[-1]

    writer = await world.start(restore=restore, snapshot_every=2)
    for number in range(7):
        (outcome,) = await writer.submit([hold(f"h{number}")])
        assert outcome.held_uhs == number + 1
    assert len(made) == 1, "it is not made anew from the journal each time"
    assert await writer.journal.load_snapshot() is None


async def test_a_snapshot_that_can_not_be_read_is_passed_over_even_for_none(world):
    writer = await world.start()
    await writer.submit([hold()])
    tree = Tree()
    tree.extend(await writer.journal.leaf_hashes(0, 1))
    await writer.journal.save_snapshot(Snapshot(size=1, root=tree.root(), edge=tree.edge, state=b"\xc1 of the future"))
    again = await world.start()
    assert again.core.held == 1
