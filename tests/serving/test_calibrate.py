"""Rates from throughput: what a busy replica charges is what its devices burn."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.charging.rates import charge_uhs
from fabric.errors import InvalidRequest
from serving.calibrate import Measured, Throughput, measure, rate_of
from serving.calls import Usage

S = 1_000_000


def test_an_h100_at_2500_answer_tokens_a_second_costs_400_uhs_each():
    measured = Measured(prompts=Throughput(25_000, S), answers=Throughput(2_500, S))
    rate = rate_of(measured, model="m", accelerator="H100", devices=1, weight_ppm=1_000_000)
    assert rate.numbers == (40 * S, 4 * S, 400 * S, 400 * S)


@given(st.integers(1, 10**6), st.integers(1, 10**9), st.integers(1, 16), st.integers(10_000, 3_000_000))
def test_a_replica_at_the_reference_load_charges_what_its_devices_burn(tokens, elapsed_us, devices, weight_ppm):
    seen = Throughput(tokens, elapsed_us)
    rate = rate_of(Measured(seen, seen), model="m", accelerator="A", devices=devices, weight_ppm=weight_ppm)
    burned = elapsed_us * devices * weight_ppm / 1_000_000
    assert charge_uhs(rate, Usage(0, 0, tokens)) == pytest.approx(burned, rel=1e-6, abs=1 + tokens / 1e6)


def test_cached_tokens_cost_what_was_measured_but_never_more_than_others():
    dear = Measured(Throughput(10, S), Throughput(10, S), cached=Throughput(1, S))
    cheap = Measured(Throughput(10, S), Throughput(10, S), cached=Throughput(1_000, S))
    rates = [
        rate_of(each, model="m", accelerator="A", devices=1, weight_ppm=S).cached_uhs_per_mtok for each in (dear, cheap)
    ]
    assert rates == [10**11, 10**9]


@pytest.mark.parametrize("nothing", [Throughput(0, S), Throughput(5, 0)])
def test_what_was_not_measured_has_no_rate(nothing):
    with pytest.raises(InvalidRequest, match="longer"):
        rate_of(Measured(nothing, nothing), model="m", accelerator="A", devices=1, weight_ppm=S)


async def test_the_load_is_kept_at_the_reference_and_only_new_tokens_count():
    most, now = 0, 0

    async def ask(prompt, answer):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1
        return prompt, prompt // 2, answer

    measured = await measure(ask, streams=10, prompt_tokens=100, answer_tokens=7, seconds=0.05)
    assert most == 8
    assert measured.prompts.tokens % 50 == 0 < measured.prompts.tokens
    assert measured.answers.tokens % 7 == 0 < measured.answers.tokens
