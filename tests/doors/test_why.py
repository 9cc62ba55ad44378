"""`fabric why JOB`, `Job.why()` and their call: one sentence, and the facts that it is made of."""

import json

import pytest

from fabric.errors import NotFound
from fabric.gate.events import NodeUp, Pool, TopUp
from fabric.units import UHS_PER_CT

COMMAND = ["true"]


@pytest.fixture
def waiting(house):
    """A job of acme's that waits behind one of globex's."""
    house.port.run_jobs = False
    house.port.seed(TopUp(account_id="globex", amount_uhs=900 * UHS_PER_CT))
    with house.fabric(house.globex) as others, house.fabric() as acme:
        others.submit(COMMAND, tokens=1, accelerators="A100:6")
        yield acme.submit(COMMAND, tokens=1, accelerators="A100:4")


def test_a_job_says_why_it_waits_and_what_would_let_it_start(waiting):
    said = waiting.why()
    assert said.startswith("It waits for 4 × A100: 2 of 8 spot A100 are free, so 2 more must come free")
    assert "It could start now with H100 (--accelerator) or 2 devices." in said


def test_at_the_command_line_it_is_a_sentence_or_its_facts(waiting, run):
    said = run("why", waiting.id).output
    assert " ".join(said.split()) == waiting.why()
    facts = json.loads(run("why", waiting.id, "--json").output)
    assert (facts["state"], facts["waits"]["code"], facts["waits"]["short"]) == ("queued", "room", 2)
    assert facts["sentence"] == waiting.why()


def test_one_whose_grace_keeps_it_out_of_a_pool_is_told_at_its_submission(house, run):
    house.port.seed(NodeUp(node_id="r1", accelerator="H100", devices=8, pool=Pool.RESERVED))
    done = run("submit", "--tokens", 1, "--accelerators", "H100:1", "--grace", 300, "--", "true")
    assert "not placed on reserved nodes: its --grace is longer than the 2 min that they give" in done.stderr
    assert "not placed" not in run("submit", "--tokens", 1, "--accelerators", "H100:1", "--", "true").stderr


def test_another_customers_job_is_none(waiting, house):
    with house.fabric(house.globex) as others, pytest.raises(NotFound):
        others.job(waiting.id).why()


def test_an_operator_is_told_of_any_customers_job(waiting, house, run):
    assert "It waits for 4 × A100" in run("why", waiting.id, "--account", "acme", key=house.root).output
