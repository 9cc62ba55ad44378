"""Nobody holds a placement group's resources by name when it is removed: its node would die of that. Without Ray."""

import grpc
import pytest

from fabric.adapters.group_end import end_group
from fabric.errors import Unavailable
from tests.adapters.leases import NODE
from tests.adapters.test_reconciler import actor, worker

G = "abc0" * 9
BY_NAME = {f"bundle_group_0_{G}": 0.001, f"GPU_group_{G}": 1.0}


class Refusal(grpc.RpcError, grpc.Call):
    def __init__(self, code):
        self._code = code

    def code(self):
        return self._code

    def _of_no_use(self, *_):
        raise AssertionError

    add_callback = cancel = details = initial_metadata = is_active = time_remaining = trailing_metadata = _of_no_use


class Tables:
    """Ray's tables: an actor that is killed is no more, and its worker leaves some looks later; then the next comes up."""

    def __init__(self, *actors, leaves_after=2, next_ones=(), silent=False):
        self.rows, self.left = {row.id: row for row in actors}, {}
        self.leaves_after, self.next_ones, self.silent = leaves_after, list(next_ones), silent
        self.done = []

    def actors(self):
        return list(self.rows.values())

    def workers(self, address, port):
        if self.silent:
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED)
        return [worker(7, actor_id=name) for name in (*self.rows, *self.left)]

    def kill_actor(self, actor_id):
        del self.rows[actor_id]
        self.left[actor_id] = self.leaves_after
        self.done.append(f"killed {actor_id}")

    def remove(self):
        self.done.append(f"removed {G}")

    def sleep(self, _):
        self.left = {name: looks - 1 for name, looks in self.left.items() if looks > 1}
        if not self.left and self.next_ones:
            following = self.next_ones.pop()
            self.rows[following.id] = following


def ended(tables, nodes=(NODE,)):
    killed = []
    end_group(
        G,
        nodes,
        remove=tables.remove,
        kill=lambda *at: killed.append(at),
        tables=lambda: tables,
        sleep=tables.sleep,
        within_s=3,
    )
    return tables.done, killed


def test_a_group_in_which_nobody_is_by_name_is_removed_at_once():
    others = actor("a", required={"GPU": 1.0}), actor("b", required={"GPU_group_0_" + "def0" * 9: 1.0})
    known = actor("c", group_id=G, required=BY_NAME)
    assert ended(Tables(*others, known)) == ([f"removed {G}"], [])


def test_who_is_in_by_name_is_gone_before_the_group_is_removed():
    tables = Tables(actor("serves", required=BY_NAME))
    assert ended(tables) == (["killed serves", f"removed {G}"], [(NODE.address, 7)])
    assert not tables.left


def test_who_is_started_again_in_a_group_is_ended_again():
    again = [actor(f"again{at}", required=BY_NAME) for at in range(3)]
    done, _ = ended(Tables(actor("serves", required=BY_NAME), next_ones=again))
    assert done == ["killed serves", "killed again2", "killed again1", "killed again0", f"removed {G}"]


def test_a_group_that_somebody_holds_on_to_is_not_removed():
    for tables in (
        Tables(actor("serves", required=BY_NAME), leaves_after=10**6),
        Tables(actor("serves", required=BY_NAME), silent=True),
    ):
        with pytest.raises(Unavailable, match="held by 1 actors"):
            ended(tables)
        assert tables.done == ["killed serves"]


def test_who_went_with_its_node_holds_nothing():
    assert ended(Tables(actor("serves", required=BY_NAME), leaves_after=10**6), nodes=()) == (
        ["killed serves", f"removed {G}"],
        [],
    )
