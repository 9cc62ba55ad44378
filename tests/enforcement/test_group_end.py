"""Nobody holds a placement group's resources by name when it is removed: its node would die of that. Without Ray."""

import pytest

from fabric.enforcement.group_end import end_group
from fabric.errors import Unavailable
from tests.enforcement.test_reconciler import AT, actor, group, worker
from tests.worker.leases import NODE

G = "abc0" * 9
BY_NAME = {f"bundle_group_0_{G}": 0.001, f"GPU_group_{G}": 1.0}
WHOLE = {f"bundle_group_0_{G}": 1000.0, f"bundle_group_{G}": 1000.0, f"GPU_group_0_{G}": 2.0, f"GPU_group_{G}": 2.0}


class Tables:
    """Ray's tables: an actor that is killed is no more, and what it held is back some looks later; then the next comes up."""

    def __init__(self, *actors, back_after=2, next_ones=(), others=0.0, dead=(), starting=0):
        self.rows, self.left = {row.id: row for row in actors}, {}
        self.back_after, self.next_ones, self.others = back_after, list(next_ones), others
        self.done = []
        self.dead = list(dead)
        if starting:
            self.left["starting"] = starting

    def dead_actors(self):
        return self.dead

    def workers(self, address, port):
        """A task that is in it by Ray's own word."""
        held = {"GPU": self.others}
        return [worker(1, held=held, group_ids=frozenset({G}))] if self.others else []

    def groups(self):
        return [group(G, bundles=((AT, {"GPU": 2.0}),))]

    def actors(self):
        return list(self.rows.values())

    def free(self):
        count = len([row for row in self.rows.values() if f"GPU_group_{G}" in row.required]) + len(self.left)
        held = {f"GPU_group_{G}": count + self.others, f"bundle_group_0_{G}": count * 0.001}
        held[f"GPU_group_0_{G}"] = self.others
        return {AT: {name: amount - held.get(name, 0.0) for name, amount in WHOLE.items()}}

    def kill_actor(self, actor_id):
        del self.rows[actor_id]
        self.left[actor_id] = self.back_after
        self.done.append(f"killed {actor_id}")

    def remove(self):
        assert not self.left, "the node would die of it"
        self.done.append("removed")

    def sleep(self, _):
        self.left = {name: looks - 1 for name, looks in self.left.items() if looks > 1}
        if not self.left and self.next_ones:
            following = self.next_ones.pop()
            self.rows[following.id] = following


def ended(tables, nodes=(NODE,)):
    killed = []
    end_group(
        G,
        (lambda: nodes) if isinstance(nodes, tuple) else nodes,
        remove=tables.remove,
        kill=lambda *at: killed.append(at),
        tables=lambda: tables,
        sleep=tables.sleep,
    )
    return tables.done, killed


def test_a_group_in_which_nobody_is_by_name_is_removed_at_once():
    others = actor("a", required={"GPU": 1.0}), actor("b", required={"GPU_group_0_" + "def0" * 9: 1.0})
    known = actor("c", group_id=G, required=BY_NAME)
    assert ended(Tables(*others, known)) == (["removed"], [])


@pytest.mark.parametrize("others", [0.0, 0.5])
def test_what_is_held_by_name_is_back_before_the_group_is_removed(others):
    """Also where others are in it by Ray's own word: Ray ends them itself."""
    tables = Tables(actor("serves", required=BY_NAME), others=others)
    assert ended(tables) == (["killed serves", "removed"], [(NODE.address, 7)])


def test_who_is_started_again_in_a_group_is_ended_again():
    again = [actor(f"again{at}", required=BY_NAME) for at in range(3)]
    done, _ = ended(Tables(actor("serves", required=BY_NAME), next_ones=again))
    assert done == ["killed serves", "killed again2", "killed again1", "killed again0", "removed"]


def test_a_group_that_somebody_holds_on_to_is_not_removed():
    tables = Tables(actor("serves", required=BY_NAME), back_after=10**6)
    with pytest.raises(Unavailable, match="held by some of 1 actors"):
        ended(tables)
    assert tables.done == ["killed serves"]


def test_who_went_with_its_node_holds_nothing(monkeypatch):
    tables = Tables(actor("serves", required=BY_NAME), back_after=4)
    monkeypatch.setattr(tables, "free", dict)
    assert ended(tables, nodes=()) == (["killed serves", "removed"], [])


@pytest.mark.parametrize("known_after", [0, 3, 10**6])
def test_what_is_held_on_a_node_that_has_come_back_meanwhile_is_waited_for(known_after):
    """It is another node to Ray, which puts there at once what the group has lost; the gate comes to know it later, if at all."""
    looks = []

    def nodes():
        looks.append(None)
        return (NODE,) if len(looks) > known_after else ()

    tables = Tables(actor("serves", required=BY_NAME), back_after=12)
    assert ended(tables, nodes=nodes)[0] == ["killed serves", "removed"]


@pytest.mark.parametrize("looks", [1, 3, 8])
def test_a_process_that_is_only_being_started_for_who_is_dead_is_waited_for(looks):
    """Its raylet has given it what it was to have, and would die of giving the group back; Ray's table says that it is dead."""
    tables = Tables(dead=[actor("serves", required=BY_NAME, is_alive=False)], starting=looks)
    assert ended(tables) == (["removed"], [])


def test_who_is_dead_and_has_given_all_back_keeps_nobody_waiting_for_long():
    tables = Tables(dead=[actor("serves", required=BY_NAME, is_alive=False)])
    assert ended(tables) == (["removed"], [])


def test_what_stays_on_a_raylets_books_is_not_removed():
    tables = Tables(dead=[actor("serves", required=BY_NAME, is_alive=False)], starting=10**6)
    with pytest.raises(Unavailable, match="held by some of 1 actors"):
        ended(tables)
    assert tables.done == []
