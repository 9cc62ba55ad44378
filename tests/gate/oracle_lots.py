"""Lots in the order in which a hold has them, as the auditor compares them."""

from collections import defaultdict

CREDIT = ""


def refilled(queue, back, *, new):
    """What came back stands where it stood: before what was held after it."""
    for lot_id, part in back:
        if queue and queue[0][0] == lot_id:
            queue = [(lot_id, queue[0][1] + part), *queue[1:]]
        elif part:
            queue = [(lot_id, part), *queue]
    return queue + new


def assert_same_lots(parts, transfer):
    found, said = defaultdict(int), defaultdict(int)
    for lot_id, part in parts:
        found[lot_id] += part
    found.pop(CREDIT, None)
    for share in transfer.lots:
        said[share.lot_id] += share.amount_uhs
    assert dict(said) == dict(found), f"{transfer} should have touched {dict(found)}"
    order = list(dict.fromkeys(share.lot_id for share in transfer.lots))
    assert order == list(found), f"{transfer} should have gone in the order {list(found)}"
