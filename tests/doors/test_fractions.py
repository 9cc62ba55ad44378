"""A part of a device at the doors: how it is written, sent, and said back."""

import pytest

from fabric.api.messages import message_of, spec_of
from fabric.api.why_text import sentence
from fabric.charging.records import Cdr
from fabric.cli.job_columns import where
from fabric.cli.operator import parts_free, parts_said
from fabric.errors import InvalidRequest
from fabric.gate.events import NodeUp, Pool, Submit, TopUp
from fabric.gate.questions import NodesOf, QuoteOf, WhyOf
from fabric.sdk.answers import quote_of
from fabric.sdk.request import Wanted, build_spec, parse_accelerators
from fabric.units import format_fraction, parse_fraction
from fabric.wire import fabric_pb2 as pb
from tests.gate.world import Clockwork, S, spec


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("H100:1/4", Wanted(("H100",), 1, None, (1, 4))),
        ("H100:0.25", Wanted(("H100",), 1, None, (1, 4))),
        ("any:0.5", Wanted((), 1, None, (1, 2))),
        ("H100:2/8", Wanted(("H100",), 1, None, (1, 4))),
        ("H100:4/4", Wanted(("H100",), 1, None, None)),
        (["H100:1/7", "A100:1/7"], Wanted(("H100", "A100"), 1, None, (1, 7))),
    ],
)
def test_a_part_is_written_where_the_count_is(given, meant):
    assert parse_accelerators(given) == meant


@pytest.mark.parametrize(
    "given", ["H100:0/4", "H100:5/4", "H100:1/0", "H100:0.0", "H100:1/1001", "H100:1.5", "H100:1/2/3"]
)
def test_what_is_no_part_of_a_device_is_refused_with_how_it_is_written(given):
    with pytest.raises(InvalidRequest, match=r"1/4") as refused:
        parse_accelerators(given)
    assert refused.value.code in {"invalid_fraction", "invalid_accelerators"}


def test_parts_of_several_sizes_are_refused_like_counts():
    with pytest.raises(InvalidRequest, match="same count"):
        parse_accelerators(["H100:1/4", "A100:1/2"])


@pytest.mark.parametrize("text", ["1/4", "3/4", "1/7", "999/1000"])
def test_what_is_written_is_what_is_read(text):
    assert format_fraction(parse_fraction(text)) == text
    assert spec_of(
        build_spec(name="j", kind="script", tokens="1", accelerators=f"H100:{text}"), payload=""
    ).fraction == (parse_fraction(text))


def test_whole_devices_say_nothing_of_parts():
    assert not build_spec(name="j", kind="script", tokens="1", accelerators="H100:2").fraction
    assert spec_of(pb.JobSpec(name="j", devices=1, limit_uhs=1), payload="").fraction is None


@pytest.mark.parametrize("given", [[1], [1, 2, 3]])
def test_a_part_that_is_not_two_numbers_is_refused(given):
    with pytest.raises(InvalidRequest, match="two numbers"):
        spec_of(pb.JobSpec(name="j", devices=1, limit_uhs=1, fraction=given), payload="")


def divided():
    at = Clockwork("ada")
    at.do(NodeUp(node_id="n", accelerator="H100", devices=1, pool=Pool.SPOT, units=4, division="time-slice"))
    at.do(TopUp(account_id="ada", amount_uhs=10_000 * S))
    for number, part in enumerate(((1, 2), (1, 4), (1, 2))):
        at.do(Submit(job_id=f"j{number}", account_id="ada", spec=spec(fraction=part)))
    return at


def test_nodes_bills_and_quotes_show_parts():
    at = divided()
    (view,) = at.gate.ask(NodesOf(), now_us=at.now_us)
    node = message_of(view, pb.Node)
    assert (parts_said(node), parts_free(node)) == (" in 4 (time-slice)", " + 1/4")
    instances = pb.Node(devices=14, units=1, fraction=[1, 7], division="mig 1g.10gb")
    assert (parts_said(instances), parts_free(instances)) == (" × 1/7 (mig 1g.10gb)", "")
    quote = quote_of(
        message_of(at.gate.ask(QuoteOf(account_id="ada", spec=spec(fraction=(1, 4))), now_us=at.now_us), pb.QuoteReply)
    )
    assert str(quote).startswith("1/4 × H100, can start now")
    assert where(pb.Cdr(devices=1, accelerator="H100", fraction=[1, 4])) == "1/4 × H100"
    assert where(pb.Cdr(devices=2, accelerator="H100")) == "2 × H100"
    assert "fraction" in {field.name for field in pb.Cdr.DESCRIPTOR.fields} & set(Cdr.__struct_fields__)


def test_why_says_which_part_must_come_free():
    at = divided()
    said = sentence(at.gate.ask(WhyOf(job_id="j2", account_id="ada"), now_us=at.now_us))
    assert "It waits for 1/2 × H100" in said
    assert "0 of 1 spot H100 are free, and at most 1/4 of one that is divided, so 1/2 of one must come free" in said
