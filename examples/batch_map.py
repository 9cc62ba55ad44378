"""A function over many inputs, a job for each part: results come as they are ready, and what each cost.

    python examples/batch_map.py --parts 4

A local fabric gives one to try: `fabric up --local`, `fabric topup 1`. Parts that fail are told at the end; the others count.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import fabric
from fabric import errors


def primes_between(low: int, high: int) -> int:
    """The work: any function of yours, with what it imports."""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(low, 2), high))


def parts_of(end: int, count: int) -> Iterator[tuple[int, int]]:
    size = -(-end // count)
    return ((at, min(at + size, end)) for at in range(0, end, size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--end", type=int, default=40_000)
    parser.add_argument("--tokens", default="0.01", help="the most that one part may burn")
    given = parser.parse_args()

    fabric.connect()
    jobs = [
        fabric.submit(
            primes_between, low, high, tokens=given.tokens, accelerators="any:1", service="batch", tags=["primes"]
        )
        for low, high in parts_of(given.end, given.parts)
    ]
    found, failed = 0, []
    with ThreadPoolExecutor(max_workers=16) as pool:
        waits = {pool.submit(job.result): job for job in jobs}
        for wait in as_completed(waits):
            job = waits[wait]
            try:
                found += wait.result()
            except errors.JobFailed as error:
                failed.append(f"{job.id}: {error}")
            else:
                print(f"{job.id}: {wait.result()} primes, {job.cost().burned_ct} tokens")
    print(f"{found} primes below {given.end}")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
