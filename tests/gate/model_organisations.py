"""Of the model: organisations, their projects and members, and what each member's key is good for."""

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from fabric.gate.account_events import (
    AddMember,
    CloseAccount,
    CloseProject,
    CreateKey,
    CreateProject,
    OpenAccount,
    RemoveMember,
    ResumeAccount,
    SetRole,
    SuspendAccount,
)
from fabric.gate.events import Submit
from fabric.gate.instructions import Accepted
from fabric.gate.key_scopes import OF_CUSTOMERS, KeyScope
from fabric.gate.questions import BalanceOf, KeyOf, OrganisationOf
from fabric.gate.roles import Role
from tests.gate.driver import Driver, accounts, picks
from tests.gate.world import S, spec

MAY = {
    "owner": set(OF_CUSTOMERS),
    "billing": {"read", "money"},
    "developer": {"read", "jobs:own", "jobs:all", "models", "holds", "keys"},
    "read-only": {"read"},
}
roles = st.sampled_from(sorted(MAY))
TAGS = st.lists(st.sampled_from(["team=red", "team=blue", "app=x", "exp7"]), max_size=3, unique=True)


class OrganisationRules(Driver):
    """Members come and go; the lists here say what is so, and every answer is checked against them."""

    def __init__(self):
        super().__init__()
        self.members = {}
        """By account and name: [role, whether it is here]."""
        self.projects = {}
        """By account and name: whether it is open."""
        self.stands = None
        """How the account stands that is suspended and closed here."""
        self.member_keys = {}
        """By id: account, project, member."""
        self.given_tags = {}
        """By id of a key, and by account and name of a project."""

    def owners(self, account):
        return [
            name for (own, name), (role, here) in self.members.items() if own == account and here and role == "owner"
        ]

    @rule(account=accounts, role=roles, name=st.sampled_from(["mo", "li", "wu"]))
    def member(self, account, role, name):
        outcome = self.ask(AddMember(account_id=account, member=name, role=Role(role)))
        before = self.members.get((account, name))
        if before is not None:
            assert outcome.code == ("member_exists" if before[1] else "member_left")
        else:
            assert isinstance(outcome, Accepted)
            self.members[account, name] = [role, True]

    @precondition(lambda self: self.members)
    @rule(pick=picks, role=roles, leaves=st.booleans())
    def another_role(self, pick, role, leaves):
        account, name = sorted(self.members)[pick % len(self.members)]
        now, here = self.members[account, name]
        event = RemoveMember(account_id=account, member=name)
        outcome = self.ask(event if leaves else SetRole(account_id=account, member=name, role=Role(role)))
        if not here:
            assert outcome.code == "not_found"
        elif self.owners(account) == [name] and (leaves or role != "owner"):
            assert outcome.code == "last_owner"
        else:
            assert isinstance(outcome, Accepted)
            self.members[account, name] = [now if leaves else role, not leaves]

    @rule(account=accounts, name=st.sampled_from(["dev", "prod"]), wallet=accounts, closes=st.booleans(), tags=TAGS)
    def project(self, account, name, wallet, closes, tags):
        known = self.projects.get((account, name))
        if closes:
            outcome = self.ask(CloseProject(account_id=account, project=name))
            assert outcome.code == "not_found" if known is None else isinstance(outcome, Accepted)
            self.projects |= {} if known is None else {(account, name): False}
            return
        outcome = self.ask(CreateProject(account_id=account, project=name, wallet=wallet, tags=tuple(tags)))
        if wallet != account:
            assert outcome.code == "unknown_wallet"
        elif known is not None:
            assert outcome.code == "project_exists"
        else:
            assert isinstance(outcome, Accepted)
            self.projects[account, name] = True
            self.given_tags[account, name] = tags

    @rule(
        account=accounts,
        project=st.sampled_from(["", "dev", "prod"]),
        member=st.sampled_from(["", "mo", "li", "wu"]),
        tags=TAGS,
    )
    def members_key(self, account, project, member, tags):
        key_id = self.name("m")
        event = CreateKey(
            key_id=key_id, account_id=account, secret_sha256="", project=project, member=member, tags=tuple(tags)
        )
        outcome = self.ask(event)
        if project and not self.projects.get((account, project)):
            assert outcome.code in ("not_found", "project_closed")
        elif member and not self.members.get((account, member), (None, False))[1]:
            assert outcome.code == "not_found"
        else:
            assert isinstance(outcome, Accepted)
            self.member_keys[key_id] = (account, project, member)
            self.given_tags[key_id] = tags

    @rule(what=st.sampled_from(["suspend", "suspend", "resume", "resume", "close"]), sure=st.integers(0, 3))
    def standing(self, what, sure):
        """Of an account that nothing else is known of."""
        if self.stands is None:
            self.do(OpenAccount(account_id="zoe", name="", plan="starter"))
            self.stands = "open"
        if what == "close" and sure:
            return
        outcome = self.ask(
            {
                "suspend": SuspendAccount(account_id="zoe", reason="unpaid"),
                "resume": ResumeAccount(account_id="zoe"),
                "close": CloseAccount(account_id="zoe", reason="gone", balance="forfeit"),
            }[what]
        )
        if self.stands == "closed":
            assert outcome.code == "account_closed"
        else:
            assert isinstance(outcome, Accepted)
            self.stands = {"suspend": "suspended", "resume": "open", "close": "closed"}[what]
        tried = self.ask(Submit(job_id=self.name("z"), account_id="zoe", spec=spec(S)))
        assert tried.code == {"open": "insufficient_tokens"}.get(self.stands, f"account_{self.stands}")
        assert self.gate.ask(BalanceOf(account_id="zoe"), self.latest).standing == self.stands

    @invariant()
    def a_key_is_worth_what_its_member_is(self):
        for key_id, (account, project, member) in list(self.member_keys.items())[-4:]:
            role, here = self.members.get((account, member), ("owner", True))
            view = self.gate.ask(KeyOf(key_id=key_id), self.latest)
            closed = self.projects.get((account, project)) is False
            assert view.dead == ("member_left" if not here else "project_closed" if closed else "")
            assert {KeyScope(each) for each in view.scopes} == MAY[role]
            assert (view.role, view.project, view.member) == (role, project or account, member)

    @invariant()
    def who_is_in_an_organisation_is_known(self):
        for account in {account for account, _ in self.members}:
            shown = self.gate.ask(OrganisationOf(account_id=account), self.latest)
            here = {(each.member, each.role) for each in shown.members if each.left_at_us is None}
            assert here == {
                (name, role) for (own, name), (role, here) in self.members.items() if own == account and here
            }
            assert shown.wallets == (account,)
