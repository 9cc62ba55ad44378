"""The pool on stand-in ground: leases taken, replicas started and drained, failures said, and nothing left behind."""

import asyncio

import pytest

from fabric.charging.rates import Rate
from fabric.errors import Unavailable
from serving.host.pool import Asked, Offer, Pool
from serving.replica.lora import AdapterStanding
from serving.replica.standing import Standing

RATE = Rate(input_uhs_per_mtok=1, cached_uhs_per_mtok=1, output_uhs_per_mtok=1, reasoning_uhs_per_mtok=1)


class PlotStandIn:
    accelerator = "H100"

    def __init__(self, ground, lease_id):
        self.ground, self.lease_id = ground, lease_id

    async def is_lost(self):
        return self.lease_id in self.ground.lost

    async def close(self):
        self.ground.leases.remove(self.lease_id)


class GroundStandIn:
    """Starts at once, unless told to fail; a test sets what replicas say."""

    def __init__(self):
        self.leases, self.running, self.stopped, self.count = [], {}, [], 0
        self.fails, self.silent, self.capacity_gate = "", False, asyncio.Event()
        self.code, self.undrained = "unavailable", []
        self.capacity_gate.set()
        self.rate_version = 0
        self.load, self.repriced, self.lost, self.behind_us = {}, [], set(), 0
        self.loads, self.swept, self.sweeping = asyncio.Event(), 0, None
        self.loads.set()
        self.adapters, self.adapted, self.unfit = (), [], {}

    async def sweep(self):
        if self.sweeping is not None:
            raise self.sweeping
        self.swept += 1

    async def lease(self, offer):
        await self.capacity_gate.wait()
        self.count += 1
        self.leases.append(f"l{self.count}")
        return PlotStandIn(self, f"l{self.count}")

    async def start(self, replica_id, offer, plot):
        if self.fails:
            raise Unavailable(self.fails, code=self.code)
        await self.loads.wait()
        self.running[replica_id] = offer

    async def look(self, replica_id):
        if self.silent:
            raise Unavailable("it is gone", code=self.code)
        return Standing(
            address="http://127.0.0.1:1",
            capacity=4,
            running=self.load.get(replica_id, 0),
            rate_version=self.rate_version,
            behind_us=self.behind_us,
            adapters=self.adapters,
        )

    async def adapt(self, replica_id, adapters):
        self.adapted.append([(each.name, each.source, each.version) for each in adapters])
        self.adapters = tuple(
            AdapterStanding(
                name=each.name, version=each.version, rate_version=each.rate.version,
                failure=self.unfit.get(each.name, ""), serves=each.name not in self.unfit,
            )
            for each in adapters
        )  # fmt: skip

    async def reprice(self, replica_id, rate):
        self.repriced.append(rate)
        self.rate_version = rate.version

    async def stop(self, replica_id, *, drain=True):
        self.running.pop(replica_id, None)
        self.stopped.append(replica_id)
        self.undrained += [] if drain else [replica_id]


class BoardStandIn:
    def __init__(self, *asked):
        self.models = list(asked)
        self.said = []

    async def asked(self):
        return list(self.models)

    async def say(self, replicas, models):
        self.said.append(
            (
                [(each.replica_id, each.state) for each in replicas],
                {each.offer.name: (each.state, each.reason) for each in models},
            )
        )


def offer(**said):
    return Offer(**{"name": "m", "source": "/models/m", "replicas_min": 1, "replicas_max": 3, "rates": (RATE,)} | said)


async def turns(pool, count=3):
    for _ in range(count):
        await pool.turn()
        await asyncio.sleep(0.02)


@pytest.fixture
async def ground():
    return GroundStandIn()


def pool_of(ground, board, **said):
    return Pool(ground, board, every_s=0.005, **said)


async def test_a_model_gets_its_least_replicas_in_leases_and_all_goes_at_the_end(ground):
    board = BoardStandIn(Asked(offer(replicas_min=2)))
    pool = pool_of(ground, board)
    await turns(pool)
    assert len(ground.running) == len(ground.leases) == 2
    assert [state for _, state in board.said[-1][0]] == ["ready", "ready"]
    await pool.close()
    assert (ground.running, ground.leases, len(ground.stopped)) == ({}, [], 2)
    assert board.said[-1] == ([], {})


async def test_a_sleeping_model_starts_when_somebody_waits_and_sleeps_again(ground):
    board = BoardStandIn(Asked(offer(replicas_min=0)))
    pool = pool_of(ground, board, keep_us=50_000)
    await turns(pool)
    assert ground.leases == []
    board.models = [Asked(offer(replicas_min=0), queued=1)]
    await turns(pool, 2)
    assert len(ground.running) == 1
    board.models = [Asked(offer(replicas_min=0))]
    await turns(pool, 8)
    assert (ground.running, ground.leases) == ({}, [])
    await pool.close()


async def test_full_replicas_get_company_up_to_the_bound(ground):
    board = BoardStandIn(Asked(offer(), queued=100))
    pool = pool_of(ground, board)
    await turns(pool)
    assert len(ground.running) == 3
    await pool.close()


async def test_a_load_that_fails_says_why_gives_its_lease_back_and_is_not_tried_at_once(ground):
    ground.fails = "m could not be loaded: ValueError\nthe engine's last line"
    board = BoardStandIn(Asked(offer()))
    pool = pool_of(ground, board)
    await turns(pool, 5)
    assert ground.leases == []
    assert ground.count == 1
    state, reason = board.said[-1][1]["m"]
    assert (state, "the engine's last line" in reason) == ("failed", True)
    ground.fails = ""
    board.models = [Asked(offer(max_context=100))]  # offered again, mended
    await turns(pool)
    assert board.said[-1][1]["m"] == ("starting", "")
    assert len(ground.running) == 1
    await pool.close()


async def test_a_withdrawn_model_is_drained_and_its_leases_go_back(ground):
    board = BoardStandIn(Asked(offer()))
    pool = pool_of(ground, board)
    await turns(pool)
    board.models = []
    await turns(pool)
    assert (ground.running, ground.leases) == ({}, [])
    assert any(state == "draining" for said, _ in board.said for _, state in said)
    await pool.close()


async def test_another_version_serves_before_the_old_one_goes(ground):
    board = BoardStandIn(Asked(offer()))
    pool = pool_of(ground, board)
    await turns(pool)
    (old,) = ground.running
    board.models = [Asked(offer(source="/models/other"))]
    await turns(pool, 4)
    (new,) = ground.running
    assert (old in ground.stopped, ground.running[new].source) == (True, "/models/other")
    for said, _ in board.said[2:]:
        assert any(state == "ready" for _, state in said)
    await pool.close()


async def test_a_replica_that_dies_is_not_called_ready_until_it_answers_again(ground):
    board = BoardStandIn(Asked(offer()))
    pool = pool_of(ground, board)
    await turns(pool)
    ground.silent = True
    await turns(pool)
    assert [state for _, state in board.said[-1][0]] == ["starting"]
    ground.silent = False
    await turns(pool)
    assert [state for _, state in board.said[-1][0]] == ["ready"]
    assert ground.count == 1
    await pool.close()


async def test_a_replica_that_loads_again_is_waited_for_and_one_that_is_silent_is_not(ground, monkeypatch):
    monkeypatch.setattr("serving.host.pool._SILENT_S", 0.05)
    monkeypatch.setattr("serving.host.pool._RETRY_S", (0.01, 0.01))
    board = BoardStandIn(Asked(offer()))
    pool = pool_of(ground, board)
    await turns(pool)
    ground.silent, ground.code = True, "loading"
    await turns(pool, 10)
    assert (ground.leases, [state for _, state in board.said[-1][0]]) == (["l1"], ["starting"])
    ground.code = "unavailable"
    await turns(pool, 10)
    ground.silent = False
    await turns(pool, 5)
    assert "l1" not in ground.leases
    assert len(ground.running) == 1
    assert ground.undrained, "what is broken is not asked to drain"
    await pool.close()


async def test_a_replica_that_is_busy_gets_nothing_new_and_is_not_given_up(ground, monkeypatch):
    monkeypatch.setattr("serving.host.pool._SILENT_S", 0.02)
    board = BoardStandIn(Asked(offer()))
    pool = pool_of(ground, board)
    await turns(pool)
    for busy, code, behind_us in [(True, "busy", 0), (False, "", 60_000_000)]:
        ground.silent, ground.code, ground.behind_us = busy, code, behind_us
        await turns(pool, 10)
        assert [state for _, state in board.said[-1][0]] == ["starting"], (
            "gateways keep its streams and send nothing new"
        )
        ground.silent, ground.behind_us = False, 0
        await turns(pool, 2)
        assert [state for _, state in board.said[-1][0]] == ["ready"]
    assert (ground.count, ground.stopped) == (1, [])
    await pool.close()


async def test_one_that_is_busy_for_minutes_is_taken_for_dead(ground, monkeypatch):
    monkeypatch.setattr("serving.host.pool.STUCK_S", 0.05)
    monkeypatch.setattr("serving.host.pool._RETRY_S", (10.0, 10.0))
    pool = pool_of(ground, BoardStandIn(Asked(offer())))
    await turns(pool)
    ground.silent, ground.code = True, "busy"
    await turns(pool, 10)
    assert ground.leases == []
    await pool.close()


async def test_one_that_says_for_ever_that_it_loads_is_given_up(ground, monkeypatch):
    monkeypatch.setattr("serving.host.pool._LOADING_S", 0.05)
    monkeypatch.setattr("serving.host.pool._RETRY_S", (10.0, 10.0))
    pool = pool_of(ground, BoardStandIn(Asked(offer())))
    await turns(pool)
    ground.silent, ground.code = True, "loading"
    await turns(pool, 10)
    assert ground.leases == []
    await pool.close()


async def test_a_pool_that_ends_while_it_waits_for_devices_leaves_no_lease(ground):
    ground.capacity_gate.clear()
    board = BoardStandIn(Asked(offer()))
    pool = pool_of(ground, board)
    await turns(pool, 1)
    await asyncio.wait_for(pool.close(), 5)
    ground.capacity_gate.set()
    await asyncio.sleep(0.02)
    assert (ground.running, ground.leases) == ({}, [])


async def test_another_price_reaches_a_replica_that_goes_on_serving(ground):
    board = BoardStandIn(Asked(offer()))
    pool = pool_of(ground, board)
    await turns(pool)
    (replica_id,) = ground.running
    dearer = Rate(
        version=2, input_uhs_per_mtok=2, cached_uhs_per_mtok=2, output_uhs_per_mtok=2, reasoning_uhs_per_mtok=2
    )
    board.models = [Asked(offer(rates=(dearer,)))]
    await turns(pool)
    assert (list(ground.running), ground.repriced) == ([replica_id], [dearer])
    await pool.close()


async def test_a_replica_whose_node_is_gone_is_replaced_in_another_lease(ground, monkeypatch):
    monkeypatch.setattr("serving.host.pool._RETRY_S", (0.01, 0.01))
    board = BoardStandIn(Asked(offer()))
    pool = pool_of(ground, board)
    await turns(pool)
    ground.lost.add("l1")
    ground.silent = True
    await turns(pool, 2)
    ground.silent = False
    await turns(pool, 4)
    assert (ground.leases, len(ground.running)) == (["l2"], 1)
    assert board.said[-1][1]["m"] == ("starting", "")
    await pool.close()


async def test_what_another_host_has_left_is_swept_before_anything_is_leased(ground):
    board = BoardStandIn(Asked(offer()))
    pool = pool_of(ground, board)
    ground.sweeping = Unavailable("the door is closed")
    for _ in range(2):
        with pytest.raises(Unavailable):
            await pool.turn()
    assert (ground.swept, ground.count) == (0, 0)
    ground.sweeping = None
    await turns(pool)
    assert (ground.swept, ground.count) == (1, 1)
    await pool.close()


async def test_a_model_that_is_withdrawn_while_it_loads_gives_its_lease_back_at_once(ground):
    ground.loads.clear()
    board = BoardStandIn(Asked(offer()))
    pool = pool_of(ground, board)
    await turns(pool)
    assert ground.leases == ["l1"]
    board.models = []
    await turns(pool)
    assert (ground.leases, pool.replicas) == ([], {})
    await pool.close()


async def test_loads_that_fail_again_and_again_stop_until_the_model_is_offered_anew(ground, monkeypatch):
    monkeypatch.setattr("serving.host.pool._RETRY_S", (0.0, 0.0))
    ground.fails = "it is no model"
    board = BoardStandIn(Asked(offer()))
    pool = pool_of(ground, board)
    await turns(pool, 15)
    assert ground.count == 8
    state, reason = board.said[-1][1]["m"]
    assert (state, reason) == ("failed", "given up after 8 failures, offer or scale it to try again: it is no model")
    board.models = [Asked(offer(), changed=2)]
    await turns(pool, 2)
    assert ground.count > 8
    await pool.close()


async def test_to_have_found_no_devices_is_no_failure_of_the_models(ground, monkeypatch):
    monkeypatch.setattr("serving.host.pool._RETRY_S", (0.0, 0.0))
    ground.fails, ground.code = "none came free", "no_capacity"
    pool = pool_of(ground, BoardStandIn(Asked(offer())))
    await turns(pool, 12)
    assert ground.count > 8
    await pool.close()
