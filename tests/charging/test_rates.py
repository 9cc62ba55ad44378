"""Rates: what LLM tokens cost, rounded once; held up, captured half-even."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.charging.rates import (
    LLM_TOKENS_MAX,
    RATE_MAX_UHS_PER_MTOK,
    Rate,
    charge_uhs,
    flaw_of,
    miscounted,
    rate_for,
    worst_uhs,
)
from fabric.units import INT64_MAX
from serving.calls import Usage

numbers = st.integers(0, RATE_MAX_UHS_PER_MTOK)
rates = st.builds(
    Rate,
    input_uhs_per_mtok=numbers,
    cached_uhs_per_mtok=numbers,
    output_uhs_per_mtok=numbers,
    reasoning_uhs_per_mtok=numbers,
)


@st.composite
def usages(draw):
    prompt, completion = draw(st.integers(0, LLM_TOKENS_MAX)), draw(st.integers(0, LLM_TOKENS_MAX))
    return Usage(
        prompt_tokens=prompt, cached_tokens=draw(st.integers(0, prompt)), completion_tokens=completion,
        reasoning_tokens=draw(st.integers(0, completion)),
    )  # fmt: skip


def of(*four, accelerator=""):
    fields = ("input", "cached", "output", "reasoning")
    return Rate(
        accelerator=accelerator, **{f"{name}_uhs_per_mtok": each for name, each in zip(fields, four, strict=True)}
    )


@given(rates, usages())
def test_a_charge_is_the_exact_sum_rounded_once_half_even(rate, usage):
    exact = (
        (usage.prompt_tokens - usage.cached_tokens) * Fraction(rate.input_uhs_per_mtok, 10**6)
        + usage.cached_tokens * Fraction(rate.cached_uhs_per_mtok, 10**6)
        + (usage.completion_tokens - usage.reasoning_tokens) * Fraction(rate.output_uhs_per_mtok, 10**6)
        + usage.reasoning_tokens * Fraction(rate.reasoning_uhs_per_mtok, 10**6)
    )
    assert charge_uhs(rate, usage) == round(exact)


@given(rates, usages())
def test_no_call_costs_more_than_its_worst_case_and_that_fits_64_bits(rate, usage):
    worst = worst_uhs(rate, prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)
    assert 0 <= charge_uhs(rate, usage) <= worst <= INT64_MAX


@pytest.mark.parametrize(("prompt", "charged", "worst"), [(1, 0, 1), (3, 2, 2), (5, 2, 3), (2, 1, 1)])
def test_half_a_uhs_goes_to_the_even_side_and_a_hold_goes_up(prompt, charged, worst):
    rate = of(500_000, 0, 0, 0)
    assert charge_uhs(rate, Usage(prompt_tokens=prompt)) == charged
    assert worst_uhs(rate, prompt_tokens=prompt, completion_tokens=0) == worst


def test_the_rate_of_the_type_goes_before_the_one_for_any():
    any_type, h100 = of(1, 1, 1, 1), of(2, 2, 2, 2, accelerator="H100")
    assert rate_for((any_type, h100), accelerator="H100") is h100
    assert rate_for((h100, any_type), accelerator="A100") is any_type
    assert rate_for((h100,), accelerator="A100") is None


@pytest.mark.parametrize("four", [(-1, 0, 0, 0), (0, 0, 0, RATE_MAX_UHS_PER_MTOK + 1)])
def test_a_rate_below_zero_or_beyond_reason_has_a_flaw(four):
    assert "a rate is 0 to" in flaw_of(of(*four))
    assert flaw_of(of(0, 0, 0, RATE_MAX_UHS_PER_MTOK)) == ""


@pytest.mark.parametrize(
    ("usage", "wrong"),
    [
        (Usage(prompt_tokens=3, cached_tokens=3, completion_tokens=2, reasoning_tokens=2), ""),
        (Usage(prompt_tokens=-1), "a call counts"),
        (Usage(prompt_tokens=LLM_TOKENS_MAX + 1), "a call counts"),
        (Usage(prompt_tokens=3, cached_tokens=4), "4 cached of 3"),
        (Usage(prompt_tokens=0, completion_tokens=1, reasoning_tokens=2), "2 reasoning of 1"),
    ],
)
def test_counts_that_can_not_be_are_told(usage, wrong):
    assert wrong in miscounted(usage)
    assert bool(miscounted(usage)) == bool(wrong)
