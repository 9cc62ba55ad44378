"""The book: double-entry accounts for compute tokens, as one plain value and the ways to change it.

A refusal changes nothing, beyond what the time would have changed anyway. The book knows no clock, no prices and no
placement. Encoded with msgspec it is its own snapshot. Each way is a function of the module that has its concern: `postings`
(transfers), `vault` (lots), `sweeping` (time), `funding` (what comes in), `paybacks` (what goes back), `holding` (the holds of jobs), `clients` (those that
clients keep).
"""

from fabric.ledger import clients, funding, holding, paybacks, postings, sweeping
from fabric.ledger.proof import check
from fabric.ledger.state import Ledger


class Book(Ledger, kw_only=True, dict=True):
    """All that the ledger knows. `Book(operator="op")` is empty; msgspec encodes and decodes it by type."""

    # what comes in
    open_account = funding.open_account
    set_credit_limit = funding.set_credit_limit
    set_spending = funding.set_spending
    grant = funding.grant
    void = funding.void
    has_room_for = funding.has_room_for
    set_price = funding.set_price
    price_debt = funding.price_debt
    close_invoice = funding.close_invoice
    sell = funding.sell
    pay = funding.pay
    credit_note = funding.credit_note
    close_period = funding.close_period

    # what goes back
    pay_out = paybacks.pay_out
    set_aside = paybacks.set_aside
    keep = paybacks.keep

    # holds of jobs, and those that clients keep
    authorize = holding.authorize
    capture = holding.capture
    extend = holding.extend
    refund = holding.refund
    wait = holding.wait
    note_waiting = holding.note_waiting
    run = holding.run
    close = holding.close
    update = clients.update
    settle = clients.settle
    release = clients.release
    charge_late = clients.charge_late
    write_off = clients.write_off

    # time
    sweep = sweeping.sweep
    is_due = sweeping.is_due
    next_due_us = sweeping.next_due_us
    due_count = sweeping.due_count
    carry = sweeping.carry
    retire = sweeping.retire
    take_given_up = sweeping.take_given_up
    take_shrunk = sweeping.take_shrunk

    # what there is
    free = clients.free
    balance = clients.balance
    own_standing = sweeping.own_standing
    drain = postings.drain
    check = check
