"""A network between the gate and all who serve, that swallows everything or breaks again and again, while customers stream.

Replicas go on from the slices they have, nobody hangs, and when it is over every call is booked once, as the engine made it.
The network is a stand-in (`tests.relay`); replicas, gateways, meters and the door are those of `test_money`.
"""

import asyncio

import pytest

from tests.relay import Relay
from tests.serving.gateway.test_fabric_directory import announce
from tests.serving.gateway.test_money import doors, is_booked_once_and_right, run  # noqa: F401 - a fixture


class Beyond:
    """The doors, as they are reached through the network."""

    def __init__(self, real, relay):
        self._real = real
        self.address = f"127.0.0.1:{relay.port}"

    def __getattr__(self, name):
        return getattr(self._real, name)

    def profile(self, api_key, account=""):
        found = self._real.profile(api_key, account)
        return type(found)(address=self.address, api_key=found.api_key, ca=found.ca, account=found.account)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seed", "seconds", "longest_s"),
    [(1, 20, 7), *(pytest.param(seed, 200, 120, marks=pytest.mark.soak) for seed in (2, 3))],
)
async def test_a_gate_beyond_a_network_that_swallows_everything_books_each_call_once(
    doors,  # noqa: F811 - a fixture
    tmp_path,
    seed,
    seconds,
    longest_s,
):
    print("seed", seed)
    state_dir = tmp_path / "state"
    with Relay(doors.server.port) as relay:
        beyond = Beyond(doors, relay)
        announce(beyond, state_dir)

        async def cut(over, rng):
            while not over.is_set():
                await asyncio.sleep(rng.uniform(0.5, 2))
                how = rng.choice(("silent", "silent", "reset", "late"))
                relay.cut(how, late_s=0.5)
                await asyncio.sleep(longest_s * max(0.6, rng.random()) if how == "silent" else rng.uniform(0.1, 2))
                relay.mend()
                await asyncio.sleep(rng.uniform(4, 6))

        replicas, seen, codes = await run(beyond, state_dir, seed, behind=False, seconds=seconds, harm=cut)
    logs = "\n".join(path.read_text()[-2_000:] for path in state_dir.glob("*.log"))
    assert codes == [0, 0, 0, 0], logs
    is_booked_once_and_right(doors, replicas, seen)
    assert not seen["hung"]
