"""Organisations: several wallets, projects that name theirs, members whose role bounds what their keys can do."""

import pytest

from fabric.gate.account_events import (
    AddMember,
    CloseProject,
    CreateKey,
    CreateProject,
    OpenAccount,
    RemoveMember,
    RevokeKey,
    SetRole,
)
from fabric.gate.events import Submit
from fabric.gate.instructions import Accepted
from fabric.gate.questions import JobOf, KeyOf, OrganisationOf
from fabric.gate.roles import Role
from tests.gate.conftest import top_up
from tests.gate.world import spec


def key(name, *, account="ada", **more):
    return CreateKey(key_id=name, account_id=account, secret_sha256="", **more)


def member(name, role, *, account="ada", **more):
    return AddMember(account_id=account, member=name, role=Role(role), **more)


def job(name, with_key, *, account="ada"):
    return Submit(job_id=name, account_id=account, spec=spec(), key_id=with_key)


def no(story, event):
    return story.do(event).outcome.code


@pytest.fixture
def company(story):
    """Ada has a second wallet, a project on it, an owner and a developer, each with a key; and a key of nobody's."""
    story.must(OpenAccount(account_id="ada-lab", name="Ada's lab", plan="pro", organisation="ada"))
    story.must(top_up(500, "ada-lab"))
    story.must(CreateProject(account_id="ada", project="lab", wallet="ada-lab"))
    story.must(member("olga", "owner"))
    story.must(member("dan", "developer"))
    for event in (
        key("k-olga", member="olga"),
        key("k-dan", member="dan"),
        key("k-lab", account="ada-lab", project="lab", member="dan"),
        key("k-old"),
    ):
        story.must(event)
    return story


def test_an_account_of_before_is_an_organisation_of_one_project(story):
    story.must(key("k"))
    assert not story.gate.state.organisations, "nothing is kept of it before it has more"
    shown = story.gate.ask(OrganisationOf(account_id="ada"), story.now_us)
    assert (shown.organisation, shown.wallets, shown.members) == ("ada", ("ada",), ())
    assert [(each.project, each.wallet, each.keys) for each in shown.projects] == [("ada", "ada", 1)]
    story.must(job("j", "k"))
    assert story.gate.ask(JobOf(job_id="j"), story.now_us).project == "ada"


def test_a_project_is_paid_from_its_wallet_and_from_no_other(company):
    before = company.free("ada")
    company.must(job("j", "k-lab", account="ada-lab"))
    assert company.free("ada") == before
    assert company.free("ada-lab") < 500_000_000
    view = company.gate.ask(JobOf(job_id="j"), company.now_us)
    assert (view.account_id, view.project, view.member) == ("ada-lab", "lab", "dan")
    # A key never falls through to another wallet of its organisation.
    assert no(company, job("other", "k-lab", account="ada")) == "restricted_key"
    assert no(company, job("other", "k-dan", account="ada-lab")) == "restricted_key"
    assert no(company, job("other", "k-dan", account="bob")) == "not_found"
    assert no(company, key("k", account="ada", project="lab")) == "wrong_wallet"


def test_a_member_who_leaves_has_no_keys_at_once_and_none_again(company):
    company.must(job("before", "k-dan"))
    company.must(RemoveMember(account_id="ada-lab", member="dan"))
    assert no(company, job("after", "k-dan")) == no(company, job("after", "k-lab", account="ada-lab")) == "member_left"
    assert no(company, key("k-new", made_with="k-dan", member="dan")) in ("not_found", "member_left")
    assert no(company, member("dan", "developer")) == "member_left"
    assert company.job("before").state.value == "starting", "what runs goes on"
    assert company.gate.ask(KeyOf(key_id="k-dan"), company.now_us).dead == "member_left"


def test_the_last_owner_stays(company):
    assert no(company, RemoveMember(account_id="ada", member="olga")) == "last_owner"
    assert no(company, SetRole(account_id="ada", member="olga", role=Role.BILLING)) == "last_owner"
    company.must(SetRole(account_id="ada", member="dan", role=Role.OWNER))
    company.must(RemoveMember(account_id="ada", member="olga"))
    assert no(company, RemoveMember(account_id="ada", member="dan")) == "last_owner"


def test_another_role_holds_for_all_keys_of_the_member(company):
    company.must(SetRole(account_id="ada", member="dan", role=Role.READ_ONLY))
    assert no(company, job("j", "k-dan")) == "restricted_key"
    company.must(SetRole(account_id="ada", member="dan", role=Role.DEVELOPER))
    company.must(job("j", "k-dan"))


@pytest.mark.parametrize(
    "event",
    [
        member("eve", "owner", by_key="k-dan"),
        member("eve", "read-only", by_key="k-dan"),
        SetRole(account_id="ada", member="dan", role=Role.OWNER, by_key="k-dan"),
        RemoveMember(account_id="ada", member="olga", by_key="k-dan"),
        CreateProject(account_id="ada", project="mine", wallet="ada", by_key="k-dan"),
        CloseProject(account_id="ada", project="lab", by_key="k-dan"),
        key("k", member="olga", made_with="k-dan"),
        key("k", made_with="k-dan"),
        key("k", account="ada-lab", project="lab", member="dan", made_with="k-dan"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_who_is_no_owner_gives_nobody_more_than_itself(company, event):
    assert no(company, event) == "restricted_key"


@pytest.mark.parametrize("role", ["owner", "billing", "developer", "read-only"])
@pytest.mark.parametrize("scopes", [("keys",), ("read", "keys", "money"), ("keys", "jobs:all", "models")])
def test_a_key_that_was_given_less_makes_no_member_who_may_more(company, role, scopes):
    """Of one of nobody's, too: what it may do bounds whom it may let in."""
    company.must(key("k-less", scopes=scopes))
    outcome = company.do(member("eve", role, by_key="k-less")).outcome
    if "money" in scopes and role in ("billing", "read-only"):
        assert isinstance(outcome, Accepted)
    else:
        assert outcome.code == "restricted_key"


def test_an_owner_gives_what_it_has(company):
    company.must(member("bea", "billing", by_key="k-olga"))
    company.must(key("k-bea", member="bea", made_with="k-olga"))
    company.must(key("k-far", account="ada-lab", project="lab", member="bea", made_with="k-olga"))
    company.must(RevokeKey(key_id="k-far", account_id="ada"))
    company.must(CreateProject(account_id="ada", project="new", wallet="ada", by_key="k-old"))
    assert no(company, CreateProject(account_id="ada", project="x", wallet="bob", by_key="k-olga")) == "unknown_wallet"
    assert no(company, member("eve", "owner", account="bob", by_key="k-olga")) == "not_found"
    assert no(company, RevokeKey(key_id="k-old", account_id="bob")) == "not_found"


def test_a_closed_project_has_no_keys_and_goes_on_with_what_runs(company):
    company.must(job("j", "k-lab", account="ada-lab"))
    company.must(CloseProject(account_id="ada", project="lab"))
    assert no(company, job("k", "k-lab", account="ada-lab")) == "project_closed"
    assert no(company, key("k-2", account="ada-lab", project="lab")) == "project_closed"
    assert company.job("j").state.value == "starting"


def test_names_are_whose_they_are(company):
    assert no(company, CreateProject(account_id="bob", project="ada", wallet="bob")) == "project_exists"
    assert no(company, OpenAccount(account_id="lab", name="", plan="pro")) == "project_exists"
    assert no(company, CreateProject(account_id="ada", project="a b", wallet="ada")) == "invalid_name"
    assert no(company, member("x" * 65, "owner")) == "invalid_name"
    assert no(company, member("eve", "admin")) == "invalid_role"
    assert no(company, OpenAccount(account_id="x", name="", plan="pro", organisation="nobody")) == "not_found"
    assert isinstance(company.do(CreateProject(account_id="bob", project="lab", wallet="bob")).outcome, Accepted)
