"""Your own Ray tasks and actors in devices that are leased: the fabric holds the place, you schedule into it.

    python examples/lease.py

This process must be one of the cluster's: Ray's address and token come from its operator. With a local fabric:

    cd ~/.local/state/token-fabric
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/ray.token RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
    export RAY_ADDRESS=$(python -c 'import json; print(json.load(open("run.json"))["ray_address"])')
"""

import ray

import fabric


@ray.remote
def square(n: int) -> int:
    return n * n


@ray.remote
class Total:
    def __init__(self) -> None:
        self.total = 0

    def add(self, n: int) -> int:
        self.total += n
        return self.total


def main() -> None:
    fabric.connect()
    ray.init(log_to_driver=False)
    with fabric.lease(tokens="0.1", accelerators="any:2") as lease:
        place = lease.options(devices=1)
        total = Total.options(**place).remote()
        for found in ray.get([square.options(**place).remote(n) for n in range(10)]):
            last = ray.get(total.add.remote(found))
    print(f"the sum is {last}; it took {lease.job.cost().burned_ct} tokens so far")
    ray.shutdown()


if __name__ == "__main__":
    main()
