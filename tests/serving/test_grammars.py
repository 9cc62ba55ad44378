"""What is remembered of grammars, who may have them compiled, and that the process may die: with a stand-in for it."""

import asyncio
import sys
import time

import pytest

from fabric.errors import InvalidRequest, RateLimited, Unavailable
from serving import grammar_process, limits
from serving.grammars import Grammars, Running

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
        with pytest.raises(InvalidRequest, match="15 s to compile") as dear:
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
    for number in range(round(limits.GRAMMAR_BUDGET_S / (limits.GRAMMAR_REFUSED_COUNTS * 5.0))):
        with pytest.raises(InvalidRequest):
            await grammars.check("ann", {"regex": f"dear{number}"})
    with pytest.raises(RateLimited) as refused:
        await grammars.check("ann", {"regex": "one more that is dear"})
    assert refused.value.facts["retry_after_s"] >= 1
    assert (await grammars.check("bob", {"regex": "another's"})).is_accepted
    with pytest.raises(InvalidRequest):
        await grammars.check("ann", {"regex": "dear0"})  # known: costs nothing
    grammars.now[0] += refused.value.facts["retry_after_s"]
    assert (await grammars.check("ann", {"regex": "cheap"})).is_accepted


async def test_what_costs_too_much_counts_more_than_what_is_taken(grammars):
    for number in range(100):
        assert (await grammars.check("ann", {"regex": f"a{number}"})).is_accepted
    assert 9.0 < grammars._used_s("ann") < 10.1
    with pytest.raises(InvalidRequest):
        await grammars.check("eve", {"regex": "dear"})
    assert grammars._used_s("eve") == 5.0 * limits.GRAMMAR_REFUSED_COUNTS


async def test_accounts_that_use_much_share_a_place_and_leave_one_to_the_rest(grammars):
    for name in ("eve", "mallory", "trudy"):
        grammars._used[name] = (limits.GRAMMAR_MUCH_S + 1, 0.0)
    much = [
        asyncio.ensure_future(grammars.check(name, {"regex": f"slow {name}"})) for name in ("eve", "mallory", "trudy")
    ]
    await grammars.check("ann", {"regex": "a"})
    assert sum(each.done() for each in much) < 3
    await asyncio.gather(*much)


async def test_what_is_remembered_is_bounded_in_bytes(grammars, monkeypatch):
    monkeypatch.setattr(limits, "GRAMMARS_KEPT_BYTES", 2_000)
    for number in range(12):
        await grammars.check("ann", {"regex": f"a{number}"})
    assert grammars._kept_bytes <= 2_000
    assert 1 <= len(grammars._known) < 12


def test_what_an_engine_has_in_memory_of_grammars_is_bounded_for_each_account():
    running, most = Running(), limits.GRAMMARS_RUNNING_BYTES
    with running.one_more("ann", most - 10), running.one_more("ann", 10):
        with pytest.raises(RateLimited), running.one_more("ann", 1):
            pass
        with running.one_more("bob", most):
            pass
    with running.one_more("ann", most):
        assert running._all == most
    assert (running._all, running._by_account) == (0, {})


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


def test_one_slow_step_is_let_pass_and_slow_ones_all_the_while_are_not():
    once, always, very = grammar_process.Pace(), grammar_process.Pace(), grammar_process.Pace()
    for step in range(200):
        once.took(0.05 if step == 100 else 0.001)
        always.took(0.015)
    very.took(limits.GRAMMAR_STEP_S * 1.1)
    assert (once.is_slow, always.is_slow, very.is_slow) == (False, True, True)


def test_a_grammar_is_slow_where_it_stays_slow_not_at_its_first_look():
    assert grammar_process._filled_in(SlowAtFirst(1), None) < limits.GRAMMAR_STEP_S
    assert grammar_process._filled_in(SlowAtFirst(10**6), None) > limits.GRAMMAR_STEP_S
