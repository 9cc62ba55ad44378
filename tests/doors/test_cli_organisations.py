"""An owner and an operator at the command line: wallets, projects, members."""

import json

from fabric.wire import fabric_pb2 as pb
from tests.doors.test_rpc import ask


def test_a_member_is_invited_works_and_leaves(house, run):
    run("ops", "open-account", "acme-lab", "--plan", "starter", "--organisation", "acme", key=house.root)
    run("projects", "create", "lab", "--wallet", "acme-lab")
    first = json.loads(run("members", "invite", "dan", "--role", "developer", "--project", "lab", "--json").output)
    shown = json.loads(run("keys", "ls", "--json", key=first["api_key"]).output)
    assert [(key["account_id"], key["project"], key["member"]) for key in shown] == [("acme-lab", "lab", "dan")]
    run("members", "role", "dan", "--role", "read-only")
    assert "read-only" in run("members", "ls").output
    assert "acme-lab" in run("org", "show").output
    run("members", "invite", "eve", "--role", "owner", "--no-key", key=first["api_key"], code=3)
    run("members", "remove", "dan")
    run("balance", key=first["api_key"], code=3)
    run("projects", "close", "lab")
    assert "closed" in run("projects", "ls").output


def test_usage_is_summed_by_project_and_by_member(house, run):
    run("projects", "create", "dev", "--wallet", "acme", "--tag", "cost-centre=7")
    assert "cost-centre=7" in run("projects", "ls").output
    key = json.loads(run("members", "invite", "dan", "--role", "developer", "--project", "dev", "--json").output)[
        "api_key"
    ]
    for api_key in (key, house.acme):
        house.fabric(api_key).submit(lambda: None, tokens=1).wait(timeout=20)
    charged = sum(int(row["charged_uhs"]) for row in json.loads(run("usage", "--json").output))
    assert charged
    for by, names in (("project", {"dev", "acme"}), ("member", {"dan", "–"}), ("tag:cost-centre", {"7", "–"})):
        for more in ([], ["--since", "2001-01-01"]):
            rows = json.loads(run("usage", "--by", by, *more, "--json").output)
            assert {row[by]: row["records"] for row in rows} == dict.fromkeys(names, 1)
            assert sum(int(row["charged_uhs"]) for row in rows) == charged
    parts = [json.loads(run("statement", "--project", name, "--json").output) for name in ("dev", "acme", "none")]
    assert [len(part["records"]) for part in parts] == [1, 1, 0]
    assert sum(int(part["charged_uhs"]) for part in parts) == charged, "projects of one wallet add up to it"
    assert "project dev" in run("statement", "--project", "dev").output
    assert len(json.loads(run("usage", "--project", "dev", "--json").output)) == 1


def test_an_operator_suspends_resumes_and_closes(house, run):
    run("ops", "suspend", "acme", "--reason", "unpaid", key=house.root)
    assert "is suspended (unpaid)" in run("cancel", "job-0", code=3).stderr
    assert "suspended" in run("ops", "accounts", "--json", key=house.root).output
    run("ops", "resume", "acme", key=house.root)
    run("ops", "close-account", "acme", "--balance", "forfeit", "--reason", "gone", key=house.root)
    run("balance", code=3)
    run("ops", "close-account", "acme", "--balance", "keep", "--reason", "gone", key=house.root, code=3)


def test_the_same_from_python(house):
    with house.fabric() as fabric:
        fabric.organisation.create_project("dev", wallet="acme")
        api_key = fabric.organisation.invite("bea", role="billing", project="dev")
        assert ask(house.client(api_key), pb.BalanceRequest()).account_id == "acme"
        fabric.organisation.set_role("bea", "owner")
        fabric.organisation.invite("dan", role="owner")
        fabric.organisation.remove("bea")
        fabric.organisation.close_project("dev")
        shown = fabric.organisation.show()
    assert [(each["member"], bool(each["left_at_us"])) for each in shown["members"]] == [("bea", True), ("dan", False)]
