"""Tags, projects and members on records: as they were when it was used, whatever becomes of the key, the project, the member."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.charging.tags import BYTES_MAX, OWN_MAX, TAGS_MAX, clipped, flaw_of, inherited, name_of
from fabric.gate.account_events import AddMember, CloseProject, CreateKey, CreateProject, RemoveMember, RevokeKey
from fabric.gate.events import Submit
from fabric.gate.questions import CallerOf, JobOf, JobsOf, KeyOf, OrganisationOf
from fabric.gate.roles import Role
from fabric.gate.serving_events import Authorize, SettleHold
from tests.gate.conftest import finished, metered, removed, started, top_up
from tests.gate.test_call_stories import USE, call, offer
from tests.gate.world import S, spec

TAGS = st.lists(st.sampled_from(["a=1", "a=2", "b=1", "b", "c=", "exp7"]), max_size=4, unique=True)


@pytest.fixture
def company(story):
    """Ada's account pays for two projects; dan has a key of one, and nobody one of the other and of none."""
    story.must(offer())
    story.must(top_up(100_000))
    for name in ("search", "ads"):
        story.must(CreateProject(account_id="ada", project=name, wallet="ada"))
    story.must(AddMember(account_id="ada", member="dan", role=Role.DEVELOPER))
    for name, whose in KEYS.items():
        story.must(CreateKey(key_id=name, account_id="ada", secret_sha256="", **whose))
    return story


KEYS = {
    "k-dan": {"project": "search", "member": "dan"},
    "k-ads": {"project": "ads"},
    "k-old": {},
    "k-own": {"project": "ada"},
}


def settled(story, *calls):
    story.must(Authorize(hold_id="s", account_id="ada", amount_uhs=1_000 * S, use=USE, ttl_us=60 * S))
    return story.do(SettleHold(hold_id="s", account_id="ada", seq=1, calls=calls)).records


def ran(story, key_id, *, before_the_end=()):
    """The record of a job that ran for a second."""
    story.must(Submit(job_id="j", account_id="ada", spec=spec(tags=("exp7", "team=red")), key_id=key_id))
    for event in (started(), metered(1), *before_the_end, finished("succeeded")):
        story.do(event)
    return story.do(removed()).records[0]


def test_a_calls_record_has_its_tags_and_whose_work_it_was(company):
    found = settled(
        company, call("a", key_id="k-dan", tags=("team=red", "app=x y")), call("b", key_id="k-ads"), call("c")
    )
    assert [(each.tags, each.project, each.member) for each in found] == [
        (("team=red", "app=x y"), "search", "dan"), ((), "ads", ""), ((), "", ""),
    ]  # fmt: skip


def test_a_jobs_record_has_its_tags_and_whose_work_it_was(company):
    record = ran(company, "k-dan")
    assert (record.tags, record.project, record.member) == (("exp7", "team=red"), "search", "dan")


@pytest.mark.parametrize("key_id", ["k-old", "k-own", None])
def test_a_record_of_the_project_that_is_called_like_the_account_names_none(company, key_id):
    (record,) = settled(company, call("a", key_id=key_id))
    assert (record.project, record.member) == ("", "")
    assert ran(company, key_id).project == ""


def test_what_becomes_of_a_key_a_project_and_a_member_changes_no_record(company):
    ends = (
        RemoveMember(account_id="ada", member="dan"),
        CloseProject(account_id="ada", project="search"),
        RevokeKey(key_id="k-dan"),
    )
    record = ran(company, "k-dan", before_the_end=ends)
    (late,) = settled(company, call("late", key_id="k-dan"))
    assert {(each.project, each.member) for each in (record, late)} == {("search", "dan")}


# -- what a key and a project give ---------------------------------------------------------------------------------------


@pytest.fixture
def marked(company):
    """A project and a key of it with tags, and a key of theirs without."""
    company.must(CreateProject(account_id="ada", project="lab", wallet="ada", tags=("cost-centre=1", "team=red")))
    company.must(CreateKey(key_id="k-1", account_id="ada", secret_sha256="", project="lab", tags=("team=blue",)))
    company.must(CreateKey(key_id="k-2", account_id="ada", secret_sha256="", project="lab"))
    return company


@pytest.mark.parametrize(
    ("key_id", "tags"),
    [
        ("k-1", ("cost-centre=1", "team=blue", "exp7", "app=x")),
        ("k-2", ("cost-centre=1", "team=red", "exp7", "app=x")),
        ("k-ads", ("exp7", "app=x")),
        (None, ("exp7", "app=x")),
    ],
)
def test_a_job_has_its_projects_tags_and_its_keys_and_its_own(marked, key_id, tags):
    marked.must(Submit(job_id="j", account_id="ada", spec=spec(tags=("exp7", "app=x")), key_id=key_id))
    assert marked.gate.ask(JobOf(job_id="j"), marked.now_us).tags == tags
    found = marked.gate.ask(JobsOf(account_id="ada", tags=("app=x", *tags[:1])), marked.now_us)
    assert [job.job_id for job in found] == ["j"], "it is found by them"
    for event in (started(), metered(1), finished("succeeded")):
        marked.do(event)
    assert marked.do(removed()).records[0].tags == tags


def test_a_jobs_own_tag_counts_before_its_keys_and_that_before_its_projects(marked):
    assert ran(marked, "k-1").tags == ("cost-centre=1", "exp7", "team=red")


def test_gateways_are_told_what_a_keys_calls_are_marked_with(marked):
    told = {name: marked.gate.ask(CallerOf(key_id=name), marked.now_us).tags for name in ("k-1", "k-2", "k-ads")}
    assert told == {"k-1": ("cost-centre=1", "team=blue"), "k-2": ("cost-centre=1", "team=red"), "k-ads": ()}
    assert marked.gate.ask(KeyOf(key_id="k-1"), marked.now_us).tags == told["k-1"]
    shown = marked.gate.ask(OrganisationOf(account_id="ada"), marked.now_us)
    assert {each.project: each.tags for each in shown.projects}["lab"] == ("cost-centre=1", "team=red")


@pytest.mark.parametrize(
    "tags", [("a=1",) * 9, ("a b=1",), ("a=\n",), ("a=" + "x" * 250, "b=" + "x" * 250, "c=" + "x" * 20)]
)
def test_a_key_and_a_project_have_no_more_tags_than_a_record_can_keep_of_them(marked, tags):
    for event in (
        CreateKey(key_id="k", account_id="ada", secret_sha256="", tags=tags),
        CreateProject(account_id="ada", project="p", wallet="ada", tags=tags),
    ):
        assert marked.do(event).outcome.code == "invalid_tags"


# -- how tags are inherited ----------------------------------------------------------------------------------------------


@given(TAGS, TAGS, TAGS)
def test_of_several_tags_of_a_name_the_nearest_counts(project, key, own):
    found = inherited(project, key, own)
    for tag in own:
        assert tag in found
    for tag in key:
        assert (tag in found) == (tag in own or name_of(tag) not in set(map(name_of, own)))
    for tag in set(project) - {*own, *key}:
        assert (tag in found) == (name_of(tag) not in set(map(name_of, (*own, *key))))
    assert set(found) <= {*project, *key, *own}
    assert len(found) == len(set(found))
    assert inherited(found) == found


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        (["a=1"] * (OWN_MAX + 1), "at most 16"),
        (["=1"], "name"),
        ([""], "name"),
        ([" a=1"], "name"),
        (["a,b=1"], "name"),
        (["-a=1"], "name"),
        (['["a=1'], "name"),
        (["a b=1"], "name"),
        (["n" * 65 + "=1"], "name"),
        (["a=" + "v" * 257], "257 characters"),
        (["a=1\n"], "printed"),
        (["a=\x00"], "printed"),
        (["a=\u202e"], "printed"),
        ([f"a{n}=" + "v" * 250 for n in range(5)], f"at most {BYTES_MAX}"),
    ],
)
def test_what_is_wrong_with_tags_is_said_with_its_bound(tags, why):
    assert why in flaw_of(tags)


def test_good_tags_have_no_flaw():
    assert flaw_of(["team=red", "cost-centre=4711", "exp7", "团队=红", "empty=", "a=b=c"]) == ""


def test_what_was_used_is_recorded_however_it_is_marked():
    assert len(clipped(["a=1"] * 100)) == TAGS_MAX
    assert len(clipped(["x" * 10_000])[0]) == 64 + 1 + 256
