"""Adapters in the pool: no leases of their own; their parent's replicas are told of them, and say how they get on."""

import msgspec

from fabric.errors import Unavailable
from serving.host.pool import Asked
from tests.serving.test_pool import RATE, BoardStandIn, ground, offer, pool_of, turns

__all__ = ["ground"]


def law(**said):
    return offer(**{"name": "law", "parent": "m", "source": "/lora/law", "replicas_min": 0, "replicas_max": 1} | said)


async def test_an_adapter_takes_no_lease_and_is_loaded_by_its_parents_replicas(ground):
    board = BoardStandIn(Asked(offer()), Asked(law(), changed=1))
    pool = pool_of(ground, board)
    await turns(pool)
    assert (len(ground.leases), ground.adapted) == (1, [[("law", "/lora/law", "1")]])
    await turns(pool)
    assert board.said[-1][1]["law"] == ("starting", ""), "whether it is ready, its parent's replicas say"
    board.models = [Asked(offer()), Asked(law(source="/lora/new"), changed=2)]
    await turns(pool)
    assert ground.adapted[1:] == [[("law", "/lora/new", "2")]]
    board.models = [Asked(offer())]
    await turns(pool)
    assert ground.adapted[2:] == [[]]
    assert len(ground.leases) == 1
    await pool.close()


async def test_an_adapter_that_cannot_be_loaded_says_why_until_it_is_offered_anew(ground):
    ground.unfit = {"law": "it has rank 32, at most 16 may be"}
    board = BoardStandIn(Asked(offer()), Asked(law(), changed=1))
    pool = pool_of(ground, board)
    await turns(pool, 5)
    assert board.said[-1][1]["law"] == ("failed", "it has rank 32, at most 16 may be")
    assert len(ground.adapted) == 1, "it is not tried again and again"
    ground.unfit = {}
    board.models = [Asked(offer()), Asked(law(), changed=2)]
    await turns(pool, 5)
    assert board.said[-1][1]["law"] == ("starting", "")
    await pool.close()


async def test_who_cannot_be_told_of_adapters_goes_on_and_is_told_again(ground, monkeypatch):
    """Their parent's customers are served all the same."""
    told = []

    async def adapt(_, adapters):
        told.append(len(adapters))
        raise Unavailable("the replica's process takes no word", code="replica_unreachable")

    monkeypatch.setattr("serving.host.pool._SILENT_S", 0.0)
    monkeypatch.setattr(ground, "adapt", adapt)
    pool = pool_of(ground, BoardStandIn(Asked(offer()), Asked(law(), changed=1)))
    await turns(pool, 6)
    assert (len(told) > 2, ground.stopped, len(ground.leases)) == (True, [], 1)
    await pool.close()


async def test_another_price_reaches_an_adapter_that_is_loaded(ground):
    board = BoardStandIn(Asked(offer()), Asked(law(), changed=1))
    pool = pool_of(ground, board)
    await turns(pool)
    board.models = [Asked(offer()), Asked(law(rates=(msgspec.structs.replace(RATE, version=5),)), changed=1)]
    await turns(pool)
    assert ground.adapters[0].rate_version == 5
    await pool.close()


async def test_a_restart_in_place_gets_its_adapters_again(ground):
    board = BoardStandIn(Asked(offer()), Asked(law(), changed=1))
    pool = pool_of(ground, board)
    await turns(pool)
    ground.adapters = ()
    await turns(pool)
    assert ground.adapted == [[("law", "/lora/law", "1")]] * 2
    await pool.close()


async def test_an_adapter_without_a_rate_there_says_so_and_others_are_loaded(ground):
    elsewhere = msgspec.structs.replace(RATE, accelerator="A100")
    board = BoardStandIn(Asked(offer()), Asked(law(rates=(elsewhere,)), changed=1), Asked(law(name="med"), changed=1))
    pool = pool_of(ground, board)
    await turns(pool, 4)
    assert [[name for name, _, _ in each] for each in ground.adapted] == [["med"]]
    assert "no rate on H100" in board.said[-1][1]["law"][1]
    await pool.close()
