"""What metering costs: the same engine plain and metered, side by side, asked in turn in one run.

Both run the same random model with the same flags: one with some milliseconds between tokens, or, with `--size demo`, as
small as the demo's, where the work for each output shows most. Prints for 1 and 8 streams at once the time to the first
token, the time between tokens and the throughput, and metered beside plain as the median over the rounds, in each of
which both are asked.
"""

import argparse
import asyncio
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import aiohttp

from tests.bench.yardstick import print_yardstick

HERE = Path(__file__).parent
SIZES = {"demo": {}, "larger": {"width": 512, "inner": 1536, "layers": 8, "heads": 8}}
WARM = 3


def standins():
    """The tests' rig: the folder is no package."""
    package = types.ModuleType("serving_tests")
    package.__path__ = [str(HERE.parent / "serving")]
    sys.modules["serving_tests"] = package
    from serving_tests import rig

    return rig


def make_model(folder, size):
    from training.demo.llama import Llama, Shape
    from training.demo.llama_export import VOCABULARY, export_llama

    model = Llama(Shape(vocabulary=VOCABULARY, **size))
    model.begin()
    export_llama(folder, model)


def start_plain(folder, rig_spec):
    """vLLM's own server, with the flags that ours has; its process and address."""
    from serving.engines.parts.options import FLAGS, ON_CPU, QUIET, arguments

    argv = arguments(folder, name="byte-lm", max_context=512, kv_bytes=rig_spec.kv_bytes, on_cpu=True)
    module = "vllm.entrypoints.launchers.api_server.entry"
    port = 18000 + os.getpid() % 2000
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", module, *argv, *FLAGS, "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | QUIET | ON_CPU,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return process, f"http://127.0.0.1:{port}"


async def until_up(session, url):
    for _ in range(600):
        try:
            async with session.get(url + "/health") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.5)
    raise SystemExit(f"{url} did not start")


async def one(session, url, headers, number, *, tokens):
    """(seconds to the first token, seconds between tokens, tokens) of one stream."""
    body = {
        "model": "byte-lm", "prompt": f"# {number}\nimport os", "max_tokens": tokens, "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    began, times, counted, lines = time.perf_counter(), [], 0, []
    async with session.post(url + "/v1/completions", json=body, headers=headers(number)) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            lines.append(line)
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())
                chunk = json.loads(line[6:])
                if chunk.get("usage"):
                    counted = chunk["usage"]["completion_tokens"]
    assert counted == tokens, (url, counted, b"".join(lines[-6:]))
    gaps = [after - before for before, after in itertools.pairwise(times[:-1])]
    return times[0] - began, statistics.median(gaps), counted


async def measure(session, target, *, streams, tokens, numbers):
    began = time.perf_counter()
    found = await asyncio.gather(
        *(one(session, target[0], target[1], next(numbers), tokens=tokens) for _ in range(streams))
    )
    took = time.perf_counter() - began
    firsts, gaps, counts = zip(*found, strict=True)
    return list(firsts), statistics.median(gaps), sum(counts) / took


async def compare(targets, *, rounds, tokens):
    numbers = itertools.count()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        for url, _ in targets.values():
            await until_up(session, url)
        for streams in (1, 8):
            seen = {name: ([], [], []) for name in targets}
            for turn in range(WARM + rounds):
                order = list(targets) if turn % 2 else list(targets)[::-1]
                for name in order:
                    firsts, gap, rate = await measure(
                        session, targets[name], streams=streams, tokens=tokens, numbers=numbers
                    )
                    if turn >= WARM:
                        seen[name][0].extend(firsts)
                        seen[name][1].append(gap)
                        seen[name][2].append(rate)
            report(streams, seen)


def report(streams, seen):
    print(f"\n{streams} stream{'s' if streams > 1 else ''} at once")
    rows = {}
    for name, (unsorted, gaps, rates) in seen.items():
        firsts = sorted(unsorted)
        rows[name] = (
            statistics.median(firsts) * 1e3,
            firsts[min(len(firsts) - 1, len(firsts) * 99 // 100)] * 1e3,
            statistics.median(gaps) * 1e3,
            statistics.median(rates),
        )
        print(
            f"  {name:8} first token p50 {rows[name][0]:7.2f} ms  p99 {rows[name][1]:7.2f} ms"
            f"  between tokens {rows[name][2]:6.3f} ms  {rows[name][3]:7.1f} tokens/s"
        )
    (plain, plain_gaps, plain_rates), (metered, gaps, rates) = seen["plain"], seen["metered"]
    added = statistics.median(ours - theirs for ours, theirs in zip(metered, plain, strict=True)) * 1e3
    between = statistics.median(ours - theirs for ours, theirs in zip(gaps, plain_gaps, strict=True)) * 1e3
    kept = sorted(100 * ours / theirs for ours, theirs in zip(rates, plain_rates, strict=True))
    low, high = kept[len(kept) // 4], kept[3 * len(kept) // 4]
    print(
        f"  metering adds {added:+.2f} ms to the first token, {between:+.3f} ms between tokens, and keeps"
        f" {statistics.median(kept):.1f} % of the throughput (medians of the rounds' pairs; its quartiles {low:.1f}, {high:.1f})"
    )


async def work_of_the_meter(place, rig_module, *, calls=200, outputs=200):
    """CPU time of the meter alone, by output and by call: what other work on the machine can't change."""
    from serving_tests.ledger_standin import LedgerStandIn

    from fabric.charging.rates import charge_uhs
    from serving.metering.book import Metering
    from serving.metering.call_log import CallLog
    from serving.metering.meter import Meter
    from serving.metering.slices import Payer

    charge = functools.partial(charge_uhs, rig_module.RATE)
    ledger = LedgerStandIn(charge)
    ledger.top_up("ann", 10**15)
    book = Metering(name="bench", model="m", accelerator="CPU", charge=charge)
    meter = Meter(book, CallLog(Path(place) / "bench.outbox"), ledger)
    await meter.start()
    opening = moving = ending = 0
    for number in range(calls):
        began = time.process_time_ns()
        await meter.open(f"c{number}", payer=Payer("ann"), key_id="k", prompt_tokens=100, wants=outputs)
        opened = time.process_time_ns()
        for tokens in range(1, outputs + 1):
            if meter.advance(f"c{number}", completion=tokens, cached=0) < tokens:
                await meter.extend(f"c{number}", completion=tokens, cached=0)
        moved = time.process_time_ns()
        meter.end(f"c{number}", "length")
        opening, moving, ending = (
            opening + opened - began, moving + moved - opened, ending + time.process_time_ns() - moved,
        )  # fmt: skip
    await meter.close()
    print(
        f"the meter alone, CPU time: {moving / calls / outputs / 1e3:.1f} µs an output,"
        f" {opening / calls / 1e3:.0f} µs to open a call, {ending / calls / 1e3:.0f} µs to end it;"
        f" {ledger.messages.total()} messages for {calls} calls"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="larger")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    print_yardstick()
    from serving.metering.slices import Terms

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        make_model(folder, SIZES[given.size])
        rig_module = standins()
        asyncio.run(work_of_the_meter(place, rig_module))
        rig = rig_module.Rig(folder, Path(place) / "replica", terms=Terms())  # the product's
        plain, url = start_plain(folder, rig.spec)
        try:
            rig.start()
            account = rig.account(uhs=10**12)
            targets = {
                "plain": (url, lambda number: {}),
                "metered": (rig.address, lambda number: rig.headers(account, call_id=f"bench-{number}")),
            }
            asyncio.run(compare(targets, rounds=given.rounds, tokens=given.tokens))
            calls = [call for call in rig.ledger.calls.values() if call.account_id == account]
            sent = rig.ledger.messages.total()
            print(f"\nledger: {sent} messages for {len(calls)} settled calls")
        finally:
            plain.terminate()
            plain.wait(30)
            rig.stop()
            rig.wire.close()


if __name__ == "__main__":
    main()
