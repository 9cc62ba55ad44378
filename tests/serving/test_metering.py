"""The meter's rules one by one."""

import pytest

from fabric.errors import Conflict
from serving.calls import Granted, Usage
from serving.metering.book import Metering
from serving.metering.slices import OpenCall, Payer, Short, Terms, affordable, worst_uhs

ANN = Payer("ann")
S = 1_000_000


def charge(usage):
    return usage.prompt_tokens - usage.cached_tokens + 10 * usage.completion_tokens


def meter(**terms):
    return Metering(name="r", model="m", accelerator="H100", charge=charge, terms=Terms(**terms))


def granted(book, *, held, final=False, free=None, prompt=5, wants=8):
    """A meter whose slice holds so much, and a call in it."""
    short = book.open("c", payer=ANN, key_id="", prompt_tokens=prompt, wants=wants, now_us=S)
    book.granted(book.need(ANN, short, S), Granted(held, final, free), now_us=S)
    return book.open("c", payer=ANN, key_id="", prompt_tokens=prompt, wants=wants, now_us=S)


@pytest.mark.parametrize(
    ("held", "paid"),
    [(14, None), (15, 1), (24, 1), (25, 2), (84, 7), (85, 8), (1_000, 8)],
)
def test_a_call_is_given_what_its_slice_covers_and_never_more(held, paid):
    call = granted(meter(), held=held, final=True)
    assert (call.paid if isinstance(call, OpenCall) else None) == paid


def test_a_short_call_says_how_much_it_needs_and_how_much_there_is():
    assert granted(meter(), held=9, final=True) == Short(6, 9, prompt_tokens=5, completion_tokens=1)


def test_a_prompt_found_in_the_cache_costs_less_than_was_bound_for_it():
    book = meter()
    granted(book, held=1_000, prompt=100)
    book.advance("c", completion=2, cached=90, now_us=S)
    assert book.charge_of(book.close("c", ended="stop", now_us=S)) == 10 + 20


def test_coalesced_tokens_are_counted_up_to_the_last_one_that_is_paid():
    book = meter(grant_tokens=2)
    call = granted(book, held=35, final=True, prompt=5)
    assert book.advance("c", completion=7, cached=0, now_us=S) == 3
    assert call.usage.completion_tokens == 3


def test_a_top_up_lets_a_short_call_go_on():
    book = meter(grant_tokens=2)
    granted(book, held=25, final=True)
    assert book.advance("c", completion=3, cached=0, now_us=S) == 2
    ask = book.need_more("c", completion=3, now_us=S)
    assert (ask.kind, ask.amount_uhs, ask.minimum_uhs) == ("update", 10, 10)
    book.granted(ask, Granted(1_025, final=False), now_us=S)
    assert book.advance("c", completion=3, cached=0, now_us=S) >= 3


def test_a_slice_is_renewed_when_a_fifth_is_left_and_only_once():
    book = meter(grant_tokens=1)
    call = granted(book, held=100, wants=1_000)
    for completion in range(1, 9):
        book.advance("c", completion=completion, cached=0, now_us=S)
    (ask,) = book.due(S)
    assert ask.kind == "update"
    assert ask.amount_uhs > 0
    assert book.due(S) == []
    assert call.piece.available_uhs(S, 0) * 5 < 41


def test_a_slice_is_not_used_when_it_is_about_to_end():
    book = meter(ttl_us=60 * S, margin_us=5 * S)
    granted(book, held=1_000)
    assert isinstance(book.open("d", payer=ANN, key_id="", prompt_tokens=1, wants=1, now_us=54 * S), OpenCall)
    assert isinstance(book.open("e", payer=ANN, key_id="", prompt_tokens=1, wants=1, now_us=56 * S), Short)
    assert book.need_more("c", completion=9, now_us=56 * S) is None


def test_validity_counts_from_before_the_ledger_was_asked():
    book = meter(ttl_us=60 * S, margin_us=0)
    short = book.open("c", payer=ANN, key_id="", prompt_tokens=1, wants=1, now_us=S)
    ask = book.need(ANN, short, S)
    book.granted(ask, Granted(1_000, final=False), now_us=62 * S)
    assert isinstance(book.open("c", payer=ANN, key_id="", prompt_tokens=1, wants=1, now_us=62 * S), Short)


def test_an_idle_slice_goes_back_with_what_was_used():
    book = meter(idle_us=2 * S)
    granted(book, held=1_000)
    done = book.close("c", ended="client_gone", now_us=2 * S)
    assert book.due(3 * S) == []
    (ask,) = book.due(4 * S)
    assert (ask.kind, ask.calls) == ("settle", (done,))
    book.granted(ask, Granted(0, final=False), now_us=4 * S)
    assert not book.unsettled()


def test_calls_that_a_vanished_hold_could_not_take_are_settled_late():
    book = meter(report_us=S)
    granted(book, held=1_000)
    book.open("d", payer=ANN, key_id="", prompt_tokens=1, wants=1, now_us=S)
    done = book.close("c", ended="stop", now_us=S)
    (ask,) = book.due(3 * S)
    assert ask.calls == (done,)
    book.refused(ask, gone=True, now_us=3 * S)
    last = book.close("d", ended="error", now_us=3 * S)
    (settle,) = book.due(3 * S)
    assert (settle.kind, settle.calls) == ("settle", (done, last))


def test_open_streams_go_on_and_are_extended_while_the_replica_leaves():
    book = meter(grant_tokens=1)
    granted(book, held=16, wants=50)
    assert [ask.kind for ask in book.leave(S)] == ["update"]
    assert book.advance("c", completion=2, cached=0, now_us=S) == 1
    book.granted(book.need_more("c", completion=2, now_us=S), Granted(500, final=False), now_us=S)
    assert book.advance("c", completion=2, cached=0, now_us=S) >= 2
    book.close("c", ended="stop", now_us=S)
    assert [ask.kind for ask in book.due(S)] == ["settle"]


def test_a_call_id_that_is_open_is_refused():
    book = meter()
    granted(book, held=1_000)
    with pytest.raises(Conflict, match="c is running"):
        book.open("c", payer=ANN, key_id="", prompt_tokens=1, wants=1, now_us=S)


def test_a_covered_call_needs_no_hold_is_recorded_and_costs_nothing():
    book, payer = meter(idle_us=S), Payer("ann", covered=True)
    assert isinstance(book.open("c", payer=payer, key_id="k", prompt_tokens=9, wants=999, now_us=S), OpenCall)
    assert book.advance("c", completion=999, cached=0, now_us=S) == 999
    done = book.close("c", ended="stop", now_us=S)
    assert (done.covered, done.usage, book.charge_of(done)) == (True, Usage(9, 0, 999), 0)
    (ask,) = book.due(3 * S)
    assert (ask.kind, ask.calls) == ("record", (done,))
    book.granted(ask, Granted(0, final=False), now_us=3 * S)
    assert not book.unsettled()


@pytest.mark.parametrize(("budget", "tokens"), [(15, 1), (16, 1), (34, 2), (35, 3), (4_000, 200)])
def test_what_is_affordable_is_the_most_that_fits(budget, tokens):
    assert affordable(charge, 5, least=1, most=200, budget_uhs=budget) == tokens
    assert worst_uhs(charge, 5, tokens) <= budget


def test_a_call_is_charged_by_the_rates_that_it_began_with():
    book = meter()
    granted(book, held=100_000)
    book.reprice(lambda usage: 1_000 * usage.completion_tokens, rate_version=7)
    book.open("d", payer=ANN, key_id="", prompt_tokens=5, wants=8, now_us=S)
    for call_id in ("c", "d"):
        book.advance(call_id, completion=3, cached=0, now_us=S)
    old, new = (book.close(call_id, ended="stop", now_us=S) for call_id in ("c", "d"))
    assert (old.rate_version, book.charge_of(old)) == (0, 35)
    assert (new.rate_version, book.charge_of(new)) == (7, 3_000)
