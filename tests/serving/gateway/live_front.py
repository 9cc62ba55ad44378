"""A gateway before a real engine, in a thread of its own."""

import asyncio
import contextlib
import threading

from serving.gateway.directory import Replica
from tests.serving.gateway.house import house_of
from tests.serving.rig import TRUST


@contextlib.contextmanager
def before(rig, place):
    """Before the engine of a rig, which serves byte-lm; the house has a key of an account that is rich."""
    loop, ready, end, found = asyncio.new_event_loop(), threading.Event(), asyncio.Event(), {}

    async def serve():
        async with house_of(place, replicas=0, trust=TRUST, model="byte-lm") as house:
            account = rig.account(uhs=10**12)
            house.key = house.directory.add_key("live", account, tier_rank=1)
            replica = Replica(replica_id="live", model="byte-lm", address=rig.address, accelerator="CPU", capacity=16)
            house.directory.show(replica)
            found["house"], found["account"] = house, account
            await house.settled(lambda: house.gateway.pools.of("byte-lm", account)[0].replicas)
            ready.set()
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield found["house"]
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(30)
        loop.close()
