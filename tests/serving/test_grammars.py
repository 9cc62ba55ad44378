"""What is remembered of grammars, who may have them compiled, and that the process may die: with a stand-in for it."""

import asyncio
import sys
import time

import pytest

from fabric.errors import InvalidRequest, RateLimited, Unavailable
from serving import grammar_process, limits
from serving.grammars import Grammars

SCRIPT = """
import base64, json, sys, time
sys.stdin.readline()
print("{}", flush=True)
print("what some library says", flush=True)
for line in sys.stdin:
    number, spec = line.split()
    asked = json.loads(base64.b64decode(spec))["regex"]
    if asked == "die":
        sys.exit(3)
    if asked.startswith("slow"):
        time.sleep(0.2)
    said = {"over": "time"} if asked.startswith("dear") else {"why": "no"} if asked.startswith("bad") else {"backend": "b"}
    sys.stderr.write("asked\\n")
    print(json.dumps({"number": int(number), "verdict": {**said, "cpu_s": 5.0 if "dear" in asked else 0.1}}), flush=True)
"""


@pytest.fixture
async def grammars():
    now = [0.0]
    opened = Grammars(b"", command=(sys.executable, "-S", "-c", SCRIPT), monotonic=lambda: now[0])
    opened.now = now
    yield opened
    await opened.close()


async def test_what_came_of_a_grammar_is_remembered_good_or_bad(grammars, capfd):
    for _ in range(3):
        assert (await grammars.check("ann", {"regex": "a"})).backend == "b"
        with pytest.raises(InvalidRequest, match="no") as bad:
            await grammars.check("bob", {"regex": "bad"})
        with pytest.raises(InvalidRequest, match="5 s to compile") as dear:
            await grammars.check("cem", {"regex": "dear"})
    assert (bad.value.code, dear.value.code) == ("invalid_grammar", "grammar_too_costly")
    assert capfd.readouterr().err.count("asked") == 3


async def test_the_same_grammar_asked_by_many_is_compiled_once(grammars, capfd):
    await asyncio.gather(*(grammars.check(f"a{n}", {"regex": "slow"}) for n in range(30)))
    assert capfd.readouterr().err.count("asked") == 1


async def test_a_grammar_that_is_too_large_is_not_even_looked_at(grammars):
    with pytest.raises(InvalidRequest, match=str(limits.GRAMMAR_BYTES_MAX)):
        await grammars.check("ann", {"regex": "a" * limits.GRAMMAR_BYTES_MAX})
    assert grammars._process is None


async def test_what_cannot_be_passed_on_is_no_grammar(grammars):
    with pytest.raises(InvalidRequest, match="passed on"):
        await grammars.check("ann", {"json": {"pattern": "\ud800"}})


async def test_an_account_has_a_share_of_processor_time_and_it_comes_back(grammars):
    for number in range(6):
        with pytest.raises(InvalidRequest):
            await grammars.check("ann", {"regex": f"dear{number}"})
    with pytest.raises(RateLimited) as refused:
        await grammars.check("ann", {"regex": "dear6"})
    assert refused.value.facts["retry_after_s"] >= 1
    assert (await grammars.check("bob", {"regex": "another's"})).is_accepted
    with pytest.raises(InvalidRequest):
        await grammars.check("ann", {"regex": "dear0"})  # known: costs nothing
    grammars.now[0] += refused.value.facts["retry_after_s"]
    assert (await grammars.check("ann", {"regex": "cheap"})).is_accepted


async def test_grammars_of_one_account_wait_for_each_other_and_no_other_account_does(grammars):
    mine = [
        asyncio.ensure_future(grammars.check("ann", {"regex": f"slow{n}"})) for n in range(limits.GRAMMARS_WAITING_MAX)
    ]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await grammars.check("ann", {"regex": "slow and one more"})
    assert (await grammars.check("bob", {"regex": "a"})).is_accepted
    assert not all(each.done() for each in mine)
    await asyncio.gather(*mine)
    assert (grammars._waiting, dict(grammars._lines)) == ({}, {})


async def test_the_process_may_die_and_the_next_grammar_has_another(grammars):
    with pytest.raises(Unavailable):
        await grammars.check("ann", {"regex": "die"})
    assert (await grammars.check("ann", {"regex": "a"})).is_accepted


async def test_a_process_that_does_not_start_is_said_to_be_away():
    broken = Grammars(b"", command=(sys.executable, "-S", "-c", "raise SystemExit(1)"))
    with pytest.raises(Unavailable, match="can't be compiled now"):
        await broken.check("ann", {"regex": "a"})
    await broken.close()


class SlowAtFirst:
    """A grammar whose first look costs a new process as much as its memory does, and the next ones nothing."""

    def __init__(self, slow):
        self.slow = slow

    def fill_bitmask(self, _mask, _at):
        self.slow -= 1
        until = time.thread_time() + 2 * limits.GRAMMAR_STEP_S
        while self.slow >= 0 and time.thread_time() < until:
            pass


def test_a_grammar_is_slow_where_it_stays_slow_not_at_its_first_look():
    assert grammar_process._filled_in(SlowAtFirst(1), None) < limits.GRAMMAR_STEP_S
    assert grammar_process._filled_in(SlowAtFirst(10**6), None) > limits.GRAMMAR_STEP_S
