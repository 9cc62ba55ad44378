"""What a fabric that goes down says of calls that the ledger has not heard of."""

from fabric.daemon import unsettled_calls
from serving.calls import Call, Usage
from serving.metering.call_log import CallLog
from serving.metering.slices import Ask, Payer


def test_calls_in_outboxes_that_nobody_has_open_are_counted_and_stay(tmp_path):
    assert unsettled_calls(tmp_path) == 0
    ask = Ask("authorize", "h1", Payer("ann"), 0, ())
    boxes = [CallLog(tmp_path / "serving" / f"r{number}.outbox") for number in range(2)]
    for number, box in enumerate(boxes):
        box.held(ask)
        for each in range(3):
            box.began("h1", Call(f"c{number}{each}", "ann", "k", "m", "H100", Usage(7), 1, 2, "error"))
    assert unsettled_calls(tmp_path) == 0, "their replicas live"
    boxes[0].close()
    assert unsettled_calls(tmp_path) == unsettled_calls(tmp_path) == 3
    boxes[1].close()
    assert unsettled_calls(tmp_path) == 6
