"""One way from a message to a record: by name, with defaults where nothing is said."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.api.messages import message_of
from fabric.charging.rates import Rate
from fabric.gate.serving_events import ModelSpec
from fabric.wire import fabric_pb2 as pb
from fabric.wire.structs import struct_of
from serving.host.pool import Offer

COUNTS = st.integers(0, 2**31 - 1)
RATES = st.builds(
    Rate, model=st.text(max_size=9), version=COUNTS, accelerator=st.text(max_size=9), input_uhs_per_mtok=COUNTS,
    cached_uhs_per_mtok=COUNTS, output_uhs_per_mtok=COUNTS, reasoning_uhs_per_mtok=COUNTS,
)  # fmt: skip


@given(RATES)
def test_a_rate_comes_back_as_it_went(rate):
    assert struct_of(message_of(rate, pb.Rate), Rate) == rate


def test_a_field_that_is_not_set_keeps_the_records_default():
    made = struct_of(pb.ModelSpec(name="m", source="/m"), ModelSpec, devices=1)
    assert (made.max_context, made.dedicated_to, made.ttft_objective_us, made.accelerators) == (None, None, None, ())
    assert struct_of(pb.ModelSpec(name="m", source="/m", max_context=0), ModelSpec).max_context == 0


def test_what_is_said_beside_goes_before_what_the_message_says():
    assert struct_of(pb.ModelSpec(name="m", source="/m", devices=8), ModelSpec, devices=2).devices == 2


@pytest.mark.parametrize("kind", [ModelSpec, Offer])
def test_every_scalar_of_a_models_message_is_one_of_the_record(kind):
    """A field that is added to the message and forgotten in the record would be dropped without a word."""
    ours = {field.name for field in msgspec.structs.fields(kind)}
    assert {field.name for field in pb.ModelSpec.DESCRIPTOR.fields} <= ours
