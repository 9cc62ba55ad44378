"""Accounts that are suspended, go on, and are closed: no work is lost, nothing runs that isn't covered, the books add up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.gate import Gate
from fabric.gate.account_events import (
    AddMember,
    CloseAccount,
    CreateKey,
    CreateProject,
    OpenAccount,
    ResumeAccount,
    SuspendAccount,
)
from fabric.gate.caps import Caps
from fabric.gate.events import ClosePeriod, Configure, Grant, Pause, RecordPayment, Resume, Subscribe, Tick
from fabric.gate.instructions import Accepted, StartLease
from fabric.gate.questions import BalanceOf, KeyOf
from fabric.gate.roles import Role
from fabric.gate.serving_events import Authorize, SettleHold, UpdateHold
from fabric.ledger.scopes import Service, Use
from tests.gate.conftest import Story, finished, metered, node, removed, saved, started, submit, top_up
from tests.gate.world import CATALOGUE, CONFIGURE, DAY, TARIFFS, S

SUSPEND = SuspendAccount(account_id="ada", reason="unpaid")
RESUME = ResumeAccount(account_id="ada")
CLOSE = CloseAccount(account_id="ada", reason="asked to", balance="refund")
FORFEIT = CloseAccount(account_id="ada", reason="fraud", balance="forfeit")
USE = Use(service=Service.INFERENCE)


def no(story, event):
    return story.do(event).outcome.code


def balance(story, account="ada"):
    return story.gate.ask(BalanceOf(account_id=account), story.now_us)


def test_a_suspended_accounts_job_saves_waits_and_goes_on_where_it_was(story):
    story.play(
        (0, submit(), ["start j.1 epoch 1 on h1:1"], "starting"),
        (1, started(), []),
        (20, metered(19), []),
        (21, SUSPEND, ["stop j.1 suspended by 31"], "stopping suspended"),
        (22, submit("k"), []),
        (23, saved(), []),
        (24, finished("saved"), ["remove j.1"], "parked suspended"),
        (25, removed(), [], "parked suspended"),
        (26, Resume(job_id="j", account_id="ada"), [], "parked suspended"),
        (27, top_up(100), [], "parked suspended"),
        (30, RESUME, ["start j.2 epoch 2 on h1:1"], "starting"),
    )
    assert "k" not in story.gate.state.jobs


def test_each_way_in_is_refused_while_suspended_and_looking_and_paying_are_not(story):
    story.must(CreateKey(key_id="k", account_id="ada", secret_sha256=""))
    hold = Authorize(account_id="ada", hold_id="h", amount_uhs=10 * S, use=USE, ttl_us=60 * S)
    story.must(hold)
    story.must(SUSPEND)
    assert no(story, submit()) == "account_suspended"
    assert no(story, Authorize(account_id="ada", hold_id="i", amount_uhs=S, use=USE, ttl_us=S)) == "account_suspended"
    # What was used is booked, and no more is given.
    given = story.must(UpdateHold(account_id="ada", hold_id="h", seq=1, used_uhs=4 * S, more_uhs=50 * S))
    assert (given.granted_uhs, given.held_uhs) == (0, 6 * S)
    story.must(SettleHold(account_id="ada", hold_id="h", seq=2, used_uhs=6 * S))
    story.must(top_up(5))
    assert balance(story).standing == "suspended"
    assert story.gate.ask(KeyOf(key_id="k"), story.now_us).suspended == "unpaid"


@pytest.mark.parametrize("paused", [False, True])
def test_only_what_the_suspension_parked_goes_on(story, paused):
    story.play(
        (0, submit(), ["start j.1 epoch 1 on h1:1"]),
        (1, started(), []),
        *([(2, Pause(job_id="j", account_id="ada"), ["stop j.1 paused by 12"])] if paused else []),
        (3, SUSPEND, [] if paused else ["stop j.1 suspended by 13"]),
        (4, RESUME, []),
        (5, finished("saved"), ["remove j.1"]),
        (6, removed(), [] if paused else ["start j.2 epoch 2 on h1:1"], "parked paused" if paused else "starting"),
    )


def test_jobs_that_wait_are_parked_without_a_hold_and_go_on_as_far_as_tokens_last(story):
    story.must(submit("a", devices=4))
    story.must(submit("b", limit=800 * S))
    story.must(SUSPEND)
    assert (story.job("b").state.value, story.job("b").held_uhs) == ("parked", 0)
    story.must(Grant(account_id="ada", amount_uhs=S))
    story.do(RESUME)
    assert story.job("b").state.value == "queued"


def test_a_closed_account_has_no_keys_no_jobs_and_no_balance(story):
    story.must(CreateKey(key_id="k", account_id="ada", secret_sha256=""))
    story.must(Subscribe(account_id="ada", subscription="weekly"))
    story.play(
        (0, submit(), ["start j.1 epoch 1 on h1:1"]),
        (1, started(), []),
        (20, metered(19), []),
        (21, CLOSE, ["stop j.1 cancelled by 31"], "stopping cancelled"),
    )
    assert balance(story).standing == "closing"
    assert (balance(story).free_uhs, balance(story).held_uhs) == (0, 81 * S)
    story.play((24, finished("saved"), ["remove j.1"], "cancelled cancelled"), (25, removed(), []))
    shown = balance(story)
    assert (shown.standing, shown.free_uhs, shown.held_uhs, shown.debt_uhs) == ("closed", 0, 0, 0)
    assert story.gate.ask(KeyOf(key_id="k"), story.now_us).dead == "account_closed"
    for event in (submit("n"), top_up(1), Grant(account_id="ada", amount_uhs=S), SUSPEND, RESUME, CLOSE):
        assert no(story, event) == "account_closed", event
    story.now_us += 40 * DAY
    story.must(Tick())
    assert not story.gate.state.subscriptions
    assert balance(story).free_uhs == 0


def test_what_is_refunded_is_the_price_of_what_was_unused(story):
    """Of 1000 device-seconds for some price a quarter is used."""
    story.must(Authorize(account_id="ada", hold_id="h", amount_uhs=250 * S, use=USE, ttl_us=60 * S))
    story.must(SettleHold(account_id="ada", hold_id="h", seq=1, used_uhs=250 * S))
    [lot] = story.gate.state.book.lots.values()
    decision = story.do(CLOSE)
    paid = [leg.amount for transfer in decision.transfers for leg in transfer.postings if leg.account == "cash/sandbox"]
    assert [abs(amount) for amount in paid] == [(lot.terms.price_microcny * 3 + 2) // 4]
    assert balance(story).standing == "closed"


def test_what_is_forfeited_pays_nobody(story):
    decision = story.do(FORFEIT)
    assert balance(story).standing == "closed"
    assert not [leg for transfer in decision.transfers for leg in transfer.postings if leg.account.startswith("cash/")]


def test_what_a_hold_gives_back_later_goes_then(story):
    story.must(Authorize(account_id="ada", hold_id="h", amount_uhs=250 * S, use=USE, ttl_us=60 * S))
    story.must(CLOSE)
    assert (balance(story).standing, balance(story).held_uhs) == ("closing", 250 * S)
    story.must(SettleHold(account_id="ada", hold_id="h", seq=1, used_uhs=100 * S))
    assert (balance(story).standing, balance(story).posted_uhs) == ("closed", 0)


def test_whoever_owes_when_closed_still_owes_and_may_pay(story):
    story.must(OpenAccount(account_id="cyd", name="Cyd", plan="post"))
    story.must(Authorize(account_id="cyd", hold_id="h", amount_uhs=200 * S, use=USE, ttl_us=60 * S))
    story.must(SettleHold(account_id="cyd", hold_id="h", seq=1, used_uhs=200 * S))
    story.must(CloseAccount(account_id="cyd", reason="gone", balance="refund"))
    assert balance(story, "cyd").debt_uhs == 200 * S
    story.must(ClosePeriod(period="p"))
    owed = balance(story, "cyd").receivable_microcny
    story.must(RecordPayment(account_id="cyd", amount_microcny=owed, payment_ref="bank"))
    assert balance(story, "cyd").receivable_microcny == 0


def test_all_wallets_of_an_organisation_are_meant_where_that_is_said(story):
    story.must(OpenAccount(account_id="lab", name="Lab", plan="pro", organisation="ada"))
    story.must(SuspendAccount(account_id="ada", reason="unpaid", organisation=True))
    assert {balance(story, name).standing for name in ("ada", "lab")} == {"suspended"}
    story.must(ResumeAccount(account_id="lab"))
    assert [balance(story, name).standing for name in ("ada", "lab")] == ["suspended", "open"]


def test_what_cannot_be_meant_is_refused(story):
    assert no(story, SuspendAccount(account_id="x", reason="y")) == "not_found"
    assert no(story, SuspendAccount(account_id="ada", reason=" ")) == "invalid_reason"
    assert no(story, CloseAccount(account_id="ada", reason="y", balance="keep")) == "invalid_balance"
    story.must(CreateKey(key_id="root", account_id="bob", secret_sha256="", operator=True))
    assert no(story, CloseAccount(account_id="bob", reason="y")) == "operators_account"


# -- caps --------------------------------------------------------------------------------------------------------------


def more(story, what):
    """One more of it."""
    number = story.now_us = story.now_us + 1
    return story.do(
        {
            "keys": lambda: CreateKey(key_id=f"k{number}", account_id="ada", secret_sha256=""),
            "members": lambda: AddMember(account_id="ada", member=f"m{number}", role=Role.OWNER),
            "projects": lambda: project(number),
            "queued_jobs": lambda: submit(f"j{number}", limit=S, devices=4),
        }[what]()
    ).outcome


def project(number):
    return CreateProject(account_id="ada", project=f"p{number}", wallet="ada")


@pytest.mark.parametrize("what", Caps.__struct_fields__)
@pytest.mark.parametrize("most", [1, 3])
def test_every_cap_holds_and_says_number_limit_and_remedy(story, what, most):
    """A cap that is added without a way to reach it fails here."""
    story.must(Configure(tariffs=TARIFFS, catalogue=CATALOGUE, caps=Caps(**{what: most})))
    if what == "queued_jobs":
        assert isinstance(more(story, what), Accepted), "the first has the devices, and waits for nothing"
    for _ in range(most):
        assert isinstance(more(story, what), Accepted)
    refusal = more(story, what)
    assert (refusal.code, refusal.facts["limit"]) == (f"too_many_{what}", most)
    assert f"limits.{what}" in refusal.message
    assert str(most) in refusal.message
    story.must(Configure(tariffs=TARIFFS, catalogue=CATALOGUE, caps=Caps(**{what: most + 1})))
    assert isinstance(more(story, what), Accepted)
    assert no(story, Configure(tariffs=TARIFFS, catalogue=CATALOGUE, caps=Caps(**{what: 0}))) == "invalid_config"


def test_what_is_configured_without_caps_leaves_them(story):
    story.must(Configure(tariffs=TARIFFS, catalogue=CATALOGUE, caps=Caps(members=1)))
    story.must(CONFIGURE)
    more(story, "members")
    assert more(story, "members").code == "too_many_members"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["job", "hold", "settle", "suspend", "resume", "resume", "run", "end", "pay", "close", "forfeit"]
        ),
        st.integers(0, 3),
    ),
    max_size=25,
)


def step(story, what, number):
    state, name = story.gate.state, f"{what}{len(story.journal)}"
    leases = [record for record in state.leases.values() if record.account_id == "ada"]
    holds = [hold for hold in state.book.holds.values() if "#" not in hold.hold_id]
    events = {
        "job": [submit(name, limit=(50 + 100 * number) * S, devices=1 + number)],
        "hold": [Authorize(account_id="ada", hold_id=name, amount_uhs=(number + 1) * 40 * S, use=USE, ttl_us=900 * S)],
        "settle": [
            SettleHold(account_id="ada", hold_id=hold.hold_id, seq=hold.seq + 1, used_uhs=number * 10 * S)
            for hold in holds[:1]
        ],
        "suspend": [SUSPEND],
        "resume": [RESUME],
        "run": [started(each.lease.lease_id) for each in leases if each.state == "starting"],
        "end": [
            event
            for each in leases[:1]
            for event in (finished("saved", each.lease.lease_id), removed(each.lease.lease_id))
        ],
        "pay": [top_up(100 * (number + 1))],
        "close": [CLOSE] if number == 3 else [],
        "forfeit": [FORFEIT] if number == 3 else [],
    }[what]
    for event in events:
        story.now_us += 1_000_000
        starts = [each for each in story.do(event).instructions if isinstance(each, StartLease)]
        assert not starts or state.accounts["ada"].standing == "open", event


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_whatever_happens_nothing_starts_that_is_not_open_and_the_books_add_up(steps):
    """And a restored gate stands where this one does."""
    story = Recorded("ada")
    story.must(top_up(1_000))
    story.must(node())
    for what, number in steps:
        step(story, what, number)
    account = story.gate.state.accounts["ada"]
    twin = Gate.restore(story.gate.snapshot())
    assert twin.snapshot() == story.gate.snapshot()
    if account.standing == "closed":
        shown = balance(story)
        assert (shown.posted_uhs, shown.debt_uhs) == (0, 0)
        assert all(job.settled for job in story.gate.jobs_of("ada"))
    if account.standing != "open":
        assert not [job for job in story.gate.jobs_of("ada") if job.state in ("queued", "starting", "running")]


class Recorded(Story):
    """Keeps what was done."""

    def __init__(self, *accounts):
        self.journal = []
        super().__init__(*accounts)

    def do(self, event):
        self.journal.append(event)
        return super().do(event)
