"""What is in force at a moment, against somebody who looks at every step."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from fabric.charging.in_force import in_force, turns


class Step(NamedTuple):
    since_us: int
    name: int


STEPS = st.lists(st.integers(0, 9), max_size=6).map(lambda each: [Step(us, at) for at, us in enumerate(sorted(each))])


@given(steps=STEPS, at=st.integers(-1, 10))
def test_the_last_that_has_begun_holds(steps, at):
    begun = [step for step in steps if step.since_us <= at]
    assert in_force(steps, at) == (begun[-1] if begun else None)


@given(steps=STEPS, after=st.integers(-1, 10), until=st.integers(-1, 11))
def test_turns_are_the_moments_between(steps, after, until):
    assert list(turns(steps, after_us=after, until_us=until)) == sorted(
        {step.since_us for step in steps if after < step.since_us < until}
    )
